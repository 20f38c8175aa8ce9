import numpy as np
import pytest
from etils import epath
from PIL import Image
from test_find import save_images, write_list

from deeplab_jax.data import layouts
from deeplab_jax.data.find import describe, find_samples, list_splits
from deeplab_jax.data.layouts import explain_missing_split, recognize_layout
from deeplab_jax.data.layouts.layout import Layout
from deeplab_jax.data.layouts.pairing import pair_by_name
from deeplab_jax.data.suspicion import sample_suspicions
from deeplab_jax.errors import DataError
from deeplab_jax.labels import LABEL_SETS, MAPILLARY, MAPILLARY2, MAPILLARY_CITYSCAPES


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


@pytest.mark.parametrize(
    ("image", "label"),
    [("input/train/a", "target/train/a"), ("train/a", "trainannot/a"), ("leftImg8bit/train/a", "gtFine/train/a")],
)
def test_images_that_would_share_a_label_are_an_error(tmp_path, image, label):
    ends = ("_leftImg8bit", "_gtFine_labelIds") if "leftImg8bit" in image else ("", "")
    save_images(tmp_path, f"{image}{ends[0]}.png", f"{image}{ends[0]}.jpg", f"{label}{ends[1]}.png")
    with pytest.raises(DataError, match=rf"{image}{ends[0]}\.jpg and {image}{ends[0]}\.png would share the label {label}"):
        find_samples(str(tmp_path), "train")


def test_the_error_for_an_unknown_layout_lists_the_contents_and_the_expected_files(tmp_path):
    save_images(tmp_path, "photos/a.png", "readme.png")
    with pytest.raises(DataError) as caught:
        find_samples(str(tmp_path), "train")
    message = str(caught.value)
    for part in ("holds photos/, readme.png.", "list/train.lst", "input/train/", "Cityscapes", "CamVid", "Pascal VOC"):
        assert part in message
    assert "JPEGImages" not in message
    assert "\n" not in message
    assert len(message) < 600


def test_the_error_shows_the_layouts_that_share_a_folder_with_the_root(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    message = explain_missing_split(epath.Path(tmp_path), "val", [])
    assert message.endswith("such as JPEGImages/ with ImageSets/Segmentation/val.txt (Pascal VOC).")


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


# One row for each layout and release: its name, its label set, the kind of its labels, and the pairs of each split. A split
# without labels has images only.
CONDITIONS = ("fog", "night")
TREES = {
    "cityscapes": (
        "Cityscapes",
        "cityscapes",
        "labelIds",
        {
            "train": [("leftImg8bit/train/a/a_0_0_leftImg8bit.png", "gtFine/train/a/a_0_0_gtFine_labelIds.png")],
            "test": [("leftImg8bit/test/b/b_0_0_leftImg8bit.png", "")],
        },
    ),
    "idd": (
        "IDD",
        "idd",
        "labelIds",
        {
            "train": [
                ("leftImg8bit/train/0/1_leftImg8bit.jpg", "gtFine/train/0/1_gtFine_labellevel3Ids.png"),
                ("leftImg8bit/train/0/2_leftImg8bit.png", "gtFine/train/0/2_gtFine_labellevel3Ids.png"),
            ],
            "val": [("leftImg8bit/val/7/1_leftImg8bit.png", "gtFine/val/7/1_gtFine_labellevel3Ids.png")],
            "test": [("leftImg8bit/test/9/1_leftImg8bit.png", "")],
        },
    ),
    "custom": ("custom", "", "labelIds", {"train": [("input/train/a.jpg", "target/train/a.png")]}),
    "camvid": ("CamVid", "camvid", "labelIds", {"train": [("train/a.png", "trainannot/a.png")]}),
    "camvid original": (
        "original CamVid",
        "camvid32",
        "color",
        {"train": [(f"701_StillsRaw_full/{x}.png", f"LabeledApproved_full/{x}_L.png") for x in ("0006R0_f1", "Seq05VD_f2")]},
    ),
    "voc": ("Pascal VOC", "voc", "labelIds", {"train": [("JPEGImages/a.jpg", "SegmentationClass/a.png")]}),
    "ade20k": ("ADE20K", "ade20k", "labelIds", {"train": [("images/training/a.jpg", "annotations/training/a.png")]}),
    "mapillary 1.2": (
        "Mapillary Vistas 1.2",
        "mapillary",
        "labelIds",
        {
            "train": [("training/images/a.jpg", "training/labels/a.png")],
            "val": [("validation/images/b.jpg", "validation/labels/b.png")],
            "test": [("testing/images/c.jpg", "")],
        },
    ),
    "mapillary 1.2 in the folders of 2.0": (
        "Mapillary Vistas 1.2",
        "mapillary",
        "labelIds",
        {"train": [("training/images/a.jpg", "training/v1.2/labels/a.png")]},
    ),
    "mapillary 2.0": (
        "Mapillary Vistas 2.0",
        "mapillary2",
        "labelIds",
        {
            "train": [("training/images/a.jpg", "training/v2.0/labels/a.png")],
            "val": [("validation/images/b.jpg", "validation/v2.0/labels/b.png")],
            "test": [("testing/images/c.jpg", "")],
        },
    ),
    "bdd100k": (
        "BDD100K",
        "cityscapes",
        "labelTrainIds",
        {
            "train": [("images/10k/train/a.jpg", "labels/sem_seg/masks/train/a.png")],
            "val": [("images/10k/val/b.jpg", "labels/sem_seg/masks/val/b.png")],
            "test": [("images/10k/test/c.jpg", "")],
        },
    ),
    "bdd100k in its folder": (
        "BDD100K",
        "cityscapes",
        "labelTrainIds",
        {"train": [("bdd100k/images/10k/train/a.jpg", "bdd100k/labels/sem_seg/masks/train/a.png")]},
    ),
    "bdd100k before": (
        "BDD100K",
        "cityscapes",
        "labelTrainIds",
        {
            "train": [("seg/images/train/a.jpg", "seg/labels/train/a_train_id.png")],
            "test": [("seg/images/test/c.jpg", "")],
        },
    ),
    "acdc": (
        "ACDC",
        "cityscapes",
        "labelIds",
        {
            "train": [
                (f"rgb_anon/{x}/train/G1/G1_1_rgb_anon.png", f"gt/{x}/train/G1/G1_1_gt_labelIds.png") for x in CONDITIONS
            ],
            "test": [(f"rgb_anon/{x}/test/G1/G1_1_rgb_anon.png", "") for x in CONDITIONS],
        },
    ),
    "coco stuff": (
        "COCO-Stuff",
        "coco_stuff",
        "labelIds",
        {
            "train": [("images/train2017/1.jpg", "annotations/train2017/1.png")],
            "val": [("images/val2017/2.jpg", "annotations/val2017/2.png")],
            "test": [("images/test2017/3.jpg", "")],
        },
    ),
    "coco stuff in the root": (
        "COCO-Stuff",
        "coco_stuff",
        "labelIds",
        {"train": [("train2017/1.jpg", "stuffthingmaps/train2017/1.png")]},
    ),
}


def save_tree(root, splits):
    save_images(root, *{name for pairs in splits.values() for pair in pairs for name in pair if name})
    if (root / "JPEGImages").is_dir():
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a")


@pytest.mark.parametrize("tree", TREES)
def test_every_layout_is_recognized_as_itself_and_pairs_its_files(tmp_path, tree):
    name, labels, kind, splits = TREES[tree]
    save_tree(tmp_path, splits)
    assert recognize(tmp_path) == (name, labels)
    assert set(list_splits(str(tmp_path))) == set(splits)
    for split, pairs in splits.items():
        samples = find_samples(str(tmp_path), split, need_labels=bool(pairs[0][1]))
        assert f"({name} layout)" in samples.source
        assert samples.images == tuple(image for image, _ in pairs)
        assert samples.labels == tuple(label for _, label in pairs if label)
        assert not samples.labels or samples.kind == kind


def test_every_layout_is_tested_and_names_an_existing_label_set():
    assert {layout.name for layout in layouts.LAYOUTS} == {name for name, _, _, _ in TREES.values()}
    assert {layout.labels for layout in layouts.LAYOUTS} <= {"", *LABEL_SETS}


@pytest.mark.parametrize("tree", ["idd", "acdc", "camvid original"])
def test_a_missing_label_file_is_an_error(tmp_path, tree):
    _, _, _, splits = TREES[tree]
    save_tree(tmp_path, splits)
    missing = splits["train"][1][1]
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=rf"1 of 4 files.*{missing}"):
        find_samples(str(tmp_path), "train")


def test_vistas_2_0_also_has_the_labels_of_version_1_2(tmp_path):
    save_images(tmp_path, "training/images/a.jpg", "training/v1.2/labels/a.png", "training/v2.0/labels/a.png")
    assert recognize(tmp_path) == ("Mapillary Vistas 2.0", "mapillary2")
    assert find_names(tmp_path, "train")[1] == ("training/v2.0/labels/a.png",)
    assert find_names(tmp_path, "train_v1.2") == (("training/images/a.jpg",), ("training/v1.2/labels/a.png",))


def test_vistas_labels_of_the_wrong_version_are_suspicious(tmp_path):
    save_images(tmp_path, "training/images/a.jpg", "training/v2.0/labels/a.png")
    values = np.repeat(np.arange(65), 8)
    ids = Image.new("P", (len(values), 1))
    ids.putdata(values.tolist())
    ids.putpalette([part for color in MAPILLARY.colors for part in color])
    (tmp_path / "training/v1.2/labels").mkdir(parents=True)
    ids.save(tmp_path / "training/v1.2/labels/a.png")
    Image.new("RGB", ids.size).save(tmp_path / "training/images/a.jpg")
    samples = find_samples(str(tmp_path), "train_v1.2")
    assert sample_suspicions(samples, MAPILLARY) == ([], [])
    assert sample_suspicions(samples, MAPILLARY_CITYSCAPES) == ([], [])
    (line,), _ = sample_suspicions(samples, MAPILLARY2)
    assert "The palette of the masks gives" in line


@pytest.mark.parametrize(
    ("kind", "image", "label"),
    [
        ("color", "leftImg8bit/train/0/1_leftImg8bit.png", "gtFine/train/0/1_gtFine_labelColors.png"),
        ("color", "images/10k/train/a.jpg", "labels/sem_seg/colormaps/train/a.png"),
        ("labelTrainIds", "rgb_anon/fog/train/G/1_rgb_anon.png", "gt/fog/train/G/1_gt_labelTrainIds.png"),
        ("color", "rgb_anon/fog/train/G/1_rgb_anon.png", "gt/fog/train/G/1_gt_labelColor.png"),
        ("labelTrainIds", "images/train2017/1.jpg", "annotations/train2017/1_labelTrainIds.png"),
        (
            "labelIds",
            "rgb_anon_trainvaltest/rgb_anon/fog/train/G/1_rgb_anon.png",
            "gt_trainval/gt/fog/train/G/1_gt_labelIds.png",
        ),
    ],
)
def test_the_label_kind_chooses_the_label_files(tmp_path, kind, image, label):
    save_images(tmp_path, image, label)
    samples = find_samples(str(tmp_path), "train", kind)
    assert (samples.images, samples.labels, samples.kind) == ((image,), (label,), kind)


def test_original_camvid_images_are_split_by_lists(tmp_path):
    images, labels = "701_StillsRaw_full/{}.png".format, "LabeledApproved_full/{}_L.png".format
    save_images(tmp_path, *map(images, "abc"), *map(labels, "abc"))
    (tmp_path / "train.txt").write_text("b\r\n701_StillsRaw_full/a.png LabeledApproved_full/a_L.png\n", "utf-8-sig")
    (tmp_path / "val.txt").write_text("c.png\n\n")
    assert list_splits(str(tmp_path)) == ["train", "val"]
    assert find_names(tmp_path, "train") == ((images("b"), images("a")), (labels("b"), labels("a")))
    assert find_names(tmp_path, "val") == ((images("c"),), (labels("c"),))
    (tmp_path / "val.txt").write_text("d\n")
    with pytest.raises(DataError, match=r"701_StillsRaw_full/d\.png, LabeledApproved_full/d_L\.png"):
        find_samples(str(tmp_path), "val")
