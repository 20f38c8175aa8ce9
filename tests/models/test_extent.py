"""Tests that operations give the same values and gradients on rows split over four devices as on full images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables, tiny_resnet18
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.models.backbones.mobilenetv3 import SqueezeExcitation
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.decoder import Decoder
from deeplab_jax.models.layers import BatchNorm, Conv, Dropout, broadcast_like, image_mean
from deeplab_jax.models.operations import interpreted_by, operation
from deeplab_jax.models.pooling import average_pool_2x2, max_pool_3x3
from deeplab_jax.models.resize import resize_bilinear, resize_like
from deeplab_jax.models.rows import compute_on_rows, split_rows
from deeplab_jax.runtime.mesh import make_mesh, padded_height

GARBAGE = 7.0  # the padding value, which must not affect any result
SPLIT = P(None, "spatial")


def make_rows(height, devices, output_stride=1, margin=0):
    """Return a mesh and the distribution of `height` image rows over it."""
    mesh = make_mesh(MeshConfig(data=1, spatial=devices))
    return mesh, split_rows(mesh, height, output_stride, margin)


def pad_rows(x, height):
    """Return `x` padded with garbage to the given height."""
    return np.pad(x, ((0, 0), (0, height - x.shape[1]), *[(0, 0)] * (x.ndim - 2)), constant_values=GARBAGE)


def map_over_rows(function, mesh, rows, specs=(SPLIT,), out=SPLIT):
    """Return `function` on split rows, which interpret its operations."""

    def call(*args, rows):
        with interpreted_by(rows):
            return function(*args)

    return compute_on_rows(call, mesh, rows, specs, out)


def assert_same(apply, x, *replicated, devices=4, output_stride=1, margin=0):
    """Check that splitting the rows of `x` over devices does not change `apply(x, *replicated)` or its gradients.

    The tolerances allow for a different float32 summation order.
    """
    mesh, rows = make_rows(x.shape[1], devices, output_stride, margin)
    split_apply = map_over_rows(apply, mesh, rows, (SPLIT, *[P()] * len(replicated)))

    def value_and_gradients(function, cotangent, *args):
        y, pullback = jax.vjp(function, *args)
        return y, *pullback(jnp.pad(cotangent, ((0, 0), (0, y.shape[1] - cotangent.shape[1]), (0, 0), (0, 0))))

    run = jax.jit(value_and_gradients, static_argnums=0)
    shape = jax.eval_shape(apply, x, *replicated).shape
    cotangent = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    y, dx, *others = run(apply, cotangent, x, *replicated)
    padded = pad_rows(x, padded_height(x.shape[1], devices, output_stride))
    split_y, split_dx, *split_others = run(split_apply, cotangent, padded, *replicated)
    np.testing.assert_allclose(split_y[:, : y.shape[1]], y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(split_dx[:, : x.shape[1]], dx, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(split_dx[:, x.shape[1] :], 0)
    for a, b in zip(jax.tree.leaves(split_others), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def random_image(height, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(2, height, 6, channels)).astype(np.float32)


@pytest.mark.parametrize(
    ("form", "height", "kernel_size", "stride", "rate"),
    [
        ("xla", 16, 3, 1, 1),
        ("mixed", 13, 3, 1, 2),
        ("products", 9, 3, 1, 6),  # the halo spans two devices on each side
        ("xla", 5, 3, 1, 2),  # some devices hold only padding
        ("mixed", 16, 3, 2, 1),
        ("products", 17, 3, 2, 2),
        ("xla", 17, 1, 2, 1),
        ("mixed", 17, 7, 2, 1),
        ("winograd", 13, 3, 1, 2),
        ("winograd", 9, 3, 1, 6),
    ],
)
def test_convolution_on_split_rows(form, height, kernel_size, stride, rate):
    kernel = np.random.default_rng(1).normal(size=(kernel_size, kernel_size, 3, 4)).astype(np.float32)

    def apply(x, kernel):
        return conv2d(x, kernel, stride=stride, rate=rate, form=form)

    assert_same(apply, random_image(height), kernel, output_stride=stride)


@pytest.mark.parametrize(("height", "stride", "rate"), [(17, 2, 1), (13, 1, 2), (5, 1, 4)])
def test_depthwise_convolution_on_split_rows(height, stride, rate):
    kernel = np.random.default_rng(1).normal(size=(5, 5, 1, 3)).astype(np.float32)

    def apply(x, kernel):
        return conv2d(x, kernel, stride=stride, rate=rate)

    assert_same(apply, random_image(height), kernel, output_stride=stride)


@pytest.mark.parametrize(("height", "kernel_size", "rate"), [(16, 3, 1), (17, 3, 1), (18, 5, 1), (6, 5, 2), (16, 1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_convolution_with_same_padding_on_split_rows(height, kernel_size, rate, channels):
    kernel = np.random.default_rng(1).normal(size=(kernel_size, kernel_size, channels, 3)).astype(np.float32)

    def apply(x, kernel):
        return conv2d(x, kernel, stride=2, rate=rate, padding="same")

    assert_same(apply, random_image(height), kernel, output_stride=2)


@pytest.mark.parametrize(("height", "stride", "rate"), [(17, 2, 1), (13, 1, 2), (5, 1, 4)])
def test_a_depthwise_convolution_with_a_border_on_split_rows(height, stride, rate):
    rng = np.random.default_rng(1)
    kernel, border = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 1, 3), (1, 1, 1, 3)))

    def apply(x, kernel, border):
        return conv2d(x, kernel, stride=stride, rate=rate, border=border)

    assert_same(apply, random_image(height), kernel, border, output_stride=stride)


@pytest.mark.parametrize("height", [16, 17, 9, 10])
def test_a_network_whose_first_convolution_has_no_padding_on_split_rows(height):
    rng = np.random.default_rng(1)
    kernels = [rng.normal(size=(3, 3, 3, 3)).astype(np.float32) for _ in range(2)]

    def apply(x, *kernels):
        y = conv2d(x, kernels[0], stride=2, padding="valid")
        y = conv2d(y, kernels[1], stride=2)
        return resize_like(y, x)

    assert_same(apply, random_image(height), *kernels, output_stride=4, margin=2)


def test_an_unexpected_convolution_without_padding_is_refused():
    with pytest.raises(ValueError, match=r"`margin` \(=0\) must be 2 \* 1"):
        assert_same(lambda x: conv2d(x, jnp.zeros((3, 3, 3, 3)), stride=2, padding="valid"), random_image(16), output_stride=2)


@pytest.mark.parametrize(("height", "stride", "rate"), [(17, 2, 1), (13, 1, 2)])
def test_grouped_convolution_on_split_rows(height, stride, rate):
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 8)).astype(np.float32)

    def apply(x, kernel):
        return conv2d(x, kernel, stride=stride, rate=rate)

    assert_same(apply, random_image(height, 4), kernel, output_stride=stride)


def test_squeeze_and_excitation_on_split_rows():
    layer = SqueezeExcitation(Conv)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    assert_same(lambda x, params: layer.apply({"params": params}, x), random_image(13), variables["params"])


@pytest.mark.parametrize("height", [16, 17, 5])
def test_max_pool_on_split_rows(height):
    assert_same(max_pool_3x3, random_image(height), output_stride=2)


@pytest.mark.parametrize(("height", "stride", "rate"), [(16, 2, 1), (17, 2, 1), (13, 1, 2), (5, 1, 4)])
def test_average_pool_on_split_rows(height, stride, rate):
    assert_same(lambda x: average_pool_2x2(x, stride=stride, rate=rate), random_image(height), output_stride=stride)


@pytest.mark.parametrize("height", [16, 13])
def test_batch_statistics_and_image_mean_on_split_rows(height):
    x = random_image(height)

    def normalize(x):
        variables = {"params": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}
        stats = {"batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
        return BatchNorm().apply(variables | stats, x, True, mutable=["batch_stats"])

    assert_same(lambda x: normalize(x)[0], x)
    mesh, rows = make_rows(height, 4)
    on_mesh = jax.jit(map_over_rows(lambda x: normalize(x)[1], mesh, rows, out=P()))
    padded, expected = pad_rows(x, padded_height(height, 4, 1)), jax.jit(lambda x: normalize(x)[1])(x)
    for a, b in zip(jax.tree.leaves(on_mesh(padded)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert_same(lambda x: x + broadcast_like(image_mean(x), x), x)


def test_dropout_drops_the_same_values_on_split_rows():
    x = jnp.ones((2, 13, 6, 3))

    def drop(x):
        return Dropout(0.4).apply({}, x, True, rngs={"dropout": jax.random.key(1)})

    assert_same(drop, x)
    dropped = np.asarray(drop(jnp.ones((64, 64, 64, 1))))
    assert set(np.unique(dropped)) == {0, np.float32(1 / np.float32(0.6))}
    assert np.mean(dropped == 0) == pytest.approx(0.4, abs=0.005)  # the tolerance is 5 standard deviations
    expected = nn.Dropout(0.4, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(1)})
    np.testing.assert_array_equal(drop(x), expected)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("height", [64, 65, 33])
def test_resizing_to_the_image_size_on_split_rows(height, align_corners):
    features = random_image(-(-height // 8), channels=2)
    mesh, rows = make_rows(height, 4, 8)
    expected = resize_bilinear(features, height, 48, align_corners=align_corners)
    padded = pad_rows(features, padded_height(height, 4, 8) // 8)
    like = np.zeros((2, padded_height(height, 4, 8), 48, 1), np.float32)
    for by_gather in (False, True):
        resize = functools.partial(resize_like, align_corners=align_corners, by_gather=by_gather)
        on_mesh = jax.jit(map_over_rows(resize, mesh, rows, (SPLIT, SPLIT)))
        np.testing.assert_allclose(on_mesh(padded, like)[:, :height], expected, rtol=1e-4, atol=1e-5)


def test_programs_for_split_rows_do_not_ask_for_their_device():
    """XLA refuses some of those that do if the mesh also splits the batch."""
    mesh = make_mesh(MeshConfig(data=2, spatial=2))
    rows = split_rows(mesh, 13, 4)

    def apply(x, kernel):
        features = max_pool_3x3(conv2d(x, kernel, rate=2, stride=2))
        features = features + broadcast_like(image_mean(features), features)
        return Dropout(0.4).apply({}, resize_like(features, x), True, rngs={"dropout": jax.random.key(1)})

    def loss(x, kernel):
        return jnp.sum(map_over_rows(apply, mesh, rows, (SPLIT, P()))(x, kernel))

    x, kernel = np.zeros((2, padded_height(13, 2, 4), 6, 3), np.float32), np.zeros((3, 3, 3, 3), np.float32)
    text = jax.jit(jax.grad(loss, argnums=1)).lower(x, kernel).as_text()
    assert "sdy.manual_computation" in text
    assert "partition_id" not in text


@pytest.mark.slow
def test_a_decoder_on_split_rows():
    decoder = Decoder(features=3, low_level_width=2)
    variables = decoder.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 8, 8, 3)), False)

    def apply(x, params):
        low = max_pool_3x3(x)
        last = max_pool_3x3(max_pool_3x3(low))
        return decoder.apply(variables | {"params": params}, last, low, False)

    assert_same(apply, random_image(37), variables["params"], output_stride=8)


SWITCHES = [
    {"output_stride": 8, "aux_head": True},
    {"output_stride": 16, "decoder_width": 8},
    {"output_stride": 8, "aux_head": True, "backbone": "mobilenetv3_large", "multi_grid": (1.0, 1.0, 1.0)},
    {"output_stride": 8, "aux_head": True, "backbone": "resnext50_32x4d"},
    {
        "output_stride": 16,
        "aspp_conv": "depthwise+bn+relu+1x1",
        "fusion": "1x1+depthwise+1x1",
        "decoder_width": 8,
        "decoder_conv": "depthwise+bn+1x1",
    },
    {"output_stride": 16, "aux_head": True, "backbone": "efficientnet_lite0"},
    {"output_stride": 16, "decoder_width": 8, "backbone": "xception41"},
    {"output_stride": 8, "aux_head": True, "backbone": "mobilenetv2_tf"},
    {"output_stride": 8, "decoder_width": 8, "backbone": "mobilenetv2_vainf"},
]


@pytest.mark.long
@pytest.mark.parametrize(
    "switches",
    SWITCHES,
    ids=[
        "aux_head",
        "decoder",
        "mobilenetv3",
        "resnext",
        "separable",
        "efficientnet_lite0",
        "xception",
        "mobilenetv2_tf",
        "mobilenetv2_vainf",
    ],
)
def test_a_full_network_on_split_rows_in_float64(switches):
    """Compare loss, statistics and gradients in float64.

    In float32, rounding decides whether ReLU passes the gradient of an activation near 0, and such differences could hide an
    error.
    """
    height, devices = 65, 4
    with jax.enable_x64(True):
        config = tiny_resnet18(**switches, dtype="float64")
        model = DeepLabV3(config, 5)
        x = np.random.default_rng(0).normal(size=(2, height, 40, 3))
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_variables(model))
        mesh, rows = make_rows(height, devices, config.output_stride, find_backbone(config.backbone).margin)

        def loss(params, x, rows):
            state = {"params": params, "batch_stats": variables["batch_stats"]}
            with interpreted_by(rows):
                outputs, updated = model.apply(state, x, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)})
                resized = [resize_like(each, x, align_corners=config.align_corners) for each in outputs if each is not None]
            total = 0.0
            for scores in resized:
                values = jnp.square(scores) * jnp.arange(1, 6)[None, None, None]
                total += jnp.sum(values) if rows is None else jax.lax.psum(jnp.sum(rows.fill(values, 0.0)), "spatial")
            return total, updated

        on_mesh = compute_on_rows(loss, mesh, rows, (P(), SPLIT), P())
        gradient = jax.jit(jax.value_and_grad(lambda p, x: loss(p, x, None), has_aux=True))(variables["params"], x)
        padded = pad_rows(x, padded_height(height, devices, config.output_stride))
        split_gradient = jax.jit(jax.value_and_grad(on_mesh, has_aux=True))(variables["params"], padded)
        for a, b in zip(jax.tree.leaves(split_gradient), jax.tree.leaves(gradient), strict=True):
            # The tolerance allows for float32 resize weights.
            assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b) + 1e-9


def test_an_operation_without_support_for_split_rows_is_rejected():
    @operation
    def blur(x):
        return x

    _, rows = make_rows(8, 4)
    with interpreted_by(rows), pytest.raises(ConfigError, match=r"`mesh.spatial` \(=4\) cannot split .* operation blur "):
        blur(jnp.zeros((1, 2, 2, 1)))
