import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.data import augment

FILL = (123.675, 116.28, 103.53)


def reference(image, label, u, crop_size, scale, flip):
    """Resize everything, crop then: the definition, in float64."""
    h, w = label.shape
    factor = scale[0] + u[0] * (scale[1] - scale[0])
    sizes = [max(int(np.round(n * factor)), 1) for n in (h, w)]
    starts = [int(np.floor(u[1 + axis] * (max(sizes[axis] - crop_size[axis], 0) + 1))) for axis in (0, 1)]
    out = np.broadcast_to(np.round(np.array(FILL)), (*crop_size, 3)).copy()
    out_label = np.full(crop_size, 255, np.uint8)
    for y in range(min(crop_size[0], sizes[0])):
        for x in range(min(crop_size[1], sizes[1])):
            centre = [(starts[0] + y + 0.5) * h / sizes[0], (starts[1] + x + 0.5) * w / sizes[1]]
            out_label[y, x] = label[min(int(centre[0]), h - 1), min(int(centre[1]), w - 1)]
            position = [np.clip(c - 0.5, 0, n - 1) for c, n in zip(centre, (h, w), strict=True)]
            (y0, fy), (x0, fx) = [(int(p), p - int(p)) for p in position]
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
            bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
            out[y, x] = top * (1 - fy) + bottom * fy
    mirror = slice(None, None, -1 if flip and u[3] < 0.5 else 1)
    return out[:, mirror], out_label[:, mirror]


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    crop=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    scale=st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.25, 0.4), (3.0, 3.0)]),
    flip=st.booleans(),
)
def test_cropping_first_equals_resizing_everything_and_cropping_then(seed, size, crop, scale, flip):
    rng = np.random.default_rng(seed)
    image, label = rng.integers(0, 256, (*size, 3)).astype(np.uint8), rng.integers(0, 19, size).astype(np.uint8)
    u = rng.random(4)
    actual_image, actual_label = augment.scale_crop_flip(
        tf.constant(image), tf.constant(label), tf.constant(u), crop_size=crop, scale=scale, flip=flip, fill=FILL
    )
    expected_image, expected_label = reference(image.astype(np.float64), label, u, crop, scale, flip)
    np.testing.assert_array_equal(actual_label, expected_label)
    # A float32 sum may round to the other side of .5.
    assert np.abs(actual_image.numpy() - expected_image).max() <= 0.51


def test_image_and_label_stay_aligned():
    label = np.kron(np.random.default_rng(0).integers(0, 5, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    image = np.repeat(label[..., None] * 50, 3, -1)
    for k in range(20):
        a, b = augment.scale_crop_flip(
            tf.constant(image),
            tf.constant(label),
            augment.uniforms(0, k),
            crop_size=(40, 40),
            scale=(0.7, 2.0),
            flip=True,
            fill=FILL,
        )
        a, b = a.numpy()[..., 0], b.numpy()
        inside = b != 255
        # Away from the borders between blocks, where bilinear mixes, the pixel is its label's grey.
        flat = (
            inside
            & (np.abs(np.diff(a.astype(int), axis=0, prepend=0)) == 0)
            & (np.abs(np.diff(a.astype(int), axis=1, prepend=0)) == 0)
        )
        assert flat.sum() > 300
        assert (a[flat] == b[flat] * 50).mean() > 0.97


def test_uniforms_are_a_function_of_seed_and_index_and_lie_in_their_range():
    table = np.array([[augment.uniforms(seed, k) for k in range(200)] for seed in (0, 1)])
    np.testing.assert_array_equal(table[1, 7], augment.uniforms(tf.constant(1), tf.constant(7, tf.int64)))
    assert len(np.unique(table)) == table.size
    assert table.min() >= 0
    assert table.max() < 1
    assert table.mean((0, 1)) == pytest.approx(0.5, abs=0.06)  # 4 standard errors of 400 draws


def test_blank_is_what_surrounds_an_image():
    image, label = augment.blank((2, 3), FILL)
    assert image.numpy().tolist() == [[[124, 116, 104]] * 3] * 2
    assert label.numpy().tolist() == [[255] * 3] * 2
    around, _ = augment.scale_crop_flip(
        image[:1, :1], label[:1, :1], tf.zeros(4), crop_size=(2, 3), scale=(1.0, 1.0), flip=False, fill=FILL
    )
    np.testing.assert_array_equal(around, image)
    assert (image.dtype, label.dtype) == (tf.uint8, tf.uint8)
