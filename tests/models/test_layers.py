import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.layers import BatchNorm, Conv, add_relu, batch_moments, materialize
from deeplab_jax.models.resize import resize_bilinear, resize_by_gather
from deeplab_jax.models.target import compiling_for
from deeplab_jax.runtime.compilation import lean_options


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def target(request):
    """Trace the test's programs for a CPU and for an accelerator. Both run on the CPU."""
    with compiling_for(request.param):
        yield request.param


@pytest.mark.usefixtures("target")
def test_batch_norm_updates_running_statistics_as_pytorch_does():
    x = jnp.array([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 2, 1)  # mean 3, biased variance 3.5, unbiased 14/3
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, False)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.reshape(-1), (np.array([1, 2, 3, 6]) - 3) / np.sqrt(3.5 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.9 * 0 + 0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 * 1 + 0.1 * 14 / 3], rtol=1e-6)


def test_batch_norm_of_a_single_value_returns_the_bias():
    norm = BatchNorm()
    x = jnp.full((1, 1, 1, 2), 7.0)
    variables = norm.init(jax.random.key(0), x, False)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, 0.0)
    assert jnp.isfinite(updated["batch_stats"]["var"]).all()


@pytest.mark.parametrize(("error", "tolerance"), [(0.0, 1e-6), (0.1, 1e-6), (5.0, 2e-5)])
@pytest.mark.usefixtures("target")
def test_the_variance_is_precise_if_the_expected_mean_is_close(error, tolerance):
    """The mean is 1,000 standard deviations. `error` is the error of the expected mean, in standard deviations."""
    x = (1000 + np.random.default_rng(0).normal(size=(2, 64, 64, 3))).astype(np.float32)
    mean, var, count = batch_moments(jnp.asarray(x), np.full(3, 1000 + error, np.float32))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean((0, 1, 2)), rtol=2e-7)
    np.testing.assert_allclose(var, x.astype(np.float64).var((0, 1, 2)), rtol=tolerance)
    assert count == 2 * 64 * 64


@pytest.mark.usefixtures("target")
def test_the_variance_of_a_constant_channel_is_not_negative():
    x = jnp.full((2, 8, 8, 1), 0.1)
    assert batch_moments(x, jnp.full(1, 30.0))[1] >= 0


@pytest.mark.parametrize(("target", "count"), [(("tpu", 1), 1), (("tpu", 8), 0), (("gpu", 1), 0), (("cpu", 1), 0)])
def test_a_barrier_precedes_batch_norm_if_each_tpu_chip_has_one_image(target, count):
    def compute(x):
        with compiling_for(*target):
            return materialize(x)

    assert str(jax.make_jaxpr(compute)(jnp.ones((1, 2, 2, 1)))).count("optimization_barrier") == count


def test_batch_statistics_have_the_same_gradients_on_every_target():
    x = np.random.default_rng(0).normal(2, 3, (2, 5, 7, 3))
    weights = np.random.default_rng(1).normal(size=(2, 3))

    def loss(x, platform):
        with compiling_for(platform):
            mean, var, _ = batch_moments(x, jnp.ones(3))
            return jnp.sum(weights[0] * mean + weights[1] * var)

    with jax.enable_x64(True):
        expected = weights[0] / 70 + weights[1] * 2 / 70 * (x - x.mean((0, 1, 2)))
        for platform in ("cpu", "gpu"):
            np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(x), platform), expected, rtol=1e-9, atol=1e-12)


def test_batch_norm_statistics_stay_float32_under_bfloat16():
    norm = BatchNorm()
    x = jnp.ones((1, 2, 2, 3), jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, False)
    y, updated = norm.apply(variables, x, True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert updated["batch_stats"]["mean"].dtype == jnp.float32


def test_add_relu_is_bit_identical_to_the_relu_of_the_sum():
    x, shortcut = jax.random.normal(jax.random.key(0), (2, 1000)) * jnp.array([[1e-3], [1e3]])
    x, shortcut = jnp.concatenate([x, shortcut, jnp.zeros(3)]), jnp.concatenate([shortcut, -shortcut, jnp.array([0.0, -1, 1])])

    def relu_of_sum(x, shortcut):
        return nn.relu(x + shortcut)

    (y, pullback), (expected, expected_pullback) = jax.vjp(add_relu, x, shortcut), jax.vjp(relu_of_sum, x, shortcut)
    np.testing.assert_array_equal(y, expected)
    dy = jax.random.normal(jax.random.key(1), y.shape)
    for gradient, expected_gradient in zip(pullback(dy), expected_pullback(dy), strict=True):
        np.testing.assert_array_equal(gradient, expected_gradient)


def test_memory_does_not_grow_with_the_number_of_residual_blocks():
    x = jnp.zeros((1, 64, 64, 64))
    kernels = jnp.zeros((8, 1, 1, 64, 64))

    def temporary_bytes(blocks):
        def stage(x, kernels):
            for kernel in kernels[:blocks]:
                x = add_relu(conv2d(nn.relu(conv2d(x, kernel)), kernel), x)
            return x

        jitted = jax.jit(stage, compiler_options=lean_options("cpu"))
        return jitted.lower(x, kernels).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(8) < temporary_bytes(2) + 2 * x.nbytes


def test_resize_uses_half_pixel_centres():
    # The expected values come from PyTorch's interpolate with mode="bilinear" and align_corners=False.
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize_bilinear(x, 1, 4).reshape(-1), [0, 1, 3, 4], atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 11), (21, 5)])
def test_resize_by_gather_matches_resize_bilinear(size, align_corners):
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 3)).astype(np.float32)
    expected = resize_bilinear(x, *size, align_corners=align_corners)
    np.testing.assert_allclose(resize_by_gather(x, *size, align_corners=align_corners), expected, rtol=1e-5, atol=1e-5)
    column = x[:, :1]
    expected = resize_bilinear(column, *size, align_corners=align_corners)
    np.testing.assert_allclose(resize_by_gather(column, *size, align_corners=align_corners), expected, rtol=1e-5, atol=1e-5)


def test_resize_accepts_symbolic_sizes():
    h, w = jax.export.symbolic_shape("h, w")
    double = jax.jit(lambda x: resize_by_gather(x, 2 * x.shape[1], 2 * x.shape[2]))
    exported = jax.export.export(double)(jax.ShapeDtypeStruct((1, h, w, 1), jnp.float32))
    assert exported.out_avals[0].shape == (1, 2 * h, 2 * w, 1)


def test_resize_with_aligned_corners_keeps_the_corner_pixels():
    x = jnp.array([0.0, 10.0, 40.0])[None, :, None, None]
    # The five outputs are sampled at input positions 0, 1/2, 1, 3/2 and 2.
    np.testing.assert_allclose(resize_bilinear(x, 5, 1, align_corners=True)[0, :, 0, 0], [0, 5, 10, 25, 40], rtol=1e-6)
    np.testing.assert_allclose(resize_bilinear(x, 2, 3, align_corners=True)[0, :, :, 0], [[0] * 3, [40] * 3], rtol=1e-6)
    np.testing.assert_allclose(resize_bilinear(x[:, 1:2], 2, 1, align_corners=True)[0, :, 0, 0], [10, 10])


def test_a_parameter_of_another_shape_is_refused():
    layer, x = Conv(4, size=3), jnp.zeros((1, 8, 8, 2))
    with pytest.raises(ScopeParamShapeError, match="kernel"):
        layer.apply({"params": {"kernel": jnp.zeros((3, 3, 5, 4))}}, x)
