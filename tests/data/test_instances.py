import shutil

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.find import find_samples
from deeplab_jax.data.instances import explain_missing_instances, instance_file, read_instances
from deeplab_jax.errors import DataError


@pytest.fixture
def val(street_scenes, tmp_path):
    """Return a copy of the validation split, which tests are free to damage."""
    for folder in ("leftImg8bit/val", "gtFine/val", "list"):
        shutil.copytree(street_scenes / folder, tmp_path / folder)
    return find_samples(str(tmp_path), "val")


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "color"])
def test_the_file_name_is_derived_from_the_label_name(kind):
    assert (
        instance_file(f"gtFine/val/a/a_000000_000019_gtFine_{kind}.png")
        == "gtFine/val/a/a_000000_000019_gtFine_instanceIds.png"
    )
    assert instance_file(f"target/a_{kind}.png") == ""


def test_missing_instance_files_are_explained(val, tmp_path):
    assert explain_missing_instances(val) == ""
    (tmp_path / instance_file(val.labels[1])).unlink()
    assert explain_missing_instances(val) == f"1 of 3 instanceIds files are missing, such as {instance_file(val.labels[1])}"
    (tmp_path / val.labels[0]).rename(tmp_path / "a.png")
    (tmp_path / "list" / "val.lst").write_text(f"{val.images[0]}\ta.png\n")
    assert explain_missing_instances(find_samples(str(tmp_path), "val")) == "a.png is not named <image>_gtFine_<kind>.png"


def test_instance_ids_are_read_unchanged(val):
    ids = read_instances(val, frozenset(range(24, 34)), 0, (64, 128))
    assert ids.dtype == np.uint16
    assert ids.max() > 1000


BAD_FILES = {
    "truncated": (None, "cannot be read"),
    "8 bits": (np.zeros((64, 128), np.uint8), r"is not a 16-bit grey image \(mode L\)"),
    "wrong size": (np.zeros((64, 127), np.uint16), "127x64 and 128x64 pixels"),
    "instances of the road": (np.full((64, 128), 7001, np.uint16), r"label id 7 \(pixel values 7000 and up\)"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named(case, val, tmp_path):
    array, message = BAD_FILES[case]
    path = tmp_path / instance_file(val.labels[2])
    if array is None:
        path.write_bytes(path.read_bytes()[:200])
    else:
        Image.fromarray(array).save(path)
    with pytest.raises(DataError, match=rf"{path.name} .*{message}"):
        read_instances(val, frozenset(range(24, 34)), 2, (64, 128))
