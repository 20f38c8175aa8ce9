import dataclasses
import hashlib

import pytest
from PIL import Image

from deeplab_jax.data.lists import Samples, digest, find_samples, read_list
from deeplab_jax.errors import DataError


def make(root, *names, size=(4, 2)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size).save(path)


def write_list(root, text, split="train"):
    (root / "list").mkdir(exist_ok=True)
    (root / "list" / f"{split}.lst").write_bytes(text.encode())
    return root / "list" / f"{split}.lst"


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
def test_lines(tmp_path, text, pairs):
    assert list(read_list(write_list(tmp_path, text))) == pairs


@pytest.mark.parametrize("line", ["a b c", "../a.png b.png", "/etc/a.png b.png"])
def test_a_line_that_cannot_be_meant_is_named_by_its_number(tmp_path, line):
    with pytest.raises(DataError, match="line 2"):
        list(read_list(write_list(tmp_path, f"x y\n{line}\n")))


def test_a_list_in_another_encoding_is_named(tmp_path):
    path = write_list(tmp_path, "")
    path.write_bytes("münchen.png".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.lst is not UTF-8 text"):
        list(read_list(path))


def test_cityscapes_lists_and_kinds(street_scenes):
    train = find_samples(str(street_scenes), "train")
    assert len(train) == 6
    assert train.kind == "labelIds"
    assert train.source.endswith("train.lst")
    test = find_samples(str(street_scenes), "test", need_labels=False)
    assert len(test) == 2
    assert test.labels == ()


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
def test_the_kind_is_read_off_the_names(tmp_path, kind):
    make(tmp_path, "a.png", f"x_gtFine_{kind}.png")
    write_list(tmp_path, f"a.png x_gtFine_{kind}.png")
    assert find_samples(str(tmp_path), "train").kind == kind
    assert find_samples(str(tmp_path), "train", "color").kind == "color"


def test_mixed_kinds_are_refused(tmp_path):
    make(tmp_path, "a.png", "x_color.png", "x_labelIds.png")
    write_list(tmp_path, "a.png x_color.png\na.png x_labelIds.png")
    with pytest.raises(DataError, match="color, labelIds"):
        find_samples(str(tmp_path), "train")


def test_cityscapes_folders_are_scanned_without_a_list(street_scenes, tmp_path):
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / folder).symlink_to(street_scenes / folder)
    scanned = find_samples(str(tmp_path), "val")
    listed = find_samples(str(street_scenes), "val")
    assert (scanned.images, scanned.labels) == (listed.images, listed.labels)
    assert "folders" in scanned.source
    assert find_samples(str(tmp_path), "val", "color").labels[0].endswith("_gtFine_color.png")
    assert len(find_samples(str(tmp_path), "test", need_labels=False)) == 2


def test_custom_folders_are_scanned_without_a_list(tmp_path):
    make(tmp_path, "input/train/a.jpg", "input/train/b.png", "target/train/a.png", "target/train/b.png", "input/test/c.png")
    samples = find_samples(str(tmp_path), "train")
    assert samples.images == ("input/train/a.jpg", "input/train/b.png")
    assert samples.labels == ("target/train/a.png", "target/train/b.png")
    assert find_samples(str(tmp_path), "test", need_labels=False).labels == ()


def test_a_custom_image_without_its_label_is_missing_not_dropped(tmp_path):
    make(tmp_path, "input/train/a.jpg", "input/train/b.png", "target/train/a.png")
    with pytest.raises(DataError, match=r"1 of 4 files.*target/train/b\.png"):
        find_samples(str(tmp_path), "train")


def test_missing_files_are_counted_and_five_are_named(tmp_path):
    make(tmp_path, "i/0.png")
    write_list(tmp_path, "".join(f"i/{k}.png\tl/{k}.png\n" for k in range(7)))
    with pytest.raises(DataError) as caught:
        find_samples(str(tmp_path), "train")
    message = str(caught.value)
    assert "13 of 14 files" in message
    assert message.count(".png") == 5


@pytest.mark.parametrize(
    ("root", "message"), [("", r"`data.root` \(=''\)"), ("nowhere", r"`data.root` \(='.*nowhere'\) is no folder")]
)
def test_a_missing_root_is_named(tmp_path, root, message):
    with pytest.raises(DataError, match=message):
        find_samples(str(tmp_path / root) if root else "", "train")


def test_an_empty_list_and_an_unknown_split_are_named(tmp_path):
    write_list(tmp_path, "\n\n")
    with pytest.raises(DataError, match=r"no samples of split 'train' in .*train\.lst"):
        find_samples(str(tmp_path), "train")
    with pytest.raises(DataError, match="no samples of split 'nope'"):
        find_samples(str(tmp_path), "nope")


def test_labels_for_some_images_only_are_refused(tmp_path):
    make(tmp_path, "a.png", "b.png")
    write_list(tmp_path, "a.png b.png\nb.png\n")
    with pytest.raises(DataError, match="1 of 2 images"):
        find_samples(str(tmp_path), "train")


def test_training_needs_labels(tmp_path):
    make(tmp_path, "a.png")
    write_list(tmp_path, "a.png\n")
    with pytest.raises(DataError, match="without labels"):
        find_samples(str(tmp_path), "train")


def test_a_digest_is_of_the_names_in_order_and_the_kind():
    samples = Samples("root", ("a.png", "b.png"), ("c.png", "d.png"), "labelIds", "list")
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
