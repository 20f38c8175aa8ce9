import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import MeshConfig
from deeplab_jax.models import convolution, depthwise, winograd
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.target import compiling_for
from deeplab_jax.runtime.mesh import make_mesh


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
    convolve = jax.jit(functools.partial(conv2d, stride=stride, rate=rate, form=form))
    y = convolve(x.astype(np.float32), kernel.astype(np.float32))
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
def test_a_depthwise_convolution_convolves_each_channel_separately(kernel_size, stride, rate, monkeypatch):
    monkeypatch.setattr(depthwise, "CACHED_BYTES", 400)  # several bands, the last one with fewer rows
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("size", "kernel_size", "stride", "rate"), [((8, 7), 3, 2, 1), ((9, 6), 3, 1, 2), ((11, 12), 5, 2, 1)])
def test_a_convolution_without_padding_reads_only_the_image(size, kernel_size, stride, rate):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(kernel_size, kernel_size, 3, 4))
    height, width = ((side - rate * (kernel_size - 1) - 1) // stride + 1 for side in size)
    expected = reference_conv(x, kernel, stride, rate, (0, 0))[:, :height, :width]
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    for form in ("xla", "mixed", "auto"):
        y = jax.jit(functools.partial(conv2d, stride=stride, rate=rate, padding="valid", form=form))(x, kernel)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)  # float32 sums of up to 75 terms


@pytest.mark.parametrize("form", ["mixed", "products", "winograd"])
@pytest.mark.parametrize("rate", [1, 2])
def test_every_form_and_its_gradients_support_valid_padding(form, rate):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 9, 12, 3), (3, 3, 3, 4)))

    def compute(form):
        y, pull_back = jax.vjp(lambda x, kernel: conv2d(x, kernel, rate=rate, padding="valid", form=form), x, kernel)
        return y, *pull_back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    run = jax.jit(compute, static_argnums=0)
    for actual, expected in zip(run(form), run("xla"), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)  # float32 sums in another order


@pytest.mark.parametrize(("stride", "rate"), [(1, 1), (2, 1), (1, 3)])
def test_a_border_is_what_a_depthwise_convolution_reads_outside_the_image(stride, rate):
    rng = np.random.default_rng(0)
    x, kernel, border = rng.normal(size=(2, 8, 7, 3)), rng.normal(size=(3, 3, 1, 3)), rng.normal(size=(1, 1, 1, 3))
    padded = np.broadcast_to(border, (2, 8 + 2 * rate, 7 + 2 * rate, 3)).copy()
    padded[:, rate:-rate, rate:-rate] = x
    full = [reference_conv(padded[..., c : c + 1], kernel[..., c : c + 1], 1, rate) for c in range(3)]
    expected = np.concatenate(full, -1)[:, rate:-rate:stride, rate:-rate:stride]
    x, kernel, border = (jnp.asarray(each, jnp.float32) for each in (x, kernel, border))
    y = conv2d(x, kernel, stride=stride, rate=rate, border=border)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)  # float32 sums of 18 terms


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

    run = jax.jit(value_and_gradients, static_argnums=0)
    for actual, expected in zip(run(convolve), run(by_group), strict=True):
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


@pytest.mark.slow
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_device_convolves_the_groups_of_its_own_images(dtype):
    mesh = make_mesh(MeshConfig(data=4))
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((4, 9, 7, 8), (3, 3, 2, 8)))

    def convolve(x, kernel):
        return conv2d(x, kernel, stride=2)

    def convolve_on_mesh(x, kernel):
        with compiling_for("cpu", mesh=mesh):
            return convolve(x, kernel)

    def add_up(convolve, x, kernel):
        return jnp.sum(jnp.square(convolve(x, kernel).astype(jnp.float32)))

    gradient = jax.grad(functools.partial(add_up, convolve_on_mesh), (0, 1))
    shardings = (NamedSharding(mesh, P("data")), NamedSharding(mesh, P()))
    compiled = jax.jit(gradient, in_shardings=shardings).lower(x, kernel).compile()
    assert "all-gather" not in compiled.as_text()
    expected = jax.grad(functools.partial(add_up, convolve), (0, 1))(x, kernel)
    for actual, wanted in zip(compiled(x, kernel), expected, strict=True):
        actual, wanted = (np.asarray(each, np.float32) for each in (actual, wanted))
        # The sums are in float32, and their results are rounded to the dtype.
        assert np.linalg.norm(actual - wanted) < jnp.finfo(dtype).eps * np.linalg.norm(wanted)
