import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeplab_jax.evaluation.windows import default_stride, slide, slide_in_strips, window_origins

CLASSES = 3
MIX = np.array([[1.0, -2.0, 0.5], [0.3, 0.7, -1.0]], np.float32)


def network(images, sizes=None):
    """Return logits that depend on each pixel's position and on the view size, like a real network's logits."""
    shape = images.shape[1:3]
    h, w = (jnp.asarray(size).reshape(-1, 1) for size in sizes or shape)
    down = jnp.sin(jnp.arange(shape[0])[None] * (2.0 / h))[:, :, None, None]
    right = jnp.cos(jnp.arange(shape[1])[None] * (3.0 / w))[:, None, :, None]
    return images @ jnp.asarray(MIX) + down * right + images[:, :1, :1, :1] * down


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def naive_slide(images, window, stride):
    """Average over windows with mmsegmentation's loop, one crop at a time."""
    n, h, w, _ = images.shape
    total, seen = np.zeros((n, h, w, CLASSES)), np.zeros((1, h, w, 1))
    for i in range(max(h - window[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(w - window[1] + stride[1] - 1, 0) // stride[1] + 1):
            y2, x2 = min(i * stride[0] + window[0], h), min(j * stride[1] + window[1], w)
            y1, x1 = max(y2 - window[0], 0), max(x2 - window[1], 0)
            total[:, y1:y2, x1:x2] += network(images[:, y1:y2, x1:x2])
            seen[:, y1:y2, x1:x2] += 1
    return total / seen


def test_window_origins_equal_values_computed_by_hand():
    assert window_origins(1024, 769, 513) == [0, 255]
    assert window_origins(2048, 769, 513) == [0, 513, 1026, 1279]
    assert window_origins(10, 4, 3) == [0, 3, 6]  # the last window ends at the edge without being moved
    assert window_origins(11, 4, 4) == [0, 4, 7]
    assert window_origins(4, 4, 1) == [0]
    assert window_origins(3, 4, 3) == [0]


def test_the_default_stride_is_that_of_mmsegmentation():
    assert default_stride((769, 769)) == (513, 513)
    assert default_stride((512, 480)) == (341, 320)
    assert default_stride((1, 2)) == (1, 1)


@given(size=st.integers(1, 300), window=st.integers(1, 300), data=st.data())
def test_windows_cover_every_pixel_and_equal_those_of_mmsegmentation(size, window, data):
    stride = data.draw(st.integers(1, window))
    origins = window_origins(size, window, stride)
    seen = np.zeros(size, int)
    for start in origins:
        seen[start : start + window] += 1
    assert (seen > 0).all()
    indices = range(max(size - window + stride - 1, 0) // stride + 1)
    assert origins == [max(min(i * stride + window, size) - window, 0) for i in indices]


@pytest.mark.parametrize(
    ("window", "stride", "actual_stride"),
    [
        ((5, 7), (0, 0), (3, 5)),
        ((5, 7), (2, 7), (2, 7)),
        ((40, 6), (0, 0), (27, 4)),  # taller than the image
        ((40, 40), (0, 0), (27, 27)),
    ],
)
def test_the_mean_over_windows_equals_a_loop_over_crops(window, stride, actual_stride):
    images = noise(2, 13, 18, 2)
    run = jax.jit(lambda images: slide(network, images, None, CLASSES, window=window, stride=stride))
    np.testing.assert_allclose(run(images), naive_slide(images, window, actual_stride), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("size", [(7, 23), (24, 8), (5, 5)])
def test_strips_contain_the_mean_over_windows(size, batch_size):
    weights = np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)

    def network(windows, sizes=None):  # depends on every pixel in a window
        windows = windows.astype(np.float32)
        return windows @ weights + windows.mean((1, 2, 3), keepdims=True)

    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    logits = np.full((*size, 2), np.nan, np.float32)
    for top, strip in slide_in_strips(network, image, window=(8, 9), batch_size=batch_size):
        logits[top : top + len(strip)] = strip
    expected = slide(network, jnp.asarray(image[None], np.float32), None, 2, window=(8, 9), stride=(0, 0))
    np.testing.assert_allclose(logits, expected[0], rtol=1e-5, atol=1e-4)  # the logits are in the hundreds


@pytest.mark.parametrize(
    ("window", "stride", "actual_stride"),
    [((5, 7), (0, 0), (3, 5)), ((5, 7), (2, 7), (2, 7)), ((40, 6), (0, 0), (27, 4)), ((40, 40), (0, 0), (27, 27))],
)
def test_images_of_different_sizes_have_windows_of_their_own(window, stride, actual_stride):
    images, sizes = noise(4, 16, 24, 2), [(13, 18), (16, 24), (4, 19), (1, 1)]

    @jax.jit
    def run(images, sizes):
        return slide(network, images, (sizes[:, 0], sizes[:, 1]), CLASSES, window=window, stride=stride, unit=8)

    for image, (height, width), logits in zip(images, sizes, run(images, jnp.array(sizes)), strict=True):
        expected = naive_slide(image[None, :height, :width], window, actual_stride)
        np.testing.assert_allclose(logits[None, :height, :width], expected, rtol=1e-5, atol=1e-5)
