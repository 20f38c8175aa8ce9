import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data.importers.figures import (
    Bitmap,
    Circle,
    CocoPolygons,
    CocoRle,
    Ellipse,
    EncodedBitmap,
    FileRegion,
    Outline,
    Rectangle,
    decode_runs,
    pairs,
)
from deeplab_jax.errors import DataError

SIZE = (8, 8)


def draw(figure, size=SIZE):
    return ["".join(".#"[int(value)] for value in row) for row in figure.draw(*size)]


def test_an_outline_contains_the_pixels_of_its_points_and_a_hole_contains_its_own():
    outline = Outline(((1, 1), (6, 1), (6, 6), (1, 6)), holes=(((3, 3), (4, 3), (4, 4), (3, 4)),))
    assert draw(outline) == [
        "........",
        ".######.",
        ".######.",
        ".##..##.",
        ".##..##.",
        ".######.",
        ".######.",
        "........",
    ]


def test_a_rectangle_contains_both_corners_in_any_order():
    assert draw(Rectangle(((4, 2), (1, 1)))) == ["........", ".####...", ".####...", *["........"] * 5]


def test_a_circle_is_round():
    assert draw(Circle((3, 3), 2)) == [
        "........",
        "..###...",
        ".#####..",
        ".#####..",
        ".#####..",
        "..###...",
        "........",
        "........",
    ]


def test_an_ellipse_is_turned_clockwise():
    assert draw(Ellipse((3, 3), (2, 0))) == ["........"] * 3 + [".#####.."] + ["........"] * 4
    assert draw(Ellipse((3, 3), (2, 0), 90)) == ["........", *["...#...."] * 5, "........", "........"]
    # Clockwise on the screen, where y points down.
    assert draw(Ellipse((3, 3), (3, 0), 45))[5] == ".....#.."


def test_a_bitmap_is_cut_off_at_each_side():
    mask = np.ones((3, 3), bool)
    assert draw(Bitmap(mask, -1, -2), (3, 4)) == ["##..", "....", "...."]
    assert draw(Bitmap(mask, 3, 1), (3, 4)) == ["....", "...#", "...#"]
    assert draw(Bitmap(mask, 9, 9), (3, 4)) == ["....", "....", "...."]
    assert draw(Bitmap(mask, -9, -9), (3, 4)) == ["....", "....", "...."]


def encode(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_a_bitmap_with_transparency_is_its_opacity():
    rgba = np.full((1, 2, 4), 255, np.uint8)
    rgba[0, 1, 3] = 0
    assert draw(EncodedBitmap(encode(rgba), 1, 0), (1, 4)) == [".#.."]
    assert draw(EncodedBitmap(encode(rgba[..., 0]), 1, 0), (1, 4)) == [".##."]


def test_a_bitmap_that_does_not_fit_its_box_is_an_error():
    data = encode(np.ones((2, 2), np.uint8))
    with pytest.raises(DataError, match="2x2 pixels in a box of 3x2"):
        EncodedBitmap(data, 0, 0, (2, 3)).draw(*SIZE)
    with pytest.raises(DataError, match="cannot be decoded"):
        EncodedBitmap(b"x").draw(*SIZE)


def test_the_region_of_a_file_has_one_of_its_values(tmp_path):
    Image.fromarray(np.array([[[1, 0, 0], [1, 2, 0], [1, 2, 3]]], np.uint8)).save(tmp_path / "panoptic.png")
    assert draw(FileRegion(tmp_path / "panoptic.png", 1 + 256 * 2 + 65536 * 3), (1, 3)) == ["..#"]
    with pytest.raises(DataError, match="3x1 pixels for an image of 4x1"):
        FileRegion(tmp_path / "panoptic.png", 1).draw(1, 4)


def test_run_lengths_begin_with_the_background():
    assert decode_runs((1, 2, 3), 2, 3).tolist() == [[False, True, True], [False, False, False]]
    # COCO goes column by column.
    assert draw(CocoRle((2, 3), (1, 2, 3)), (2, 3)) == [".#.", "#.."]
    with pytest.raises(DataError, match="add up to 7 pixels instead of 6"):
        decode_runs((1, 2, 4), 2, 3)
    with pytest.raises(DataError, match="for 3x2 pixels on an image of 2x3"):
        CocoRle((2, 3), (6,)).draw(3, 2)


def test_coordinates_come_in_pairs_of_finite_numbers():
    assert pairs(["1", 2.5, 3, 4]) == ((1, 2.5), (3, 4))
    for values in ((1, 2, 3), (1, "nan"), (1, math.inf), (1, "x")):
        with pytest.raises(ValueError):  # noqa: PT011
            pairs(values)


def random_ring(rng, width, height):
    count = rng.integers(3, 12)
    center, angles = rng.uniform(0, (width, height)), np.sort(rng.uniform(0, 2 * np.pi, count))
    radii = rng.uniform(1, width / 2, count)
    points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return tuple((float(x), float(y)) for x, y in points)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_and_compressed_runs_are_exactly_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    rng = np.random.default_rng(0)
    height, width = 41, 53
    for _ in range(200):
        rings = tuple(random_ring(rng, width, height) for _ in range(rng.integers(1, 3)))
        flat = [[value for point in ring for value in point] for ring in rings]
        reference = coco.COCO()
        reference.imgs = {1: {"id": 1, "height": height, "width": width}}
        rle = reference.annToRLE({"image_id": 1, "segmentation": flat})
        expected = reference.annToMask({"image_id": 1, "segmentation": flat})
        np.testing.assert_array_equal(CocoPolygons(rings).draw(height, width), expected)
        np.testing.assert_array_equal(CocoRle((height, width), rle["counts"].decode()).draw(height, width), expected)
        changes = np.flatnonzero(np.diff(np.concatenate([[0], expected.T.ravel()])))
        counts = np.diff([0, *changes, expected.size])
        np.testing.assert_array_equal(CocoRle((height, width), tuple(counts.tolist())).draw(height, width), expected)
        uncompressed = {"size": [height, width], "counts": counts.tolist()}
        np.testing.assert_array_equal(reference.annToMask({"image_id": 1, "segmentation": uncompressed}), expected)


def test_damaged_compressed_runs_are_an_error():
    for text, message in (("zzz", "character 'z'"), ("o", "cut off"), ("5", "add up to 5 pixels instead of 64")):
        with pytest.raises(DataError, match=message):
            CocoRle(SIZE, text).draw(*SIZE)


def test_shapes_are_exactly_those_of_labelme():
    shape = pytest.importorskip("labelme.utils.shape")
    rng = np.random.default_rng(0)
    height, width = 41, 53
    for _ in range(200):
        ring = random_ring(rng, width, height)
        first, second = ring[:2]
        mask = rng.integers(0, 2, (5, 7)).astype(bool)
        figures = {
            "polygon": (ring, Outline(ring)),
            "rectangle": ((first, second), Rectangle((first, second))),
            "circle": ((first, second), Circle(first, math.dist(first, second))),
        }
        for kind, (points, figure) in figures.items():
            expected = shape.shape_to_mask((height, width), [list(point) for point in points], kind)
            np.testing.assert_array_equal(figure.draw(height, width), expected)
        drawn = {"label": "a", "shape_type": "mask", "points": [[3, 4], [9, 8]], "mask": mask}
        expected, _ = shape.shapes_to_label((height, width), [drawn], {"a": 1})
        data = base64.b64decode(base64.b64encode(encode(mask.astype(np.uint8) * 255)))
        np.testing.assert_array_equal(EncodedBitmap(data, 3, 4, (5, 7)).draw(height, width), expected)
