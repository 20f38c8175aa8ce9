import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.files import expand_home


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("~/set", "/home/me/set"),
        ("~", "/home/me"),
        ("--out=~/records", "--out=/home/me/records"),
        ("--config.data.root=~/set", "--config.data.root=/home/me/set"),
        ("--config=configs/custom.py:~/l.json", "--config=configs/custom.py:/home/me/l.json"),
        ("configs/custom.py:~/l.json", "configs/custom.py:/home/me/l.json"),
        ("data.root=~/set", "data.root=/home/me/set"),
        ("a~b/c", "a~b/c"),
        ("x/~/y", "x/~/y"),
        ("--count=3", "--count=3"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
    ],
)
def test_the_home_folder_is_expanded_where_it_starts_a_path(monkeypatch, word, expected):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home([word]) == [expected]


def test_an_argument_that_is_not_utf8_is_an_error():
    word = b"data.root=stra\xdfe".decode("ascii", "surrogateescape")
    with pytest.raises(ConfigError, match=r"The argument 'data.root=stra\\udcdfe' is not UTF-8. Set PYTHONUTF8=1"):
        expand_home([word])
