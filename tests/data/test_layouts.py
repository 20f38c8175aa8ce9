import numpy as np
import pytest
from etils import epath
from PIL import Image
from test_find import save_images, write_list

from deeplab_jax.data import layouts
from deeplab_jax.data.find import describe, find_samples, list_splits
from deeplab_jax.data.layouts import recognize_layout
from deeplab_jax.data.layouts.layout import Layout
from deeplab_jax.data.layouts.pairing import pair_by_name
from deeplab_jax.errors import DataError


def find_names(root, split, **options):
    samples = find_samples(str(root), split, **options)
    return samples.images, samples.labels


def recognize(root):
    layout = recognize_layout(epath.Path(root))
    return layout and (layout.name, layout.labels)


def test_camvid_layout(tmp_path):
    save_images(tmp_path, "train/a.png", "trainannot/a.png", "val/b.png", "valannot/b.png")
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png\n")
    assert recognize(tmp_path) == ("CamVid", "camvid")
    assert list_splits(str(tmp_path)) == ["train", "val"]
    assert find_names(tmp_path, "train") == (("train/a.png",), ("trainannot/a.png",))
    assert find_names(tmp_path, "val") == (("val/b.png",), ("valannot/b.png",))


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


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016/"])
def test_ade20k_layout(tmp_path, inside):
    save_images(
        tmp_path, *(f"{inside}{x}/{y}" for x in ("images", "annotations") for y in ("training/a.png", "validation/b.png"))
    )
    assert recognize(tmp_path) == ("ADE20K", "ade20k")
    assert find_names(tmp_path, "train") == ((f"{inside}images/training/a.png",), (f"{inside}annotations/training/a.png",))
    assert find_names(tmp_path, "val")[0] == (f"{inside}images/validation/b.png",)


def test_cityscapes_layout_uses_coarse_labels_if_fine_ones_are_missing(tmp_path):
    x = "leftImg8bit/{0}/y/y_0_leftImg8bit.png", "gt{1}/{0}/y/y_0_gt{1}_{2}.png"
    pairs = {}
    for split, truth in (("train", "Fine"), ("train_extra", "Coarse"), ("val", "Coarse")):
        pairs[split] = [name.format(split, truth, "labelIds") for name in x]
        save_images(tmp_path, *pairs[split])
    save_images(tmp_path, x[1].format("train", "Coarse", "labelIds"))
    samples = find_samples(str(tmp_path), "train+train_extra")
    assert samples.images == (pairs["train"][0], pairs["train_extra"][0])
    assert samples.labels == (pairs["train"][1], pairs["train_extra"][1])
    assert samples.kind == "labelIds"
    assert "Cityscapes layout" in samples.source
    assert find_names(tmp_path, "val")[1] == (pairs["val"][1],)


def test_splits_are_joined_in_order_and_must_not_overlap(tmp_path):
    save_images(tmp_path, "a.png", "b.png", "c.png", "input/val/d.png", "target/val/d.png")
    write_list(tmp_path, "b.png c.png\na.png c.png\n")
    write_list(tmp_path, "a.png c.png\n", "more")
    assert find_names(tmp_path, "val+train")[0] == ("input/val/d.png", "b.png", "a.png")
    with pytest.raises(DataError, match=r"'train\+more' contains a\.png twice: it is in train and in more"):
        find_samples(str(tmp_path), "train+more")
    with pytest.raises(DataError, match="no samples of split ''"):
        find_samples(str(tmp_path), "train+")


def test_a_list_takes_precedence_over_the_folders(tmp_path):
    save_images(tmp_path, "train/a.png", "train/b.png", "trainannot/a.png", "trainannot/b.png")
    write_list(tmp_path, "train/b.png trainannot/b.png")
    assert find_names(tmp_path, "train")[0] == ("train/b.png",)


def test_custom_folders_without_split_names_form_the_training_split(tmp_path):
    save_images(tmp_path, "input/seq1/a.png", "input/seq2/b.png", "target/seq1/a.png", "target/seq2/b.png")
    assert find_names(tmp_path, "train")[0] == ("input/seq1/a.png", "input/seq2/b.png")
    assert find_names(tmp_path, "seq2")[0] == ("input/seq2/b.png",)
    save_images(tmp_path, "input/val/c.png", "target/val/c.png")
    with pytest.raises(DataError, match=r"no samples of split 'train'.*which has the splits seq1, seq2, val"):
        find_samples(str(tmp_path), "train")


def test_the_error_for_an_unknown_layout_lists_the_contents_and_the_expected_files(tmp_path):
    save_images(tmp_path, "photos/a.png", "readme.png")
    with pytest.raises(DataError) as caught:
        find_samples(str(tmp_path), "train")
    message = str(caught.value)
    for part in (
        "holds photos/, readme.png.",
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
    ("mode", "kind", "summary"),
    [
        ("L", "labelIds", "with labelIds labels"),
        ("P", "labelIds", "with labelIds labels (palette indices)"),
        ("RGB", "color", "with color labels"),
        ("RGBA", "color", "with color labels"),
    ],
)
def test_the_header_of_the_first_label_shows_the_kind_if_its_name_does_not(tmp_path, mode, kind, summary):
    save_images(tmp_path, "input/train/a.png", "input/train/b.png")
    save(tmp_path, "target/train/a.png", mode)
    save(tmp_path, "target/train/b.png", "L")  # only the first label is opened
    samples = find_samples(str(tmp_path), "train")
    assert samples.kind == kind
    assert describe("train", samples).endswith(summary)
    assert find_samples(str(tmp_path), "train", "labelTrainIds").kind == "labelTrainIds"


def test_the_label_kinds_in_file_names_and_headers_must_agree(tmp_path):
    save_images(tmp_path, "a.png", "x_labelIds.png", "y.png")
    write_list(tmp_path, "a.png y.png\na.png x_labelIds.png")
    assert find_samples(str(tmp_path), "train").kind == "labelIds"
    save(tmp_path, "y.png", "RGB")
    with pytest.raises(DataError, match="color, labelIds"):
        find_samples(str(tmp_path), "train")


def test_a_layout_can_define_the_label_kind(tmp_path, monkeypatch):
    def splits(root):
        return ["train", "val"] if (root / "photos").is_dir() else []

    def pairs(root, split, kind):
        return pair_by_name(root, root / "photos" / split, root / "masks" / split)

    layout = Layout("mine", "photos/SPLIT/ with masks/SPLIT/", "", splits, pairs, label_kind="labelTrainIds")
    monkeypatch.setattr(layouts, "LAYOUTS", (*layouts.LAYOUTS, layout))
    save_images(tmp_path, *(f"{folder}/{split}/{split}.png" for folder in ("photos", "masks") for split in ("train", "val")))
    assert find_samples(str(tmp_path), "train+val").kind == "labelTrainIds"
    assert find_samples(str(tmp_path), "train", "labelIds").kind == "labelIds"
    save_images(tmp_path, "a.png")
    write_list(tmp_path, "a.png masks/val/val.png", "more")  # a list does not define the kind, so the header decides
    with pytest.raises(DataError, match=r"are of different kinds \(labelIds, labelTrainIds\)"):
        find_samples(str(tmp_path), "train+more")
