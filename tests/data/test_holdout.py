import dataclasses
import hashlib
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_split
from deeplab_jax.data.holdout import hold_out
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import ConfigError, DataError


def split(names):
    return Samples("root", tuple(names), tuple(f"{name}.png" for name in names), "labelIds", "here", ImageFiles())


@given(st.sets(st.text("abc/", min_size=1), min_size=2, max_size=30), st.floats(0.01, 0.99))
def test_both_parts_together_are_the_split_in_its_order(names, share):
    samples = split(sorted(names))
    held, rest = (hold_out(samples, share, "", is_validation=part, eligible=len(samples)) for part in (True, False))
    assert sorted(held.images + rest.images) == sorted(names)
    assert held.images
    assert rest.images
    assert list(held.images) == sorted(held.images)
    assert held.labels == tuple(f"{name}.png" for name in held.images)
    assert len(held) == min(math.ceil(Fraction(str(share)) * len(names)), len(names) - 1)


def test_the_names_with_the_smallest_hashes_are_held_out():
    names = [f"{i}.png" for i in range(10)]
    smallest = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:3]
    assert set(hold_out(split(names), 0.3, "", is_validation=True, eligible=10).images) == set(smallest)


def test_a_share_is_the_decimal_number_that_the_user_wrote():
    # In binary, 0.07 x 100 is 7.000000000000001, which would be rounded up to 8 images.
    names = [f"{i}.png" for i in range(100)]
    assert len(hold_out(split(names), 0.07, "", is_validation=True, eligible=100)) == 7


def test_the_description_says_that_only_the_first_images_can_be_held_out():
    held, rest = (hold_out(split("abcde"), 0.5, "", is_validation=part, eligible=4) for part in (True, False))
    assert held.source.endswith(", 2 of the first 4 images by data.val_share=0.5")
    assert rest.source.endswith(", all but 2 of the first 4 images by data.val_share=0.5")


def test_images_of_a_group_stay_together():
    samples = split([f"video{i}_{k:03d}.png" for i in range(5) for k in range(10)])
    held = hold_out(samples, 0.2, r"(video\d+)_", is_validation=True, eligible=len(samples))
    assert len(held) == 10
    assert len({name[:6] for name in held.images}) == 1


def test_a_group_can_be_one_of_several():
    samples = split([f"{scene}{i}_{k}.png" for scene in ("train", "vid") for i in range(5) for k in range(10)])
    held = hold_out(samples, 0.1, r"(train\d)_|(vid\d)_", is_validation=True, eligible=len(samples))
    assert len({name.split("_")[0] for name in held.images}) == 1
    assert len(held) == 10


def test_a_large_group_that_is_held_out_is_noted():
    first, *others = sorted("abc", key=lambda name: hashlib.sha256(name.encode()).digest())
    samples = split([f"{first}{i}" for i in range(8)] + others)
    held, rest = (hold_out(samples, 0.2, "[abc]", is_validation=part, eligible=10) for part in (True, False))
    (note,) = held.notes
    assert note.startswith("data.val_share (=0.2) holds out 8 of 10 images, because images of one group stay together.")
    assert "The largest group has 8." in note
    assert rest.notes == ()
    small = split([f"{name}{i}" for name in "abc" for i in range(2)])
    assert hold_out(small, 0.3, "[abc]", is_validation=True, eligible=6).notes == ()


def test_groups_that_do_not_work_are_errors():
    with pytest.raises(ConfigError, match=r"`data\.val_group` \(='x'\) does not match the image name 'a'"):
        hold_out(split(["a", "b"]), 0.5, "x", is_validation=True, eligible=2)
    with pytest.raises(ConfigError, match="has only one group"):
        hold_out(split(["xa", "xb"]), 0.5, "x", is_validation=True, eligible=2)


def test_a_validation_split_is_made_from_the_training_split(tmp_path):
    from PIL import Image

    for folder in ("input", "target"):
        (tmp_path / folder).mkdir()
        for i in range(5):
            Image.new("L", (4, 4), 1).save(tmp_path / folder / f"{i}.png")
    data = DataConfig(root=str(tmp_path), val_share=0.4)
    held, rest = find_split(data, "val"), find_split(data, "train")
    assert (len(held), len(rest)) == (2, 3)
    assert "2 of 5 images by data.val_share=0.4" in held.source
    with pytest.raises(DataError, match=r"holds|which has only the split train\. Set --config\.data\.val_share=0\.2"):
        find_split(dataclasses.replace(data, val_share=0.0), "val")
    (tmp_path / "input" / "val").mkdir()
    with pytest.raises(DataError, match=r"`data\.val_share` \(=0\.4\) cannot be used, because the data set has a split"):
        find_split(data, "val")
