import struct

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.decode import decode_mask
from deeplab_jax.data.masks import advise_on_unknown, describe_mask, find_distinct


def draw_disc(low, high, width=1.0, size=64):
    """Draw a disc whose edge blends over `width` pixels."""
    y, x = np.mgrid[:size, :size]
    share = np.clip((16 - np.hypot(x - 32, y - 32)) / width + 0.5, 0, 1)
    return np.round(low + (high - low) * share).astype(np.uint8)


@pytest.mark.parametrize("width", [1.0, 3.0])
@pytest.mark.parametrize(("low", "high", "is_binary"), [(0, 255, True), (10, 90, False)])
def test_values_of_soft_edges_are_not_advised_to_become_classes(low, high, width, is_binary):
    mask = describe_mask(draw_disc(low, high, width))
    advice = advise_on_unknown(mask, set(mask.values) - {low, high}, "labelIds")
    assert advice.startswith("The mask is blended")
    assert "label set" not in advice
    assert ("threshold" in advice) == is_binary


def test_one_soft_object_among_many_sharp_ones_is_recognized():
    sharp = np.kron(np.indices((80, 80)).sum(0) % 2 * 2, np.ones((8, 3))).astype(np.uint8)
    values = np.hstack([sharp[:64], draw_disc(0, 200)])
    mask = describe_mask(values)
    assert sum(mask.ramps.values()) < 0.1 * sum(mask.runs.values())
    assert advise_on_unknown(mask, set(mask.values) - {0, 2, 200}, "labelIds").startswith("The mask is blended")


def test_soft_colours_are_recognized():
    disc = draw_disc(0, 128).astype(np.int32)
    mask = describe_mask(disc << 16 | disc << 8)
    advice = advise_on_unknown(mask, set(mask.values) - {0, 0x808000}, "color")
    assert advice.startswith("The mask is blended")
    assert "threshold" not in advice


def test_objects_of_an_undefined_class_can_be_added():
    values = np.zeros((64, 64), np.uint8)
    values[10:30, 10:12], values[40:60, 5:30] = 7, 9  # a thin pole and a box
    advice = advise_on_unknown(describe_mask(values), {7, 9}, "labelIds")
    assert advice == "Fix the file, or add the values to the label set (to ignored_ids if they have no class)."


def test_thin_objects_are_not_called_blended():
    values = np.zeros((64, 64), np.uint8)
    values[4:60, 10:12], values[4:60, 12:30], values[62, :9] = 1, 2, 7  # a membrane at the cell's left, and an undefined value
    assert advise_on_unknown(describe_mask(values), {7}, "labelIds").startswith("Fix the file")


def test_a_mask_is_described_by_the_same_counts_as_numpy_unique():
    values = np.random.default_rng(0).integers(0, 4, (10, 100)).astype(np.int32) * 70000
    counts = dict(zip(*(a.tolist() for a in np.unique(values, return_counts=True)), strict=True))
    assert describe_mask(values).values == counts
    assert describe_mask(np.array([[5]], np.uint8)).values == {5: 1}


def test_ids_saved_as_grey_colours_are_recognized():
    values = np.repeat(np.int32([[0, 0x010101, 0x020202]]), 10, axis=1)
    advice = advise_on_unknown(describe_mask(values), {0x010101, 0x020202}, "color")
    assert advice.startswith("All colours of the mask are shades of grey. If these are ids, set data.label_kind=labelIds ")
    colors = np.where(values == 0x020202, 0x020203, values)
    assert advise_on_unknown(describe_mask(colors), {0x010101, 0x020203}, "color").startswith("Fix the file")
    ids = np.repeat(np.uint8([[0, 1, 2]]), 10, axis=1)
    assert advise_on_unknown(describe_mask(ids), {1, 2}, "labelIds").startswith("Fix the file")


@pytest.mark.parametrize("values", [[[3]], [[3, 3], [3, 3]], [[5, 5, 0], [0, 7, 5]], [[2**24 - 1, 0]]])
def test_distinct_values_are_found(values):
    array = np.array(values, np.int32)
    assert find_distinct(array) == tuple(np.unique(array).tolist())


def test_ramps_are_short_runs_between_their_neighbours():
    mask = describe_mask(np.uint8([[0, 0, 1, 2, 2]]))
    assert (mask.runs, mask.ramps) == ({0: 1, 1: 1, 2: 1}, {1: 1})
    assert describe_mask(np.uint8([[9, 9, 5, 5, 2, 2]])).ramps == {5: 1}
    assert describe_mask(np.uint8([[0, 0, 1, 1, 1, 2, 2]])).ramps == {}  # long enough for an object
    assert describe_mask(np.uint8([[0, 0, 3, 2, 2]])).ramps == {}  # not between
    colors = np.int32([[0x000000, 0x102000, 0x204000, 0x204001]])
    assert describe_mask(colors).ramps == {0x102000: 1, 0x204000: 1}
    assert describe_mask(np.int32([[0x000000, 0x10FF00, 0x204000]])).ramps == {}


PALETTE = {0: (1, 2, 3), 1: (0, 128, 0), 2: (0, 0, 200), 3: (9, 8, 7)}


@pytest.mark.parametrize("count", [4, 16, 256])
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_the_palette_of_every_format_is_read(tmp_path, suffix, count):
    values = np.tile(np.arange(4, dtype=np.uint8), (4, 1))
    picture = Image.fromarray(values, "P")
    picture.putpalette([part for color in PALETTE.values() for part in color] + [5, 5, 5] * (count - 4))
    picture.save(tmp_path / f"mask.{suffix}")
    mask = describe_mask(values, str(tmp_path / f"mask.{suffix}"))
    assert (mask.mode, mask.palette) == ("P", PALETTE)


def test_the_palette_of_a_tiff_with_4_bits_is_read(tmp_path):
    values = np.tile(np.arange(4, dtype=np.uint8), (4, 1))
    colors = np.zeros((3, 16), "<u2")
    colors[:, :4] = 257 * np.uint16(list(PALETTE.values())).T
    packed = bytes([0x01, 0x23] * 4)  # two values in a byte
    start = 8 + 2 + 12 * 9 + 4  # of the pixels, after the header and the tags
    # Width, height, bits, compression, palette, offset, rows, bytes and colours, from the TIFF specification.
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 4), (259, 3, 1, 1), (262, 3, 1, 3)]
    tags += [(273, 4, 1, start), (278, 3, 1, 4), (279, 4, 1, 8), (320, 3, 48, start + 8)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    data = struct.pack("<2sHIH", b"II", 42, 8, 9) + entries + bytes(4) + packed + colors.tobytes()
    (tmp_path / "mask.tif").write_bytes(data)
    assert (decode_mask(data, is_color=False) == values).all()
    assert describe_mask(values, str(tmp_path / "mask.tif")).palette == PALETTE


def test_train_ids_without_a_class_cannot_be_added_as_ignored():
    advice = advise_on_unknown(describe_mask(np.uint8([[0, 1, 4]])), {4}, "labelTrainIds")
    assert "add classes, or set data.label_kind=labelIds" in advice
