import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deeplab_jax.data.image_files import ImageFiles, reason
from deeplab_jax.data.samples import Samples, read_sample
from deeplab_jax.data.survey import survey_masks
from deeplab_jax.errors import DataError

MASK = 2**64 - 1
K2 = 0x9AE16A3B2F90404F


def farmhash64(data):
    """Compute the FarmHash Fingerprint64 hash of 8 to 16 bytes, as in farmhash.cc."""

    def rotate(value, bits):
        return (value >> bits | value << (64 - bits)) & MASK

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
    """Return a split with one sample. Its files are not real images, because a fingerprint only needs their bytes."""
    (tmp_path / "i").write_bytes(b"an image")
    (tmp_path / "l").write_bytes(b"its label file")
    return Samples(str(tmp_path), ("i",), ("l",), "labelIds", "", ImageFiles())


def test_a_fingerprint_is_the_farmhash_of_the_files(pair):
    image, label = farmhash64(b"an image"), farmhash64(b"its label file")
    assert pair.store.fingerprint(pair, 0) == farmhash64(image + label)
    unlabelled = Samples(pair.root, pair.images, (), "labelIds", "", ImageFiles())
    assert unlabelled.store.fingerprint(unlabelled, 0) == image


@pytest.mark.parametrize("name", ["i", "l"])
def test_the_fingerprint_changes_with_every_byte_in_either_file(pair, tmp_path, name):
    path = tmp_path / name
    contents = path.read_bytes()
    seen = {pair.store.fingerprint(pair, 0)}
    for k in range(len(contents)):
        path.write_bytes(contents[:k] + bytes([contents[k] ^ 1]) + contents[k + 1 :])
        seen.add(pair.store.fingerprint(pair, 0))
    path.write_bytes(contents + b"\0")
    seen.add(pair.store.fingerprint(pair, 0))
    assert len(seen) == len(contents) + 2
    path.write_bytes(contents)
    assert pair.store.fingerprint(pair, 0) in seen


def test_image_and_label_are_not_interchangeable(pair):
    swapped = Samples(pair.root, pair.labels, pair.images, "labelIds", "", ImageFiles())
    assert swapped.store.fingerprint(swapped, 0) != pair.store.fingerprint(pair, 0)


@pytest.mark.parametrize("name", ["i", "l"])
def test_a_missing_file_is_named(pair, tmp_path, name):
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{tmp_path / name} cannot be read"):
        pair.store.fingerprint(pair, 0)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=rf"{tmp_path / name} cannot be read"):
        pair.store.fingerprint(pair, 0)


class NotIterable(tuple):
    """A tuple that can be indexed but not iterated over."""

    def __iter__(self):
        raise AssertionError("all names were read for one sample")


def test_reading_one_sample_does_not_read_all_names(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "i.png")
    Image.new("L", (3, 2), 5).save(tmp_path / "l.png")
    images, labels = NotIterable(["missing", "i.png"]), NotIterable(["missing", "l.png"])
    samples = Samples(str(tmp_path), images, labels, "labelIds", "", ImageFiles())
    image, values = read_sample(samples, 1)
    assert image.shape == (2, 3, 3)
    assert (values == 5).all()


def test_an_image_that_is_too_large_for_this_machine_is_named(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "i.png")
    monkeypatch.setattr("deeplab_jax.data.decode.MEMORY_SHARE", 1e-12)
    with pytest.raises(DataError, match=r"i\.png has 8x8 pixels, which need .* GiB of memory"):
        ImageFiles().size(Samples(str(tmp_path), ("i.png",), (), "labelIds", "", ImageFiles()), 0)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "{{function_node __wrapped__ReadFile_device_/job:localhost}} a/b; No such file [Op:ReadFile] name: ",
            "a/b; No such file",
        ),
        ("{{function_node f}} Invalid PNG.\n\t [[{{node DecodePng}}]] [Op:IteratorGetNext] name: ", "Invalid PNG."),
        ("image file is truncated (3 bytes not processed)", "image file is truncated (3 bytes not processed)"),
        ("cannot identify image file <_io.BufferedReader name='a.png'>", "it is not an image"),
        ("x" * 300, "x" * 200),
        ("", "OSError"),
    ],
)
def test_a_reason_is_one_line_without_node_names(message, expected):
    assert reason(OSError(message)) == expected


# Maps each PNG format to a function that turns an array into a mask image. Some formats are valid only for one label kind.
# Transparency is dropped when a mask is read.
MASKS = {
    "grey": lambda a: Image.fromarray(a),
    "palette": lambda a: with_palette(a),
    "palette of 4 bits": lambda a: with_palette(a % 16),
    "RGB": lambda a: Image.fromarray(np.stack([a, 255 - a, a // 2], -1)),
    "RGBA": lambda a: Image.fromarray(np.stack([a, 255 - a, a // 2, a], -1), "RGBA"),
    "grey with transparency": lambda a: Image.fromarray(np.stack([a, 255 - a], -1), "LA"),
    "1 bit": lambda a: Image.fromarray(a > 100),
    "16 bits": lambda a: Image.fromarray(a.astype(np.uint16) * 257),
}


def with_palette(array):
    picture = Image.fromarray(array, "P")
    picture.putpalette([(7 * k + c) % 256 for k in range(int(array.max()) + 1) for c in range(3)])
    return picture


def expected_values(name, array, kind):
    """Return the values that a mask should be read as, or None if the format is invalid for this label kind."""
    if name == "16 bits" or (kind == "labelIds" and name in ("RGB", "RGBA", "grey with transparency")):
        return None
    if name == "1 bit" and kind == "labelIds":
        return (array > 100).astype(np.uint8)
    if kind == "labelIds":
        return array % 16 if name == "palette of 4 bits" else array
    a = (array % 16 if name == "palette of 4 bits" else array).astype(int)
    channels = {"RGB": (a, 255 - a, a // 2), "1 bit": (255 * (a > 100),) * 3} | dict.fromkeys(
        ("palette", "palette of 4 bits"), tuple((7 * a + c) % 256 for c in range(3))
    )
    red, green, blue = channels.get("RGB" if name == "RGBA" else name, (a, a, a))
    return red * 65536 + green * 256 + blue


@pytest.mark.parametrize("kind", ["labelIds", "color"])
@pytest.mark.parametrize("name", MASKS)
def test_training_and_the_survey_read_the_same_values_and_reject_the_same_files(tmp_path, name, kind):
    array = np.random.default_rng(0).integers(0, 256, (9, 13)).astype(np.uint8)
    Image.new("RGB", (13, 9)).save(tmp_path / "i.png")
    MASKS[name](array).save(tmp_path / "l.png", bits=4 if name == "palette of 4 bits" else 8)
    samples = Samples(str(tmp_path), ("i.png",), ("l.png",), kind, "", ImageFiles())
    expected = expected_values(name, array, kind)
    if expected is None:
        with pytest.raises(DataError, match=r"l\.png") as training:
            read_sample(samples, 0)
        with pytest.raises(DataError) as survey:
            survey_masks([samples])
        assert str(training.value) == str(survey.value)
        return
    _, values = read_sample(samples, 0)
    np.testing.assert_array_equal(values, expected)
    in_dataset = tf.data.Dataset.range(1).map(lambda i: samples.store.decode(samples, i).values)
    np.testing.assert_array_equal(next(in_dataset.as_numpy_iterator()), expected)
    counts = {value: each.pixels for value, each in survey_masks([samples]).values.items()}
    assert counts == dict(zip(*(a.tolist() for a in np.unique(expected, return_counts=True)), strict=True))


def test_training_and_the_survey_reject_a_truncated_mask(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "i.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40)).astype(np.uint8)).save(tmp_path / "l.png")
    (tmp_path / "l.png").write_bytes((tmp_path / "l.png").read_bytes()[:-20])  # Pillow still reads this file
    samples = Samples(str(tmp_path), ("i.png",), ("l.png",), "labelIds", "", ImageFiles())
    for read in (lambda: read_sample(samples, 0), lambda: survey_masks([samples])):
        with pytest.raises(DataError, match=r"l\.png cannot be read"):
            read()
