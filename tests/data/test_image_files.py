import pytest
from etils import epath
from PIL import Image

from deeplab_jax.data.image_files import ImageFiles, image_size, reason
from deeplab_jax.data.samples import Samples, fingerprint, read_sample
from deeplab_jax.errors import DataError

MASK = 2**64 - 1
K2 = 0x9AE16A3B2F90404F


def farmhash64(data):
    """Fingerprint64 of 8 to 16 bytes, as farmhash.cc defines it."""

    def rotate(value, by):
        return (value >> by | value << (64 - by)) & MASK

    mul = K2 + 2 * len(data)
    a = int.from_bytes(data[:8], "little") + K2 & MASK
    b = int.from_bytes(data[-8:], "little")
    c = rotate(b, 37) * mul + a & MASK
    d = (rotate(a, 25) + b) * mul & MASK
    x = (c ^ d) * mul & MASK
    x ^= x >> 47
    y = (d ^ x) * mul & MASK
    y ^= y >> 47
    return (y * mul & MASK).to_bytes(8, "little")


@pytest.fixture
def pair(tmp_path):
    """One sample, whose files need no pixels to have a fingerprint."""
    (tmp_path / "i").write_bytes(b"an image")
    (tmp_path / "l").write_bytes(b"its label file")
    return Samples(str(tmp_path), ("i",), ("l",), "labelIds", "", ImageFiles())


def test_a_fingerprint_is_farmhash_of_the_files(pair):
    image, label = farmhash64(b"an image"), farmhash64(b"its label file")
    assert fingerprint(pair, 0) == farmhash64(image + label)
    unlabelled = Samples(pair.root, pair.images, (), "labelIds", "", ImageFiles())
    assert fingerprint(unlabelled, 0) == image


@pytest.mark.parametrize("name", ["i", "l"])
def test_every_byte_of_both_files_counts(pair, tmp_path, name):
    path = tmp_path / name
    contents = path.read_bytes()
    seen = {fingerprint(pair, 0)}
    for k in range(len(contents)):
        path.write_bytes(contents[:k] + bytes([contents[k] ^ 1]) + contents[k + 1 :])
        seen.add(fingerprint(pair, 0))
    path.write_bytes(contents + b"\0")
    seen.add(fingerprint(pair, 0))
    assert len(seen) == len(contents) + 2
    path.write_bytes(contents)
    assert fingerprint(pair, 0) in seen


def test_image_and_label_are_not_interchangeable(pair):
    swapped = Samples(pair.root, pair.labels, pair.images, "labelIds", "", ImageFiles())
    assert fingerprint(swapped, 0) != fingerprint(pair, 0)


@pytest.mark.parametrize("name", ["i", "l"])
def test_a_file_that_is_gone_is_named(pair, tmp_path, name):
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{tmp_path / name} cannot be read"):
        fingerprint(pair, 0)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"{tmp_path / name} cannot be read"):
        fingerprint(pair, 0)


class Uncounted(tuple):
    """Names that may be asked for one at a time."""

    def __iter__(self):
        raise AssertionError("all names were read for one sample")


def test_reading_one_sample_does_not_cost_a_pass_over_all_names(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "i.png")
    Image.new("L", (3, 2), 5).save(tmp_path / "l.png")
    samples = Samples(str(tmp_path), Uncounted(["gone", "i.png"]), Uncounted(["gone", "l.png"]), "labelIds", "", ImageFiles())
    image, values = read_sample(samples, 1)
    assert image.shape == (2, 3, 3)
    assert (values == 5).all()


def test_an_image_that_pillow_thinks_too_large_is_named(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "i.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(DataError, match=r"i\.png cannot be read as an image \(Image size \(64 pixels\) exceeds limit"):
        image_size(epath.Path(tmp_path) / "i.png")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "{{function_node __wrapped__ReadFile_device_/job:localhost}} a/b; No such file [Op:ReadFile] name: ",
            "a/b; No such file",
        ),
        ("{{function_node f}} Invalid PNG.\n\t [[{{node DecodePng}}]] [Op:IteratorGetNext] name: ", "Invalid PNG."),
        ("image file is truncated (3 bytes not processed)", "image file is truncated (3 bytes not processed)"),
        ("cannot identify image file <_io.BufferedReader name='a.png'>", "it is no image"),
        ("x" * 300, "x" * 200),
        ("", "OSError"),
    ],
)
def test_a_reason_is_one_line_that_names_no_node(said, told):
    assert reason(OSError(said)) == told
