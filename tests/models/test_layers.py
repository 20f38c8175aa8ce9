import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from deeplab_jax.models import convolution, winograd
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.layers import BatchNorm, add_relu, average_pool_2x2, batch_moments, materialize, max_pool_3x3
from deeplab_jax.models.resize import resize_bilinear, resize_by_gather
from deeplab_jax.models.target import compiling_for
from deeplab_jax.runtime.compilation import lean_options


def reference_conv(x, kernel, stride, rate, starts=None):
    """Compute a convolution from its definition, in float64.

    The definition is y[o] = sum over taps of x[o * stride + tap * rate - start] kernel[tap], where `starts` has the numbers of
    zeros above and to the left of `x`. By default, they are middle * rate.
    """
    n, h, w, _ = x.shape
    kh, kw, _, features = kernel.shape
    top, left = starts or (kh // 2 * rate, kw // 2 * rate)
    y = np.zeros((n, -(-h // stride), -(-w // stride), features))
    for oy in range(y.shape[1]):
        for ox in range(y.shape[2]):
            for i in range(kh):
                for j in range(kw):
                    iy, ix = oy * stride + i * rate - top, ox * stride + j * rate - left
                    if 0 <= iy < h and 0 <= ix < w:
                        y[:, oy, ox] += x[:, iy, ix] @ kernel[i, j]
    return y


CASES = [  # (height, width), kernel size, stride, rate
    ((5, 6), 1, 1, 1),
    ((5, 6), 1, 2, 1),
    ((7, 4), 3, 1, 1),
    ((7, 8), 3, 2, 1),
    ((9, 6), 3, 1, 4),
    ((9, 6), 3, 2, 2),
    ((3, 4), 3, 1, 6),  # the outer taps only read padding
    ((9, 11), 7, 2, 1),
]


def supported_forms(kernel_size, stride):
    """Return the convolution forms that support a kernel of this size at this stride."""
    return ["xla", "mixed", "products", *["winograd"] * (kernel_size == 3 and stride == 1)]


@pytest.mark.parametrize("form", ["xla", "mixed", "products", "winograd", "auto"])
@pytest.mark.parametrize(("size", "kernel_size", "stride", "rate"), CASES)
def test_every_form_matches_the_definition_of_convolution(form, size, kernel_size, stride, rate):
    if form not in [*supported_forms(kernel_size, stride), "auto"]:
        pytest.skip("Winograd supports only 3x3 kernels at stride 1")
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(kernel_size, kernel_size, 3, 4))
    y = conv2d(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride=stride, rate=rate, form=form)
    # The tolerance allows for float32 sums of up to 147 terms.
    np.testing.assert_allclose(y, reference_conv(x, kernel, stride, rate), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [3, 16])  # the weight gradient has a special case for fewer than 16 channels
@pytest.mark.parametrize(("size", "kernel_size", "stride", "rate"), CASES)
def test_every_form_has_the_same_gradients(channels, size, kernel_size, stride, rate):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, *size, channels)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, channels, 4)), jnp.float32)

    def gradients(form):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(conv2d(x, kernel, stride=stride, rate=rate, form=form)))

        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    for form in supported_forms(kernel_size, stride)[1:]:
        for actual, expected in zip(gradients(form), gradients("xla"), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)  # the float32 summation order differs


@pytest.mark.parametrize(("kernel_size", "stride", "rate"), [(3, 1, 1), (3, 2, 1), (5, 2, 1), (5, 1, 2), (5, 1, 4)])
def test_a_depthwise_convolution_convolves_each_channel_separately(kernel_size, stride, rate):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 7, 9, 3)), rng.normal(size=(kernel_size, kernel_size, 1, 3))
    expected = [reference_conv(x[..., c : c + 1], kernel[..., c : c + 1], stride, rate) for c in range(3)]
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def value_and_gradients(form):
        y, pullback = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride=stride, rate=rate, form=form), x, kernel)
        return y, *pullback(jnp.sin(y))

    run = jax.jit(value_and_gradients, static_argnums=0)
    by_shifts, by_xla = run("shifts"), run("xla")
    np.testing.assert_allclose(by_shifts[0], np.concatenate(expected, -1), rtol=1e-4, atol=1e-5)
    for actual, expected in zip(by_shifts, by_xla, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)  # the float32 summation order differs


def same_starts(size, kernel_size, stride, rate):
    """Return the zeros above and to the left, by the definition of "SAME" in TensorFlow's guide to tf.nn."""

    def start(n):
        return max((-(-n // stride) - 1) * stride + rate * (kernel_size - 1) + 1 - n, 0) // 2

    return start(size[0]), start(size[1])


SAME_CASES = [  # (height, width), kernel size, stride, rate
    ((8, 6), 3, 2, 1),
    ((7, 8), 3, 2, 1),
    ((9, 12), 5, 2, 1),
    ((2, 1), 5, 2, 1),
    ((10, 9), 3, 2, 2),
    ((8, 6), 1, 2, 1),
    ((8, 6), 5, 1, 2),
]


@pytest.mark.parametrize(("size", "kernel_size", "stride", "rate"), SAME_CASES)
def test_same_padding_is_tensorflows(size, kernel_size, stride, rate):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(kernel_size, kernel_size, 3, 4))
    starts = same_starts(size, kernel_size, stride, rate)
    expected = reference_conv(x, kernel, stride, rate, starts)
    depthwise = [reference_conv(x[..., c : c + 1], kernel[:, :, :1, c : c + 1], stride, rate, starts) for c in range(3)]
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)

    def value_and_gradients(form, kernel):
        convolve = functools.partial(conv2d, stride=stride, rate=rate, padding="same", form=form)
        y, pullback = jax.vjp(convolve, x, kernel)
        return y, *pullback(jnp.sin(y))

    run = jax.jit(value_and_gradients, static_argnums=0)
    full, by_channel = [run(form, kernel) for form in ("xla", "mixed", "products", "auto")], kernel[:, :, :1, :3]
    for values, y in ((full, expected), ([run(form, by_channel) for form in ("xla", "shifts")], np.concatenate(depthwise, -1))):
        for y_of_form, *gradients in values:
            np.testing.assert_allclose(y_of_form, y, rtol=1e-4, atol=1e-4)  # float32 sums of up to 75 terms
            for actual, other in zip(gradients, values[0][1:], strict=True):
                np.testing.assert_allclose(actual, other, rtol=1e-4, atol=1e-4)


def test_same_padding_of_symbolic_sizes_depends_on_the_size_of_the_image():
    kernel = np.random.default_rng(1).normal(size=(5, 5, 1, 3)).astype(np.float32)
    h, w = jax.export.symbolic_shape("h, w")
    convolve = functools.partial(conv2d, kernel=kernel, stride=2, padding="same")
    exported = jax.export.export(jax.jit(convolve))(jax.ShapeDtypeStruct((1, h, w, 3), jnp.float32))
    for size in ((8, 6), (7, 8), (9, 5), (1, 2)):
        x = jnp.asarray(np.random.default_rng(2).normal(size=(1, *size, 3)), jnp.float32)
        np.testing.assert_allclose(exported.call(x), convolve(x), rtol=1e-5, atol=1e-5)


def test_same_padding_rejects_strides_above_2():
    with pytest.raises(ValueError, match=r"`stride` \(=3\) must be 1 or 2"):
        conv2d(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 2)), stride=3, padding="same")


@pytest.mark.parametrize(("stride", "rate"), [(1, 1), (2, 1), (1, 2)])
def test_a_grouped_convolution_convolves_each_group_separately(stride, rate):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, 9, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 12)), jnp.float32)  # three groups of 2 input and 4 output channels
    convolve = functools.partial(conv2d, stride=stride, rate=rate)

    def by_group(x, kernel):
        parts = [convolve(x[..., 2 * g : 2 * g + 2], kernel[..., 4 * g : 4 * g + 4], form="xla") for g in range(3)]
        return jnp.concatenate(parts, -1)

    def value_and_gradients(function):
        y, pullback = jax.vjp(function, x, kernel)
        return y, *pullback(jnp.sin(y))

    for actual, expected in zip(value_and_gradients(convolve), value_and_gradients(by_group), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)  # the float32 summation order differs


@pytest.mark.parametrize(("form", "channels"), [("shifts", 3), ("products", 1), ("products", 2)])
def test_forms_reject_kernels_with_unsupported_groups(form, channels):
    with pytest.raises(ValueError, match=form):
        conv2d(jnp.zeros((1, 4, 4, 6 if channels == 2 else 3)), jnp.zeros((3, 3, channels, 6)), form=form)


@pytest.mark.parametrize(("size", "stride"), [(5, 1), (3, 2)])
def test_winograd_rejects_kernels_other_than_3x3_at_stride_1(size, stride):
    with pytest.raises(ValueError, match="winograd"):
        conv2d(jnp.zeros((1, 4, 4, 2)), jnp.zeros((size, size, 2, 2)), stride=stride, form="winograd")


def test_taps_are_added_in_float32_under_bfloat16():
    # The middle tap contributes 256 and each other tap 1. A bfloat16 sum, with its 8-bit significand, would lose every 1.
    kernel = jnp.ones((3, 3, 1, 1), jnp.bfloat16).at[1, 1].set(256)
    y = conv2d(jnp.ones((1, 9, 9, 1), jnp.bfloat16), kernel, rate=4, form="products")
    assert y.dtype == jnp.bfloat16
    assert y[0, 4, 4, 0] == 264


def test_symbolic_sizes_fall_back_to_xla():
    (h,) = jax.export.symbolic_shape("h")
    assert convolution._fastest_form((3, 3, 8, 8), (1, h, 8, 8), jnp.dtype(jnp.float32), 1, 12) == "xla"


@pytest.mark.parametrize("form", ["products", "winograd"])
def test_bands_do_not_change_the_result_of_a_convolution(monkeypatch, form):
    rng = np.random.default_rng(2)
    x, kernel = (
        jnp.asarray(rng.normal(size=(2, 11, 6, 4)), jnp.float32),
        jnp.asarray(rng.normal(size=(3, 3, 4, 4)), jnp.float32),
    )

    def value_and_gradients():
        y, pullback = jax.vjp(lambda x, kernel: conv2d(x, kernel, rate=2, form=form), x, kernel)
        return y, *pullback(jnp.cos(y))

    in_one_band = value_and_gradients()
    for module in (convolution, winograd):
        monkeypatch.setattr(module, "BAND_BYTES", 1000)  # one or two Winograd tile rows, or five pixel rows
    for actual, expected in zip(value_and_gradients(), in_one_band, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)  # rounding depends on the matrix size


def test_winograd_takes_fewer_multiplications_than_a_direct_convolution():
    assert winograd.count_multiplications(8, 8, 1) == 4 * 64  # 16 per tile of 4 outputs; a direct convolution takes 36
    assert winograd.count_multiplications(33, 33, 4) == 4 * 40 * 40  # tiles of 8x8 outputs overhang the edge


@pytest.mark.parametrize(
    ("kernel", "shape", "dtype", "stride", "rate", "form"),
    [
        ((1, 1, 256, 64), (1, 9, 9, 256), jnp.float32, 1, 1, "products"),
        ((3, 3, 256, 256), (2, 33, 33, 256), jnp.float32, 1, 2, "winograd"),
        ((3, 3, 256, 256), (2, 33, 33, 256), jnp.bfloat16, 1, 2, "mixed"),
        ((3, 3, 128, 128), (2, 65, 65, 128), jnp.float32, 2, 1, "mixed"),
        ((3, 3, 2048, 256), (1, 128, 256, 2048), jnp.float32, 1, 12, "products"),  # Winograd would need too much memory
        ((3, 3, 512, 256), (1, 128, 256, 512), jnp.float32, 1, 12, "winograd"),
        ((3, 3, 512, 512), (2, 33, 33, 512), jnp.float32, 1, 4, "winograd"),  # 4 * 40^2 * 1.2 = 7,680 < 91^2
        ((3, 3, 512, 512), (2, 33, 33, 512), jnp.float32, 1, 24, "products"),  # 4 * 48^2 > 51^2
        ((3, 3, 8, 8), (2, 33, 33, 8), jnp.float32, 1, 1, "mixed"),
        ((5, 5, 1, 8), (2, 33, 33, 8), jnp.float32, 2, 1, "shifts"),
    ],
)
def test_the_form_that_saves_the_most_work_is_chosen(kernel, shape, dtype, stride, rate, form):
    assert convolution._fastest_form(kernel, shape, jnp.dtype(dtype), stride, rate) == form


def test_programs_for_accelerators_use_xlas_convolution():
    def convolve(x, kernel):
        with compiling_for("tpu"):
            return conv2d(x, kernel)

    shapes = jax.ShapeDtypeStruct((1, 9, 9, 256), jnp.float32), jax.ShapeDtypeStruct((1, 1, 256, 64), jnp.float32)
    # On this CPU, the convolution would be a matrix product.
    assert "conv_general_dilated" in str(jax.make_jaxpr(convolve)(*shapes))
    assert "dot_general" in str(jax.make_jaxpr(conv2d)(*shapes))


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
