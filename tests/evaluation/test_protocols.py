import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.evaluation.protocols import average_views, default_stride, scaled_size, slide, window_origins

CLASSES = 3
MIX = np.array([[1.0, -2.0, 0.5], [0.3, 0.7, -1.0]], np.float32)


def network(images):
    """Logits that, as a real network's, depend on where in its view a pixel lies and on the view's size."""
    _, h, w, _ = images.shape
    down = jnp.sin(jnp.arange(h) * (2.0 / h))[None, :, None, None]
    right = jnp.cos(jnp.arange(w) * (3.0 / w))[None, None, :, None]
    return images @ jnp.asarray(MIX) + down * right + images[:, :1, :1, :1] * down


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def naive_slide(images, window, stride):
    """mmsegmentation's loop, a crop at a time."""
    n, h, w, _ = images.shape
    total, seen = np.zeros((n, h, w, CLASSES)), np.zeros((1, h, w, 1))
    for i in range(max(h - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(w - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            y2, x2 = min(i * stride[0] + window[0], h), min(j * stride[1] + window[1], w)
            y1, x1 = max(y2 - window[0], 0), max(x2 - window[1], 0)
            total[:, y1:y2, x1:x2] += network(images[:, y1:y2, x1:x2])
            seen[:, y1:y2, x1:x2] += 1
    return total / seen


def naive_resize(x, size):
    """A pixel at a time, half-pixel centres, edges repeated."""
    (h, w), out = x.shape[1:3], np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * h / size[0] - 0.5, 0), h - 1)
            z = min(max((j + 0.5) * w / size[1] - 0.5, 0), w - 1)
            top, left = int(y), int(z)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            above = x[:, top, left] * (1 - z + left) + x[:, top, right] * (z - left)
            below = x[:, bottom, left] * (1 - z + left) + x[:, bottom, right] * (z - left)
            out[:, i, j] = above * (1 - y + top) + below * (y - top)
    return out


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_origins_worked_out_by_hand():
    assert window_origins(1024, 769, 513) == [0, 255]
    assert window_origins(2048, 769, 513) == [0, 513, 1026, 1279]
    assert window_origins(10, 4, 3) == [0, 3, 6]  # ends with the image by itself
    assert window_origins(11, 4, 4) == [0, 4, 7]
    assert window_origins(4, 4, 1) == [0]
    assert window_origins(3, 4, 3) == [0]


def test_the_default_stride_is_mmsegmentations():
    assert default_stride((769, 769)) == (513, 513)
    assert default_stride((512, 480)) == (341, 320)
    assert default_stride((1, 2)) == (1, 1)


@given(size=st.integers(1, 300), window=st.integers(1, 300), data=st.data())
def test_windows_cover_every_pixel_as_mmsegmentations_do(size, window, data):
    stride = data.draw(st.integers(1, window))
    origins = window_origins(size, window, stride)
    seen = np.zeros(size, int)
    for start in origins:
        seen[start : start + window] += 1
    assert (seen > 0).all()
    theirs = range(max(size - window + stride - 1, 0) // stride + 1)
    assert origins == [max(min(i * stride + window, size) - window, 0) for i in theirs]


@pytest.mark.parametrize(
    ("window", "stride", "actual_stride"),
    [
        ((5, 7), (0, 0), (3, 5)),
        ((5, 7), (2, 7), (2, 7)),
        ((40, 6), (0, 0), (27, 4)),  # taller than the image
        ((40, 40), (0, 0), (27, 27)),
    ],
)
def test_windows_equal_a_loop_over_crops(window, stride, actual_stride):
    images = noise(2, 13, 18, 2)
    run = jax.jit(lambda images: slide(network, images, CLASSES, window=window, stride=stride))
    np.testing.assert_allclose(run(images), naive_slide(images, window, actual_stride), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scales", "flip", "window"),
    [((0.5, 1.0, 1.5), True, None), ((0.5, 1.5), False, (5, 7)), ((1,), True, (5, 7)), ((0.01, 1.0), True, None)],
)
def test_several_views_average_their_probabilities(scales, flip, window):
    images = noise(1, 9, 13, 2)
    of_view = functools.partial(slide, network, num_classes=CLASSES, window=window, stride=(0, 0)) if window else network
    run = jax.jit(lambda images: average_views(of_view, images, CLASSES, scales=scales, flip=flip))
    probabilities = []
    for scale in scales:
        size = (max(int(9 * scale + 0.5), 1), max(int(13 * scale + 0.5), 1))
        scaled = naive_resize(images, size).astype(np.float32)
        for step in (1, -1)[: 1 + flip]:
            seen = naive_slide(scaled[:, :, ::step], window or size, default_stride(window or size))
            probabilities.append(softmax(naive_resize(seen[:, :, ::step], (9, 13))))
    np.testing.assert_allclose(softmax(np.asarray(run(images))), np.mean(probabilities, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(run(images)).sum(-1), 1.0, rtol=1e-5)


def test_a_single_view_keeps_its_logits():
    images = noise(1, 9, 13, 2)
    whole = average_views(network, images, CLASSES, scales=(1.0,), flip=False)
    np.testing.assert_array_equal(whole, network(images))
    half = average_views(network, images, CLASSES, scales=(0.5,), flip=False)
    seen = np.asarray(network(naive_resize(images, (5, 7)).astype(np.float32)))
    np.testing.assert_allclose(half, naive_resize(seen, (9, 13)), rtol=1e-5, atol=1e-5)


def test_a_probability_of_zero_has_a_finite_logarithm():
    sure = average_views(lambda images: images * 1e4, jnp.array([[[[1.0, 0.0]]]]), 2, scales=(1.0,), flip=True)
    assert jnp.isfinite(sure).all()
    np.testing.assert_allclose(jax.nn.softmax(sure), [[[[1, 0]]]], atol=1e-30)


def test_sizes_round_half_up_and_are_at_least_1():
    assert scaled_size((1024, 2049), 0.5) == (512, 1025)
    assert scaled_size((33, 35), 1.5) == (50, 53)
    assert scaled_size((3, 100), 0.1) == (1, 10)
