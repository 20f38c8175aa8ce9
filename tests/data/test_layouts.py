import numpy as np
import pytest
from etils import epath
from PIL import Image
from test_find import make, write_list

from deeplab_jax.data import layouts
from deeplab_jax.data.find import describe, find_samples, list_splits
from deeplab_jax.data.layouts import recognize_layout
from deeplab_jax.data.layouts.layout import Layout, pair_by_name
from deeplab_jax.errors import DataError


def names(root, split, **options):
    samples = find_samples(str(root), split, **options)
    return samples.images, samples.labels


def layout(root):
    found = recognize_layout(epath.Path(root))
    return found and (found.name, found.labels)


def test_camvid(tmp_path):
    make(tmp_path, "train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png")
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n")
    assert layout(tmp_path) == ("CamVid", "camvid")
    assert list_splits(str(tmp_path)) == ["train", "val"]
    assert names(tmp_path, "train") == (("train/a.png",), ("trainannot/a.png",))
    assert names(tmp_path, "val") == (("val/b.png",), ("valannot/b.png",))


@pytest.mark.parametrize("inside", ["", "VOC2012/", "VOCdevkit/VOC2012/"])
def test_voc(tmp_path, inside):
    make(
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
    assert layout(tmp_path) == ("Pascal VOC", "voc")
    image, label = f"{inside}JPEGImages/{{}}.jpg".format, f"{inside}SegmentationClass{{}}.png".format
    assert names(tmp_path, "train") == ((image("b"), image("a")), (label("/b"), label("/a")))
    assert names(tmp_path, "trainaug") == ((image("c"), image("b"), image("a")), (label("Aug/c"), label("/b"), label("Aug/a")))
    assert names(tmp_path, "train+aug")[1] == (label("/b"), label("/a"), label("Aug/c"))
    assert names(tmp_path, "test", need_labels=False) == ((image("d"),), ())


def test_a_voc_label_that_is_not_there_is_missing_not_dropped(tmp_path):
    make(tmp_path, "JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/a.png", "ImageSets/Segmentation/x.png")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\nb")
    with pytest.raises(DataError, match=r"1 of 4 files.*SegmentationClass/b\.png"):
        find_samples(str(tmp_path), "train")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a 1 2")
    with pytest.raises(DataError, match="line 1: 3 columns"):
        find_samples(str(tmp_path), "train")


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016/"])
def test_ade20k(tmp_path, inside):
    make(tmp_path, *(f"{inside}{x}/{y}" for x in ("images", "annotations") for y in ("training/a.png", "validation/b.png")))
    assert layout(tmp_path) == ("ADE20K", "ade20k")
    assert names(tmp_path, "train") == ((f"{inside}images/training/a.png",), (f"{inside}annotations/training/a.png",))
    assert names(tmp_path, "val")[0] == (f"{inside}images/validation/b.png",)


def test_coarse_cityscapes(tmp_path):
    x = "leftImg8bit/{0}/y/y_0_leftImg8bit.png", "gt{1}/{0}/y/y_0_gt{1}_{2}.png"
    pairs = {}
    for split, truth in (("train", "Fine"), ("train_extra", "Coarse"), ("val", "Coarse")):
        pairs[split] = [name.format(split, truth, "labelIds") for name in x]
        make(tmp_path, *pairs[split])
    make(tmp_path, x[1].format("train", "Coarse", "labelIds"))
    samples = find_samples(str(tmp_path), "train+train_extra")
    assert samples.images == (pairs["train"][0], pairs["train_extra"][0])
    assert samples.labels == (pairs["train"][1], pairs["train_extra"][1])
    assert samples.kind == "labelIds"
    assert "Cityscapes folders" in samples.source
    assert names(tmp_path, "val")[1] == (pairs["val"][1],)


def test_splits_are_joined_in_order_and_must_not_overlap(tmp_path):
    make(tmp_path, "a.png", "b.png", "c.png", "input/val/d.png", "target/val/d.png")
    write_list(tmp_path, "b.png c.png\na.png c.png\n")
    write_list(tmp_path, "a.png c.png\n", "more")
    assert names(tmp_path, "val+train")[0] == ("input/val/d.png", "b.png", "a.png")
    with pytest.raises(DataError, match=r"'train\+more': a\.png is in train and in more"):
        find_samples(str(tmp_path), "train+more")
    with pytest.raises(DataError, match="no samples of split ''"):
        find_samples(str(tmp_path), "train+")


def test_a_list_goes_before_the_folders(tmp_path):
    make(tmp_path, "train/a.png", "train/b.png", "trainannot/a.png", "trainannot/b.png")
    write_list(tmp_path, "train/b.png trainannot/b.png")
    assert names(tmp_path, "train")[0] == ("train/b.png",)


def test_custom_folders_without_splits_are_for_training(tmp_path):
    make(tmp_path, "input/seq1/a.png", "input/seq2/b.png", "target/seq1/a.png", "target/seq2/b.png")
    assert names(tmp_path, "train")[0] == ("input/seq1/a.png", "input/seq2/b.png")
    assert names(tmp_path, "seq2")[0] == ("input/seq2/b.png",)
    make(tmp_path, "input/val/c.png", "target/val/c.png")
    with pytest.raises(DataError, match=r"no samples of split 'train'.*custom folders hold seq1, seq2, val"):
        find_samples(str(tmp_path), "train")


def test_where_nothing_fits_it_says_what_was_looked_for_and_what_is_there(tmp_path):
    make(tmp_path, "photos/a.png", "readme.png")
    with pytest.raises(DataError) as caught:
        find_samples(str(tmp_path), "train")
    message = str(caught.value)
    for part in (
        "holds photos/, readme.png;",
        "list/train.lst",
        "leftImg8bit/train/",
        "input/train/",
        "trainannot/",
        "JPEGImages",
    ):
        assert part in message
    assert "\n" not in message


def save(root, name, mode):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).convert(mode).save(root / name)


@pytest.mark.parametrize(
    ("mode", "kind", "said"),
    [
        ("L", "labelIds", "labels of kind labelIds"),
        ("P", "labelIds", "labels of kind labelIds (palette indices)"),
        ("RGB", "color", "labels of kind color"),
        ("RGBA", "color", "labels of kind color"),
    ],
)
def test_the_first_label_tells_the_kind_where_its_name_does_not(tmp_path, mode, kind, said):
    make(tmp_path, "input/train/a.png", "input/train/b.png")
    save(tmp_path, "target/train/a.png", mode)
    save(tmp_path, "target/train/b.png", "L")  # is not opened
    samples = find_samples(str(tmp_path), "train")
    assert samples.kind == kind
    assert describe("train", samples).endswith(said)
    assert find_samples(str(tmp_path), "train", "labelTrainIds").kind == "labelTrainIds"


def test_a_name_that_tells_a_kind_must_agree_with_a_header_that_does(tmp_path):
    make(tmp_path, "a.png", "x_labelIds.png", "y.png")
    write_list(tmp_path, "a.png y.png\na.png x_labelIds.png")
    assert find_samples(str(tmp_path), "train").kind == "labelIds"
    save(tmp_path, "y.png", "RGB")
    with pytest.raises(DataError, match="color, labelIds"):
        find_samples(str(tmp_path), "train")


def test_a_layout_can_say_which_kind_its_masks_are(tmp_path, monkeypatch):
    def splits(root):
        return ["train", "val"] if (root / "photos").is_dir() else []

    def pairs(root, split, kind):
        return pair_by_name(root, root / "photos" / split, root / "masks" / split)

    layout = Layout("mine", "photos/SPLIT/ with masks/SPLIT/", "", splits, pairs, label_kind="labelTrainIds")
    monkeypatch.setattr(layouts, "LAYOUTS", (*layouts.LAYOUTS, layout))
    make(tmp_path, *(f"{folder}/{split}/{split}.png" for folder in ("photos", "masks") for split in ("train", "val")))
    assert find_samples(str(tmp_path), "train+val").kind == "labelTrainIds"
    assert find_samples(str(tmp_path), "train", "labelIds").kind == "labelIds"
    make(tmp_path, "a.png")
    write_list(tmp_path, "a.png masks/val/val.png", "more")  # a list does not say, its file's header is that of ids
    with pytest.raises(DataError, match="mixes labels of the kinds labelIds, labelTrainIds"):
        find_samples(str(tmp_path), "train+more")
