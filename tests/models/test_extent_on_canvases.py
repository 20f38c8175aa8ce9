"""Tests that images of different sizes on one canvas give the same values as each image alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables, tiny_model, tiny_resnet18
from jax.sharding import PartitionSpec as P

from deeplab_jax.config import EvalConfig, MeshConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation import inference
from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.extent import place_on_canvas
from deeplab_jax.models.layers import (
    batch_moments,
    broadcast_like,
    concatenate,
    image_mean,
    scale_channels,
)
from deeplab_jax.models.operations import interpreted_by
from deeplab_jax.models.pooling import average_pool_2x2, max_pool_3x3
from deeplab_jax.models.resize import resize_axis_of_each, resize_like
from deeplab_jax.models.rows import compute_on_rows, split_rows
from deeplab_jax.runtime.mesh import make_mesh

CANVAS = (32, 64)  # divisible by every output stride
SIZES = ((32, 64), (31, 18), (1, 1))  # each size compiles its own reference programs
GARBAGE = 7.0  # the padding value, which must not affect any result


def draw_images(channels, sizes=SIZES, canvas=CANVAS, garbage=GARBAGE):
    """Return random images, and the same images in the top left corners of one array."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(*size, channels)).astype(np.float32) for size in sizes]
    on_canvas = np.full((len(images), *canvas, channels), garbage, np.float32)
    for row, image in zip(on_canvas, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return images, on_canvas


def run_on_canvas(function, on_canvas, sizes=SIZES, margin=0):
    """Return `function` of the images on the canvas, interpreted within their true sizes."""

    @jax.jit
    def run(x, sizes):
        with interpreted_by(place_on_canvas((sizes[:, 0], sizes[:, 1]), x.shape[1:3], None, margin)):
            return function(x)

    return run(on_canvas, jnp.array(sizes))


def assert_same(function, channels=3, rtol=1e-5, sizes=SIZES, margin=0):
    images, on_canvas = draw_images(channels, sizes)
    values = run_on_canvas(function, on_canvas, sizes, margin)
    run_alone = jax.jit(function)
    for image, value in zip(images, values, strict=True):
        expected = run_alone(image[None])[0]
        inside = value[: expected.shape[0], : expected.shape[1]]
        np.testing.assert_allclose(inside, expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "kernel_shape", "stride", "rate"),
    [
        ("xla", (3, 3, 3, 4), 1, 1),
        ("mixed", (7, 7, 3, 4), 2, 1),
        ("products", (3, 3, 3, 4), 2, 2),
        ("winograd", (3, 3, 3, 4), 1, 6),
        ("shifts", (5, 5, 1, 3), 2, 1),
        ("xla", (1, 1, 3, 4), 2, 1),
    ],
)
def test_convolution_on_a_canvas(form, kernel_shape, stride, rate):
    kernel = np.random.default_rng(1).normal(size=kernel_shape).astype(np.float32)
    assert_same(lambda x: conv2d(x, kernel, stride=stride, rate=rate, form=form))


@pytest.mark.parametrize(
    ("kernel_shape", "stride", "rate"), [((3, 3, 3, 4), 2, 1), ((5, 5, 1, 3), 2, 2), ((1, 1, 3, 4), 2, 1), ((5, 5, 1, 3), 1, 1)]
)
def test_convolution_with_same_padding_on_a_canvas(kernel_shape, stride, rate):
    kernel = np.random.default_rng(1).normal(size=kernel_shape).astype(np.float32)
    assert_same(lambda x: conv2d(x, kernel, stride=stride, rate=rate, padding="same"))


def test_a_depthwise_convolution_with_a_border_on_a_canvas():
    rng = np.random.default_rng(1)
    kernel, border = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 3, 1, 3), (1, 1, 1, 3)))
    for stride, rate in ((1, 1), (2, 1), (1, 4)):
        assert_same(functools.partial(conv2d, kernel=kernel, stride=stride, rate=rate, border=border))


def test_a_network_whose_first_convolution_has_no_padding_on_a_canvas():
    first, second = np.random.default_rng(1).normal(size=(2, 3, 3, 3, 3)).astype(np.float32)

    def apply(x):
        return resize_like(conv2d(conv2d(x, first, stride=2, padding="valid"), second, stride=2), x)

    assert_same(apply, margin=2)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: max_pool_3x3(max_pool_3x3(x)),
        lambda x: average_pool_2x2(x, stride=2),
        lambda x: average_pool_2x2(x, stride=1, rate=4),
        lambda x: scale_channels(x, image_mean(x)),
        lambda x: concatenate([broadcast_like(image_mean(max_pool_3x3(x)), x), x]),
    ],
    ids=["max pool", "strided average", "dilated average", "squeeze", "image pooling"],
)
def test_pools_and_means_on_a_canvas(function):
    assert_same(function)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("by_gather", [False, True])
def test_resizing_on_a_canvas(align_corners, by_gather):
    resize = functools.partial(resize_like, align_corners=align_corners, by_gather=by_gather)
    assert_same(lambda x: resize(max_pool_3x3(max_pool_3x3(max_pool_3x3(x))), x))
    assert_same(lambda x: resize(max_pool_3x3(max_pool_3x3(x)), max_pool_3x3(x)))


def test_statistics_for_training_are_refused():
    with pytest.raises(ConfigError, match="different sizes cannot share a batch because the operation batch_moments"):
        run_on_canvas(lambda x: batch_moments(x, np.zeros(3, np.float32))[0], draw_images(3)[1])


def test_arrays_that_would_give_wrong_values_are_refused():
    model = DeepLabV3(tiny_model(output_stride=8), 5)
    sizes, images = jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 36, 48, 3), jnp.uint8)
    with pytest.raises(ValueError, match=r"\(36, 48\) is not divisible by the output stride 8"):
        inference.logits({}, images, sizes, model=model, protocol=EvalConfig())
    resize = functools.partial(resize_axis_of_each, axis=1, length=2**16, align_corners=False)
    lengths = jax.ShapeDtypeStruct((1,), np.int32)
    with pytest.raises(ValueError, match="too large for 32-bit sampling positions"):
        jax.eval_shape(
            lambda x, size: resize(x, size=size, new_size=size), jax.ShapeDtypeStruct((1, 2**14, 1, 1), np.float32), lengths
        )


NETWORKS = {
    "stride 8": tiny_model(output_stride=8),
    "stride 32": tiny_model(output_stride=32, align_corners=True),
    "decoder": tiny_resnet18(decoder_width=8, low_level_width=4, align_corners=True),
    "separable": tiny_resnet18(aspp_conv="depthwise+bn+relu+1x1", decoder_width=8, decoder_conv="depthwise+1x1"),
    "deep stem": tiny_resnet18(output_stride=8, stem="deep"),
    "mobilenetv3": tiny_model(backbone="mobilenetv3_large", output_stride=16, multi_grid=(1.0, 1.0, 1.0)),
    "mobilenetv2_vainf": tiny_model(backbone="mobilenetv2_vainf", output_stride=16),
    "efficientnet_lite0": tiny_model(backbone="efficientnet_lite0", output_stride=16),
    "xception": tiny_model(backbone="xception41", output_stride=16, decoder_width=8),
}
SLOW = ("decoder", "separable", "deep stem", "mobilenetv3", "mobilenetv2_vainf", "efficientnet_lite0")
MARKS = dict.fromkeys(SLOW, pytest.mark.slow)
MARKS["xception"] = pytest.mark.long


def assert_same_logits(config, protocol=None, sizes=SIZES, canvas=CANVAS):
    """Check that the logits on a canvas are those of each image alone.

    The tolerance allows for different float32 summation orders in up to 40 layers.
    """
    model = DeepLabV3(config, 5)
    variables = random_variables(model)
    run = jax.jit(functools.partial(inference.logits, model=model, protocol=protocol or EvalConfig()))
    images, on_canvas = draw_images(3, sizes, canvas, garbage=128)
    images = [50 * image + 128 for image in images]
    logits = run(variables, 50 * on_canvas + 128, np.array(sizes, np.int32))
    for image, values in zip(images, logits, strict=True):
        expected = run(variables, image[None])[0]
        inside = values[: expected.shape[0], : expected.shape[1]]
        assert np.linalg.norm(inside - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "config",
    [pytest.param(config, id=name, marks=MARKS.get(name, ())) for name, config in NETWORKS.items()],
)
def test_logits_on_a_canvas(config):
    assert_same_logits(config, sizes=SIZES[1:])


BACKBONES_AND_STRIDES = [
    {"backbone": backbone, "output_stride": stride, **({"multi_grid": (1.0, 1.0, 1.0)} if "mobilenetv3" in backbone else {})}
    for backbone in (
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "mobilenetv2_vainf",
        "mobilenetv3_large",
        "efficientnet_lite0",
        "xception41",
    )
    for stride in (8, 16, 32)
]


@pytest.mark.long
@pytest.mark.parametrize(
    "switches", BACKBONES_AND_STRIDES, ids=lambda switches: f"{switches['backbone']} {switches['output_stride']}"
)
def test_features_on_a_canvas_in_float64(switches):
    """Compare in float64, where an error of the method cannot hide behind rounding.

    In float32, rounding alone changes the logits of a random MobileNetV3 by 3e-5.
    """
    with jax.enable_x64(True):
        model = DeepLabV3(tiny_model(**switches, dtype="float64"), 5)
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_variables(model))
        images, on_canvas = draw_images(3)
        apply = jax.jit(lambda x: model.apply(variables, x, False).logits)
        margin = find_backbone(model.config.backbone).margin
        values = run_on_canvas(lambda x: model.apply(variables, x, False).logits, on_canvas.astype(np.float64), margin=margin)
        for image, value in zip(images, values, strict=True):
            expected = apply(image[None].astype(np.float64))[0]
            inside = value[: expected.shape[0], : expected.shape[1]]
            assert np.linalg.norm(inside - expected) <= 1e-12 * np.linalg.norm(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "protocol",
    [EvalConfig(scales=(0.5, 1.0, 1.75), flip=True), EvalConfig(window=(24, 21)), EvalConfig(window=(13, 40), flip=True)],
    ids=["views", "windows", "windows and views"],
)
def test_logits_of_windows_and_views_on_a_canvas(protocol):
    assert_same_logits(tiny_model(), protocol, sizes=((31, 17), (9, 40)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        tiny_model(output_stride=8),
        NETWORKS["decoder"],
        NETWORKS["efficientnet_lite0"],
        pytest.param(NETWORKS["mobilenetv2_vainf"], marks=pytest.mark.long),
    ],
    ids=["stride 8", "decoder", "efficientnet_lite0", "mobilenetv2_vainf"],
)
def test_split_rows_and_canvases_together(config):
    sizes, canvas = ((64, 48), (37, 30), (5, 41)), (64, 48)
    model = DeepLabV3(config, 5)
    variables, mesh = random_variables(model), make_mesh(MeshConfig(data=1, spatial=4))
    images, on_canvas = draw_images(3, sizes, canvas)
    rows = split_rows(mesh, canvas[0], config.output_stride, find_backbone(config.backbone).margin)
    compute = functools.partial(inference.logits, model=model, protocol=EvalConfig())
    on_mesh = jax.jit(compute_on_rows(compute, mesh, rows, (P(), P(None, "spatial"), P()), P(None, "spatial")))
    for image, values in zip(images, on_mesh(variables, on_canvas, np.array(sizes, np.int32)), strict=True):
        expected = jax.jit(compute)(variables, image[None])[0]
        inside = values[: expected.shape[0], : expected.shape[1]]
        assert np.linalg.norm(inside - expected) <= 1e-5 * np.linalg.norm(expected)
