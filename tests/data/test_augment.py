import math

import numpy as np
import pytest
import tensorflow as tf

from deeplab_jax.config import DataConfig
from deeplab_jax.data import augment
from deeplab_jax.data.crops import sample_key, uniforms

FILL = (123.675, 116.28, 103.53)
EVERYTHING = DataConfig(
    crop_size=(40, 40), scale=(0.7, 2.0), cat_max_ratio=0.75, class_balanced=0.5, rotation=20.0, cutout=0.3, photometric=True
)


def blocks(seed=0, classes=5):
    """A label of blocks 8x8, and the image that shows it: grey 50 times the class."""
    label = np.kron(np.random.default_rng(seed).integers(0, classes, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    return np.repeat(label[..., None] * 50, 3, -1), label


def run(function, image, label, *args, **options):
    image, label = function(tf.constant(image), tf.constant(label), *args, **options)
    return image.numpy(), label.numpy()


def test_image_and_label_stay_aligned_through_everything():
    image, label = blocks()
    for k in range(20):
        a, b = run(augment.augment, image, label, sample_key(0, k), data=EVERYTHING, fill=FILL)
        a = a[..., 0].astype(int)
        # Away from the borders between blocks, where bilinear mixes, the pixel is its label's grey.
        flat = (b != 255) & (np.diff(a, axis=0, prepend=-1) == 0) & (np.diff(a, axis=1, prepend=-1) == 0)
        assert flat.sum() > 150
        assert (a[flat] == b[flat] * 50).mean() > 0.97
        assert set(np.unique(b)) <= set(np.unique(label)) | {255}


def test_labels_keep_their_values_and_images_stay_inside_their_range():
    label = np.random.default_rng(0).choice(np.array([0, 3, 200, 255], np.uint8), (30, 50))
    image = np.full((30, 50, 3), 77, np.uint8)
    for k in range(10):
        a, b = run(augment.augment, image, label, sample_key(5, k), data=EVERYTHING, fill=(77.0, 77.0, 77.0))
        assert set(np.unique(b)) <= {0, 3, 200, 255}
        assert (a == 77).all()


def test_the_same_key_gives_the_same_bytes_eagerly_and_in_a_dataset():
    image, label = map(tf.constant, blocks())

    def sample(k):
        return augment.augment(image, label, sample_key(9, k), data=EVERYTHING, fill=FILL)

    for k, (a, b) in enumerate(tf.data.Dataset.range(6).map(sample)):
        eager_image, eager_label = sample(k)
        np.testing.assert_array_equal(a, eager_image)
        np.testing.assert_array_equal(b, eager_label)


def test_half_of_the_samples_are_mirrored_as_numpy_mirrors():
    image, label = blocks()
    mirrored = 0
    for k in range(60):
        a, b = run(augment.flip, image, label, sample_key(0, k))
        step = -1 if uniforms(sample_key(0, k), "flip", ()) < 0.5 else 1
        np.testing.assert_array_equal(a, image[:, ::step])
        np.testing.assert_array_equal(b, label[:, ::step])
        mirrored += step == -1
    assert 15 <= mirrored <= 45  # 30, within 4 standard deviations


def reference_rotation(image, label, angle, fill):
    """Every output pixel looks up its source, turned about the centre, in float64."""
    height, width = label.shape
    out, out_label = np.zeros((*label.shape, 3)), np.full(label.shape, 255)
    for y in range(height):
        for x in range(width):
            dx, dy = x - (width - 1) / 2, y - (height - 1) / 2
            sx = math.cos(angle) * dx - math.sin(angle) * dy + (width - 1) / 2
            sy = math.sin(angle) * dx + math.cos(angle) * dy + (height - 1) / 2
            nearest = math.floor(sy + 0.5), math.floor(sx + 0.5)
            if 0 <= nearest[0] < height and 0 <= nearest[1] < width:
                out_label[y, x] = label[nearest]
            for yy in (math.floor(sy), math.floor(sy) + 1):
                for xx in (math.floor(sx), math.floor(sx) + 1):
                    pixel = image[yy, xx] if 0 <= yy < height and 0 <= xx < width else np.array(fill)
                    out[y, x] += pixel * (1 - abs(sy - yy)) * (1 - abs(sx - xx))
    return out, out_label


@pytest.mark.parametrize("degrees", [10.0, 180.0])
def test_rotation_equals_a_plain_reference(degrees):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (13, 17, 3)).astype(np.uint8), rng.integers(0, 5, (13, 17)).astype(np.uint8)
    angles = []
    for k in range(6):
        key = sample_key(1, k)
        angle = (2 * float(uniforms(key, "rotation", ())) - 1) * math.radians(degrees)
        a, b = run(augment.rotate, image, label, key, degrees=degrees, fill=(124, 116, 104))
        expected_image, expected_label = reference_rotation(image.astype(float), label, angle, (124, 116, 104))
        # A float32 position next to the middle between two pixels may fall on the other side.
        assert (b == expected_label).mean() > 0.98
        assert np.abs(a - expected_image).max() <= 0.55
        angles.append(abs(angle))
    assert max(angles) > math.radians(degrees) / 2


def test_cutout_blanks_one_rectangle_of_the_share():
    image, label = np.full((20, 30, 3), 9, np.uint8), np.full((20, 30), 4, np.uint8)
    places = set()
    for k in range(40):
        a, b = run(augment.cut_out, image, label, sample_key(2, k), share=0.25, fill=(1, 2, 3))
        u = uniforms(sample_key(2, k), "cutout", (2,)).numpy()
        hole = round(0.25 * 20), round(0.25 * 30)
        y, x = int(u[0] * (20 - hole[0] + 1)), int(u[1] * (30 - hole[1] + 1))
        expected = label.copy()
        expected[y : y + hole[0], x : x + hole[1]] = 255
        np.testing.assert_array_equal(b, expected)
        np.testing.assert_array_equal(a, np.where((expected == 255)[..., None], (1, 2, 3), image))
        places.add((y, x))
    assert len(places) > 20


def test_photometric_factors_are_what_mmsegmentation_draws():
    table = np.array([augment.photometric_factors(sample_key(3, k)) for k in range(400)])
    low, high = [-32, 0.5, 0.5, -36], [32, 1.5, 1.5, 36]
    for column, (a, b), neutral in zip(table.T, zip(low, high, strict=True), (0, 1, 1, 0), strict=False):
        drawn = column[column != neutral]
        assert 160 <= len(drawn) <= 240  # 200, within 4 standard deviations
        assert a <= drawn.min() < a + 0.1 * (b - a)
        assert b - 0.1 * (b - a) < drawn.max() <= b
    assert set(table[:, 4]) == {0.0, 1.0}
    assert augment.neutral_factors().numpy().tolist() == [0, 1, 1, 0, 0]


def test_blank_is_what_surrounds_an_image():
    image, label = augment.blank((2, 3), FILL)
    assert image.numpy().tolist() == [[[124, 116, 104]] * 3] * 2
    assert label.numpy().tolist() == [[255] * 3] * 2
    data = DataConfig(crop_size=(2, 3), scale=(1.0, 1.0), flip=False)
    around, _ = augment.augment(image[:1, :1], label[:1, :1], sample_key(0, 0), data=data, fill=FILL)
    np.testing.assert_array_equal(around, image)
    assert (image.dtype, label.dtype) == (tf.uint8, tf.uint8)
