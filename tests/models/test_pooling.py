import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models.pooling import average_pool_2x2, max_pool_3x3


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 8)])
def test_max_pool_returns_window_maxima_and_sends_the_gradient_to_them(size):
    x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype(np.float32)
    y, pullback = jax.vjp(max_pool_3x3, jnp.asarray(x))
    expected_gradient = np.zeros_like(x)
    for oy in range(y.shape[1]):
        for ox in range(y.shape[2]):
            top, left = max(2 * oy - 1, 0), max(2 * ox - 1, 0)
            window = x[0, top : 2 * oy + 2, left : 2 * ox + 2]
            np.testing.assert_array_equal(y[0, oy, ox], window.max((0, 1)))
            for c in range(2):
                iy, ix = np.unravel_index(window[..., c].argmax(), window.shape[:2])
                expected_gradient[0, top + iy, left + ix, c] += 1
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0], expected_gradient)


@pytest.mark.parametrize(("stride", "rate"), [(2, 1), (1, 1), (1, 2), (1, 4)])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 8)])
def test_average_pool_returns_the_mean_of_the_taps_inside_the_image(size, stride, rate):
    x = np.random.default_rng(0).normal(size=(1, *size, 2)).astype(np.float32)
    y = average_pool_2x2(jnp.asarray(x), stride=stride, rate=rate)
    assert y.shape == (1, -(-size[0] // stride), -(-size[1] // stride), 2)
    for oy in range(y.shape[1]):
        for ox in range(y.shape[2]):
            window = x[:, oy * stride : oy * stride + rate + 1 : rate, ox * stride : ox * stride + rate + 1 : rate]
            np.testing.assert_allclose(y[:, oy, ox], window.mean((1, 2)), rtol=1e-5, atol=1e-6)  # float32 rounding
