import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, IGNORE, UNKNOWN, LabelSet, merge

PETS = LabelSet("pets", ("cat", "dog", "cow", "hen"), ((1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0)), ids=(10, 20, 30, 40))


def test_merged_classes_come_first_and_keep_all_ids_and_colors():
    labels = merge(PETS, {"farm": ("hen", "cow")}, ignored=("cat",), name="farm")
    assert labels == LabelSet(
        "farm",
        ("farm", "dog"),
        ((4, 0, 0), (2, 0, 0)),
        ids=(40, 20),
        ignored_ids=(255, 10),
        ignored_colors=((0, 0, 0), (1, 0, 0)),
        more_ids=((30,), ()),
        more_colors=(((3, 0, 0),), ()),
    )
    assert merge(PETS, {}).name == "pets-merged"


def test_a_class_can_be_renamed_to_a_class_that_it_replaces():
    assert merge(PETS, {"cat": ("cat", "dog")}).names == ("cat", "cow", "hen")
    assert merge(PETS, {"cat": ("dog",)}, ignored=("cat",)).names == ("cat", "cow", "hen")


def test_classes_without_ids_are_merged_by_train_id():
    labels = merge(LabelSet("x", ("a", "b", "c"), ((1, 1, 1), (2, 2, 2), (3, 3, 3))), {"bc": ("b", "c")})
    assert labels.id_table()[[0, 1, 2, 3, 255]].tolist() == [1, 0, 0, UNKNOWN, IGNORE]


def test_train_ids_in_label_files_are_merged_as_ids():
    labels = merge(dataclasses.replace(PETS, label_kind="labelTrainIds"), {"farm": ("hen", "cow")}, ignored=("cat",))
    assert labels.label_kind == "labelIds"
    assert labels.id_table()[[0, 1, 2, 3, 255, 10]].tolist() == [IGNORE, 1, 0, 0, IGNORE, UNKNOWN]
    assert merge(dataclasses.replace(PETS, label_kind="color"), {}).label_kind == "color"


@pytest.mark.parametrize(
    ("groups", "ignored", "message"),
    [
        ({"farm": ("hen", "pig")}, (), r"'pig', which is not a class of 'pets'\. Use cat, dog, cow, hen"),
        ({"farm": ("hen", "cow")}, ("cow",), "'cow' more than once"),
        ({"farm": ("hen",), "wild": ("hen",)}, (), "'hen' more than once"),
        ({"farm": ()}, (), r"`groups\['farm'\]`"),
        ({"farm": "hen"}, (), r"`groups\['farm'\]` .='hen'"),
        ({"dog": ("hen", "cow")}, (), "'dog'"),
        ({"farm": ("hen", "cow")}, ("cat", "dog"), r"labels\.names` \(of length 1\) cannot be used"),
    ],
)
def test_groups_that_cannot_be_merged_are_refused(groups, ignored, message):
    with pytest.raises(ConfigError, match=message) as error:
        merge(PETS, groups, ignored)
    assert "\n" not in str(error.value)


@given(st.lists(st.integers(-1, 4), min_size=19, max_size=19).filter(lambda groups: len(set(groups) - {-1}) > 1))
def test_merging_equals_remapping_the_tables(groups):
    """-1 stands for an ignored class, and 0 to 4 for the group that the class belongs to."""
    numbers = sorted(set(groups) - {-1})
    members = {f"group {n}": [name for name, g in zip(CITYSCAPES.names, groups, strict=True) if g == n] for n in numbers}
    merged = merge(CITYSCAPES, members, [name for name, g in zip(CITYSCAPES.names, groups, strict=True) if g == -1])
    remap = {IGNORE: IGNORE, UNKNOWN: UNKNOWN}
    remap |= {k: IGNORE if g == -1 else numbers.index(g) for k, g in enumerate(groups)}
    expected = np.array([remap[train_id] for train_id in CITYSCAPES.id_table().tolist()])
    np.testing.assert_array_equal(merged.id_table(), expected)
    colors = CITYSCAPES.train_id_of_color()
    assert merged.train_id_of_color() == {color: remap[train_id] for color, train_id in colors.items()}
