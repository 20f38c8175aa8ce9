import dataclasses
import hashlib

import pytest
from test_find import write_list

from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples, digest, read_list
from deeplab_jax.errors import DataError


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a.png\tb.png\n", [("a.png", "b.png")]),
        ("a.png b.png\r\nc.png   d.png", [("a.png", "b.png"), ("c.png", "d.png")]),
        ("\n  \na.png\tb.png\n\n", [("a.png", "b.png")]),
        ("a b.png\tc d.png\n", [("a b.png", "c d.png")]),
        ("\ufeffa.png\n", [("a.png", "")]),
        ("", []),
    ],
)
def test_lists_in_several_formats_are_read(tmp_path, text, pairs):
    assert list(read_list(write_list(tmp_path, text))) == pairs


@pytest.mark.parametrize("line", ["a b c", "../a.png b.png", "/etc/a.png b.png"])
def test_the_error_for_a_malformed_line_names_its_number(tmp_path, line):
    with pytest.raises(DataError, match="Line 2 of"):
        list(read_list(write_list(tmp_path, f"x y\n{line}\n")))


def test_a_list_that_is_not_utf8_is_an_error(tmp_path):
    path = write_list(tmp_path, "")
    path.write_bytes("münchen.png".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.lst is not UTF-8 text"):
        list(read_list(path))


def test_the_digest_depends_only_on_the_names_their_order_and_the_label_kind():
    samples = Samples("root", ("a.png", "b.png"), ("c.png", "d.png"), "labelIds", "list", ImageFiles())
    text = '["labelIds", ["a.png", "b.png"], ["c.png", "d.png"]]'
    assert digest(samples) == hashlib.sha256(text.encode()).hexdigest()
    assert digest(dataclasses.replace(samples, root="elsewhere", source="a scan")) == digest(samples)
    changes = [
        {"images": ("b.png", "a.png")},
        {"labels": ("d.png", "c.png")},
        {"images": ("b.png", "a.png"), "labels": ("d.png", "c.png")},
        {"images": ("a.png", "b.png", "c.png"), "labels": ("d.png",)},
        {"labels": ()},
        {"kind": "color"},
    ]
    assert len({digest(samples), *(digest(dataclasses.replace(samples, **change)) for change in changes)}) == 7
