import unicodedata

import pytest
from etils import epath

from deeplab_jax.data.layouts.pairing import note_swapped_masks, pair_by_name
from deeplab_jax.errors import DataError


@pytest.fixture
def pair(tmp_path):
    """Create empty files, and pair input/ with target/."""

    def pair(images, masks):
        for name in (*(f"input/{each}" for each in images), *(f"target/{each}" for each in masks)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        root = epath.Path(tmp_path)
        return pair_by_name(root, root / "input", root / "target")

    return pair


@pytest.mark.parametrize(
    "mask",
    ["{0}.png", "{0}.tif", "{0}.npy", "{0}.jpg.png", "{0}_mask.png", "{0}_L.png", "{0}_label.PNG", "{0}_gtFine_labelIds.png"],
)
def test_masks_are_found_by_the_one_rule_that_fits_all(pair, mask):
    masks = [mask.format(name) for name in ("a", "b.c", "d/e f")]
    pairing = pair(["a.jpg", "b.c.jpg", "d/e f.jpg"], masks)
    names = ("a.jpg", "b.c.jpg", "d/e f.jpg")
    assert pairing.pairs == tuple((f"input/{image}", f"target/{each}") for image, each in zip(names, masks, strict=True))
    assert bool(pairing.notes) == (not mask.startswith("{0}.") or mask.count(".") == 2)


@pytest.mark.parametrize(
    ("images", "masks", "pattern"),
    [
        (("img_1", "img_10", "img_2"), ("mask_1", "mask_10", "mask_2"), "mask_NAME.png where images are named img_NAME"),
        (("1_sat", "2_sat"), ("1_mask", "2_mask"), "NAME_mask.png where images are named NAME_sat"),  # DeepGlobe
        (
            ("a/frame_01_rgb", "b/frame_02_rgb"),
            ("a/frame_01_seg", "b/frame_02_seg"),
            "NAME_seg.png where images are named NAME_rgb",
        ),
        (("photo07",), ("mask07",), "maskNAME.png where images are named photoNAME"),
        (("anna", "bob"), ("anna_GT", "bob_GT"), "IMAGE_GT.png"),
        (("car", "cat"), ("gt-car", "gt-cat"), "gt-IMAGE.png"),  # their common beginning is no word
        (("2007_01", "2007_02"), ("2007_01-m", "2007_02-m", "2008_01-m"), "IMAGE-m.png"),  # one mask has no image
    ],
)
def test_other_beginnings_and_ends_of_names_are_exchanged(pair, images, masks, pattern):
    pairing = pair([f"{name}.jpg" for name in images], [f"{name}.PNG" for name in masks])
    expected = zip(images, masks[: len(images)], strict=True)
    assert pairing.pairs == tuple((f"input/{image}.jpg", f"target/{mask}.PNG") for image, mask in expected)
    assert pairing.notes[0].startswith(f"Masks are named {pattern}, such as target/{masks[0]}.PNG for input/{images[0]}.jpg.")


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (("img_1", "img_2"), ("mask_3", "mask_4")),
        (("1", "2", "3"), ("10", "20", "30")),  # ends are words, not digits
        (("a1", "a2"), ("b11", "b12")),
        (("anna",), ("bob",)),
    ],
)
def test_names_that_fit_no_image_are_not_exchanged(pair, images, masks):
    with pytest.raises(DataError, match=rf"The mask of {images[0]}\.jpg must be named {images[0]}\.png"):
        pair([f"{name}.jpg" for name in images], [f"{name}.png" for name in masks])


def test_a_missing_mask_has_the_name_that_it_should_have(pair):
    assert pair(["a.jpg", "b.jpg"], ["a.png"]).pairs[1] == ("input/b.jpg", "target/b.png")


def test_a_missing_mask_is_named_by_the_rule_that_fits_most(pair):
    assert pair(["a.jpg", "b.jpg", "c.jpg"], ["a_mask.png", "b_mask.png"]).pairs[2][1] == "target/c_mask.png"


def test_a_missing_mask_is_named_by_the_exchange_that_fits_most(pair):
    assert pair(["im1.jpg", "im2.jpg", "im3.jpg"], ["gt1.png", "gt3.png"]).pairs[1][1] == "target/gt2.png"


def test_masks_that_fit_by_two_rules_are_an_error(pair):
    with pytest.raises(DataError, match=r"several masks for each image \(IMAGE\.png and IMAGE_mask\.png"):
        pair(["a.png"], ["a.png", "a_mask.png"])


def test_masks_that_differ_in_the_suffix_are_an_error(pair):
    with pytest.raises(DataError, match=r"target/a\.png and target/a\.tif are two masks for one image"):
        pair(["a.png"], ["a.png", "a.tif"])


def test_masks_with_other_names_are_an_error_that_shows_a_near_miss(pair):
    with pytest.raises(DataError, match=r"The mask of photo1\.jpg must be named photo1\.png.*is photo_1\.png"):
        pair(["photo1.jpg"], ["photo_1.png", "z.png"])


def test_accents_can_be_encoded_in_two_ways(pair):
    image, mask = unicodedata.normalize("NFD", "München"), unicodedata.normalize("NFC", "München")
    assert pair([f"{image}.jpg"], [f"{mask}.png"]).pairs == ((f"input/{image}.jpg", f"target/{mask}.png"),)


def test_unused_masks_and_unread_files_are_noted(pair):
    pairing = pair(["a.jpg", "b.heic", "c.txt", ".d.heic", "@eaDir/a.jpg", ".e/a.jpg"], ["a.png", "z.png"])
    assert pairing.pairs == (("input/a.jpg", "target/a.png"),)
    assert len(pairing.notes) == 2
    assert "1 file was left out, because the format cannot be read, such as input/b.heic." in pairing.notes[0]
    assert "1 mask has no image and will not be used, such as target/z.png." in pairing.notes[1]


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ([], "the folder target does not exist, and the data set holds input/. Put the masks into target."),
        (["a.jpg"], "Lossy compression changes label values, so some pixels get the ids of other classes."),
        (["a.json"], "the folder target holds only a.json. Masks can be .bmp,"),
    ],
)
def test_a_split_without_masks_says_where_they_were_expected(pair, masks, reason):
    pairing = pair(["a.jpg"], masks)
    assert pairing.pairs == (("input/a.jpg", ""),)
    assert reason in pairing.why_unlabelled


def test_linked_folders_are_followed_once(pair, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.jpg").touch()
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "input")
    pairing = pair(["a.jpg"], ["a.png", "linked/x.png"])
    assert [image for image, _ in pairing.pairs] == ["input/a.jpg", "input/linked/x.jpg"]


@pytest.mark.parametrize("mask", ["m/{0}.png", "m/{0}_mask.png", "{0}.jpg.png", "m/mask_{0}.png"])
def test_masks_with_the_names_of_other_images_are_noted(mask):
    def pair(*masks):
        return [(f"i/{image}.jpg", mask.format(each)) for image, each in zip(("a1", "a2", "a10"), masks, strict=True)]

    (note,) = note_swapped_masks(pair("a1", "a10", "a2"))
    first = f"i/a2.jpg has {mask.format('a10')}, but i/a10.jpg exists"
    assert note.startswith(f"2 of 3 images have a mask with the name of another image: {first}.")
    assert note_swapped_masks(pair("a1", "a2", "a10")) == ()
    assert note_swapped_masks(pair("b1", "b3", "b2")) == ()  # names that say nothing
    assert note_swapped_masks([]) == ()


def test_images_with_one_name_in_different_folders_are_no_mistake():
    assert note_swapped_masks([("a/1.png", "a/1_L.png"), ("b/1.png", "b/1_L.png"), ("c/2.png", "")]) == ()
