import pytest

from deeplab_jax.errors import one_line, summarize


@pytest.mark.parametrize(
    ("items", "text"),
    [([], "nothing"), (["a"], "a"), (["a", 2], "a, 2"), (["a", "b", "c"], "a, b and 1 more"), ("abcdefghi", "a, b and 7 more")],
)
def test_a_summary_names_the_first_items_and_counts_the_others(items, text):
    assert summarize(iter(items), 2) == text


def test_an_error_without_a_message_is_named_by_its_type():
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyError()) == "KeyError"
