import pytest
from test_find import save_images
from test_layouts import find_names, recognize

from deeplab_jax.data.find import find_samples, list_splits
from deeplab_jax.errors import DataError


@pytest.mark.parametrize("inside", ["", "VOC2012/", "VOCdevkit/VOC2012/"])
def test_voc_layout(tmp_path, inside):
    save_images(
        tmp_path,
        *(f"{inside}JPEGImages/{x}.jpg" for x in "abcd"),
        *(f"{inside}SegmentationClass/{x}.png" for x in "ab"),
        *(f"{inside}SegmentationClassAug/{x}.png" for x in "ac"),
    )
    lists = tmp_path / inside / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    texts = {"train": "b\na\n", "test": "d\n", "aug": "c\n", "trainaug": "/JPEGImages/c.jpg /SegmentationClassAug/c.png\nb\na"}
    for split, text in texts.items():
        (lists / f"{split}.txt").write_text(text)
    assert recognize(tmp_path) == ("Pascal VOC", "voc")
    image, label = f"{inside}JPEGImages/{{}}.jpg".format, f"{inside}SegmentationClass{{}}.png".format
    assert find_names(tmp_path, "train") == ((image("b"), image("a")), (label("/b"), label("/a")))
    assert find_names(tmp_path, "trainaug") == (
        (image("c"), image("b"), image("a")),
        (label("Aug/c"), label("/b"), label("Aug/a")),
    )
    assert find_names(tmp_path, "train+aug")[1] == (label("/b"), label("/a"), label("Aug/c"))
    assert find_names(tmp_path, "test", need_labels=False) == ((image("d"),), ())


def test_a_missing_voc_label_and_a_malformed_list_are_errors(tmp_path):
    save_images(tmp_path, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png", "ImageSets/Segmentation/x.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb")
    with pytest.raises(DataError, match=r"1 of 4 files.*SegmentationClass/b\.png"):
        find_samples(str(tmp_path), "train")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a 1 2")
    with pytest.raises(DataError, match=r"Line 1 of .*train\.txt has 3 columns"):
        find_samples(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("image", "label", "line"),
    [
        ("a.png", "a.png", "a"),
        ("a.jpeg", "a.png", "a.jpeg"),
        ("a.JPG", "a.png", "  a  "),
        ("frame.0.1.a.jpg", "frame.0.1.a.png", "frame.0.1.a"),
        ("my a.jpg", "my a.png", "my a"),
        ("my a.jpg", "my a.png", "JPEGImages/my a.jpg SegmentationClass/my a.png"),
        ("my a.jpg", "my a.png", "/JPEGImages/my a.jpg\t/SegmentationClassAug/my a.png"),
        ("video 1/a.0.jpg", "video 1/a.0.png", "video 1/a.0"),
        ("a.jpg", "a.png", "VOC2012/JPEGImages/a.jpg VOC2012/SegmentationClass/a.png"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_voc_lists_can_name_files_in_many_ways(tmp_path, image, label, line, encoding):
    save_images(tmp_path, f"JPEGImages/{image}", f"SegmentationClass/{label}", "JPEGImages/0.jpg", "SegmentationClass/0.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(f"{line}\r\n\r\n0\r\n".encode(encoding))
    assert find_names(tmp_path, "train") == (
        (f"JPEGImages/{image}", "JPEGImages/0.jpg"),
        (f"SegmentationClass/{label}", "SegmentationClass/0.png"),
    )


def test_voc_prefers_the_usual_formats_and_names_missing_images(tmp_path):
    save_images(tmp_path, "JPEGImages/a.jpg", "JPEGImages/a.png", "SegmentationClass/a.bmp", "SegmentationClass/a.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\n")
    assert find_names(tmp_path, "train") == (("JPEGImages/a.jpg",), ("SegmentationClass/a.png",))
    (lists / "val.txt").write_text("a\nnew b.0\n/JPEGImages/c.jpg /SegmentationClass/c.png\n")
    with pytest.raises(DataError, match=r"JPEGImages/new b\.0\.jpg, JPEGImages/c\.jpg, SegmentationClass/new b\.0\.png"):
        find_samples(str(tmp_path), "val")
    (lists / "val.txt").write_text("a 1")
    with pytest.raises(DataError, match=r"Line 1 of .*val\.txt has 2 columns"):
        find_samples(str(tmp_path), "val")


def test_hidden_voc_lists_are_not_splits(tmp_path):
    lists = tmp_path / "ImageSets" / "Segmentation"
    save_images(tmp_path, "JPEGImages/a.jpg", "SegmentationClass/a.png")
    lists.mkdir(parents=True)
    for name in ("train.txt", "._train.txt"):  # macOS writes the second one on foreign disks
        (lists / name).write_text("a\n")
    assert list_splits(str(tmp_path)) == ["train"]
