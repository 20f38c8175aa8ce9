import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.find import find_samples
from deeplab_jax.data.instances import instance_file, read_instances, why_no_instances
from deeplab_jax.errors import DataError


@pytest.fixture
def val(street_scenes, tmp_path):
    """A copy of the validation split, to be damaged."""
    for folder in ("leftImg8bit/val", "gtFine/val", "list"):
        shutil.copytree(street_scenes / folder, tmp_path / folder)
    return find_samples(str(tmp_path), "val")


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
def test_names_follow_the_labels(kind):
    assert (
        instance_file(f"gtFine/val/a/a_000000_000019_gtFine_{kind}.png")
        == "gtFine/val/a/a_000000_000019_gtFine_instanceIds.png"
    )
    assert instance_file(f"target/a_{kind}.png") == ""


def test_missing_instances_are_said(val, tmp_path):
    assert why_no_instances(val) == ""
    (tmp_path / instance_file(val.labels[1])).unlink()
    assert why_no_instances(val) == f"1 of 3 instanceIds files are missing, such as {instance_file(val.labels[1])}"
    (tmp_path / val.labels[0]).rename(tmp_path / "a.png")
    (tmp_path / "list" / "val.lst").write_text(f"{val.images[0]}\ta.png\n")
    assert why_no_instances(find_samples(str(tmp_path), "val")) == "a.png is not named <image>_gtFine_<kind>.png"


def test_instances_are_read_as_they_are(val):
    ids = read_instances(val, frozenset(range(24, 34)), 0, (64, 128))
    assert ids.dtype == np.uint16
    assert ids.max() > 1000


BROKEN = {
    "cut short": (None, "cannot be read"),
    "8 bits": (np.zeros((64, 128), np.uint8), r"no 16-bit grey image \(mode L\)"),
    "another size": (np.zeros((64, 127), np.uint16), "127x64 and 128x64 pixels"),
    "a road": (np.full((64, 128), 7001, np.uint16), "label id 7 .7000 and on."),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_file_that_cannot_be_used_is_named(damage, val, tmp_path):
    array, message = BROKEN[damage]
    path = tmp_path / instance_file(val.labels[2])
    if array is None:
        path.write_bytes(path.read_bytes()[:200])
    else:
        Image.fromarray(array).save(path)
    with pytest.raises(DataError, match=rf"{path.name} .*{message}"):
        read_instances(val, frozenset(range(24, 34)), 2, (64, 128))
