import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables, smallest_model, tiny_resnet18

from deeplab_jax.config import ModelConfig
from deeplab_jax.models import DeepLabV3, normalize
from deeplab_jax.models.aspp import ConvBNReLU
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.models.decoder import Decoder
from deeplab_jax.models.graph import abstract_variables
from deeplab_jax.models.inverted_residual import scale_channel_count
from deeplab_jax.models.layers import BatchNorm
from deeplab_jax.models.stages import stage_dilations


def with_constant_excitation(variables):
    """Return `variables` with squeeze-and-excitation made independent of its input.

    Squeeze-and-excitation reads image means, which differ between output strides because a dilated network has additional
    pixels.
    """

    def zero_gate(path, leaf):
        is_gate = [key.key for key in path[-3:]] == ["se", "expand", "kernel"]
        return jnp.zeros_like(leaf) if is_gate else leaf

    return jax.tree_util.tree_map_with_path(zero_gate, variables)


def make_backbone(name, **switches):
    return find_backbone(name).make(ModelConfig(backbone=name, **switches))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "switches"),
    [
        ("resnet18", {}),
        ("resnet50", {"stem": "3x3", "shortcut": "avgpool+1x1", "multi_grid": (1.0, 2.0, 4.0)}),
        pytest.param("resnext50_32x4d", {"stage3_first_rate": 2}, marks=pytest.mark.long),
        ("mobilenetv3_large", {"multi_grid": (1.0, 1.0, 1.0)}),
        pytest.param("mobilenetv2", {}, marks=pytest.mark.long),
        ("mobilenetv2_vainf", {}),
        ("efficientnet_lite0", {}),
        pytest.param("xception41", {}, marks=pytest.mark.long),
        pytest.param("xception71", {}, marks=pytest.mark.long),
    ],
)
def test_dilated_features_match_the_undilated_network_when_subsampled(name, switches):
    # 97 and 66 give odd sizes at strides 8 and 16, where a network with "same" padding keeps the first row and column as well.
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 97, 66, 3)), jnp.float32)
    networks = {os: make_backbone(name, width=8, output_stride=os, **switches) for os in (32, 16, 8)}
    variables = with_constant_excitation(random_variables(networks[32]))
    features = {os: jax.jit(net.apply, static_argnums=2)(variables, image, False) for os, net in networks.items()}
    for os in (16, 8):
        for expected, dilated in zip(features[32], features[os], strict=True):
            step = -(-dilated.shape[1] // expected.shape[1])
            actual = dilated[:, ::step, ::step]
            # The tolerance allows for a different float32 summation order in up to 50 layers.
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_logits_have_the_output_stride_with_sizes_rounded_up(output_stride):
    model = DeepLabV3(tiny_resnet18(output_stride=output_stride), 5)
    image = jnp.zeros((2, 65, 50, 3))
    shapes = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image, False)[0])
    assert shapes.logits.shape == (2, -(-65 // output_stride), -(-50 // output_stride), 5)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_decoder_gives_logits_at_stride_4(output_stride):
    model = DeepLabV3(tiny_resnet18(output_stride=output_stride, decoder_width=6, low_level_width=3), 5)
    image = jnp.zeros((2, 65, 50, 3))
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image, False))
    assert outputs.logits.shape == (2, 17, 13, 5)
    kernels = {name: layer["conv"]["kernel"].shape for name, layer in variables["params"]["decoder"].items()}
    assert kernels == {"reduce": (1, 1, 8, 3), "refine1": (3, 3, 8 + 3, 6), "refine2": (3, 3, 6, 6)}


# `resized` holds the row (0, 4) upsampled to four pixels, with half-pixel centres or with aligned corners.
@pytest.mark.parametrize(("align_corners", "resized"), [(False, (0, 1, 3, 4)), (True, (0, 4 / 3, 8 / 3, 4))])
def test_a_decoder_concatenates_resized_features_and_reduced_low_level_features(align_corners, resized):
    # The kernels make the result easy to predict: `reduce` halves and swaps the low-level channels, and the others are
    # identities.
    reduce, keep = np.array([[0, 0.5], [0.5, 0]]), np.zeros((3, 3, 3, 3))
    keep[1, 1] = np.eye(3)
    kernels = {"reduce": reduce[None, None], "refine1": keep, "refine2": keep}
    ones = {name: np.ones(kernel.shape[-1]) for name, kernel in kernels.items()}
    params = {name: {"conv": {"kernel": k}, "bn": {"scale": ones[name], "bias": 0 * ones[name]}} for name, k in kernels.items()}
    stats = {name: {"bn": {"mean": 0 * one, "var": one - BatchNorm.epsilon}} for name, one in ones.items()}
    x, low = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), jnp.arange(8.0).reshape(1, 1, 4, 2)
    decoder = Decoder(features=3, low_level_width=2, align_corners=align_corners)
    y = decoder.apply(jax.tree.map(jnp.float32, {"params": params, "batch_stats": stats}), x, low, False)
    np.testing.assert_allclose(y[0, 0, :, 0], resized, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(y[0, 0, :, 1:], [[0.5, 0], [1.5, 1], [2.5, 2], [3.5, 3]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["depthwise+1x1", "depthwise+bn+1x1", "depthwise+bn+relu+1x1"])
def test_a_separable_convolution_filters_each_channel_and_then_mixes_them(kind):
    # The depthwise kernels read the pixel `rate` to the left and multiply it by 1 and -1. BatchNorm adds 1.
    depthwise = np.zeros((3, 3, 1, 2))
    depthwise[1, 0, 0] = 1, -1
    bn = {"scale": np.ones(2), "bias": np.ones(2)}
    identity = {"mean": np.zeros(2), "var": np.full(2, 1 - BatchNorm.epsilon)}
    mix = np.array([[1.0, 0], [1, 1]])[None, None]
    params = {"depthwise": {"kernel": depthwise}, "conv": {"kernel": mix}, "bn": bn | {"bias": np.zeros(2)}}
    stats = {"bn": identity}
    if "bn" in kind:
        params["depthwise_bn"], stats["depthwise_bn"] = bn, identity
    x = jnp.array([[2.0, 3], [0, 0], [5, 4], [0, 0]]).reshape(1, 1, 4, 2)
    layer = ConvBNReLU(2, kind, rate=2)
    y = layer.apply(jax.tree.map(jnp.float32, {"params": params, "batch_stats": stats}), x, False)
    # At the third pixel, the depthwise outputs are 2 and -3, plus 1 with BatchNorm.
    middle = {"depthwise+1x1": (2, -3), "depthwise+bn+1x1": (3, -2), "depthwise+bn+relu+1x1": (3, 0)}[kind]
    np.testing.assert_allclose(y[0, 0, 2], [max(sum(middle), 0), max(middle[1], 0)], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("depth", "layers"), [(1, {"reduce", "refine1"}), (3, {"reduce", "refine1", "refine2", "refine3"})])
def test_a_decoder_has_as_many_convolutions_as_its_depth(depth, layers):
    model = DeepLabV3(tiny_resnet18(decoder_width=6, decoder_depth=depth), 5)
    assert abstract_variables(model)["params"]["decoder"].keys() == layers


@pytest.mark.slow
def test_dropout_of_a_decoder_is_only_active_in_training():
    decoder = Decoder(features=3, low_level_width=2, dropout=0.5)
    x, low = jnp.ones((1, 2, 2, 3)), jnp.ones((1, 8, 8, 3))
    variables = decoder.init(jax.random.key(0), x, low, False)
    trained, _ = decoder.apply(variables, x, low, True, rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"])
    plain, _ = Decoder(features=3, low_level_width=2).apply(variables, x, low, True, mutable=["batch_stats"])
    kept = trained != 0
    assert 0 < kept.sum() < (plain != 0).sum()
    np.testing.assert_allclose(trained[kept], 2 * plain[kept], rtol=1e-6)
    np.testing.assert_array_equal(
        decoder.apply(variables, x, low, False), Decoder(features=3, low_level_width=2).apply(variables, x, low, False)
    )


@pytest.mark.parametrize(
    ("output_stride", "pools", "rates"),
    [(8, True, [0, 1, 1, 2]), (8, False, [0, 1, 0, 0]), (16, False, [0, 1, 1, 0]), (32, False, [0, 1, 1, 1])],
)
def test_dilated_stages_can_leave_out_the_pool_of_their_shortcuts(output_stride, pools, rates):
    config = ModelConfig(shortcut="avgpool+1x1", output_stride=output_stride, pool_dilated_shortcuts=pools)
    assert [stage[0].shortcut_rate for stage in stage_dilations((2, 2, 2, 2), config)] == rates


def test_a_bias_before_batchnorm_shifts_its_mean():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 4, 6)), jnp.float32)
    layers = [ConvBNReLU(3, "depthwise+bn+1x1", use_bias=use_bias) for use_bias in (True, False)]
    variables = jax.tree.map(lambda leaf: leaf + 0.3, layers[0].init(jax.random.key(0), x, False))
    shifted = jax.tree.map(lambda leaf: leaf, variables)  # a copy of the dicts
    for conv, bn in (("depthwise", "depthwise_bn"), ("conv", "bn")):
        shifted["batch_stats"][bn]["mean"] -= shifted["params"][conv].pop("bias")
    actual, expected = (layer.apply(each, x, False) for layer, each in zip(layers, (variables, shifted), strict=True))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_all_convolutions_of_the_heads_have_a_bias_but_that_after_image_pooling():
    config = tiny_resnet18(conv_bias=True, decoder_width=6, fusion="1x1+3x3", aux_head=True)
    params = abstract_variables(DeepLabV3(config, 5))["params"]
    biased = {name for part in ("aspp", "decoder") for name, layer in params[part].items() if "bias" in layer["conv"]}
    assert biased == {*params["aspp"], *params["decoder"]} - {"branch_pool"}
    assert "bias" not in params["aux_conv"]["conv"]


def test_without_atrous_rates_only_the_1x1_branch_and_the_image_pooling_are_fused():
    config = smallest_model(atrous_rates=())
    variables = random_variables(DeepLabV3(config, 3))
    assert variables["params"]["aspp"].keys() == {"branch_1x1", "branch_pool", "fuse"}
    assert variables["params"]["aspp"]["fuse"]["conv"]["kernel"].shape[2] == 2 * config.aspp_width
    logits = DeepLabV3(config, 3).apply(variables, jnp.ones((1, 33, 65, 3)), train=False).logits
    assert logits.shape == (1, 3, 5, 3)


@pytest.mark.slow
def test_dilate_conv2_only_affects_basic_blocks():
    image = jnp.asarray(np.random.default_rng(1).normal(size=(1, 64, 64, 3)), jnp.float32)
    for depth, is_affected in (("four_blocks", True), ("seven_bottlenecks", False)):
        networks = [make_backbone(depth, width=8, output_stride=8, dilate_conv2=dilate) for dilate in (True, False)]
        variables = random_variables(networks[0])
        dilated, undilated = (jax.jit(net.apply, static_argnums=2)(variables, image, False).last for net in networks)
        assert (float(jnp.abs(dilated - undilated).max()) > 1e-3) == is_affected


def test_parameters_do_not_depend_on_training_mode_or_output_stride():
    def shapes(train, output_stride):
        model = DeepLabV3(tiny_resnet18(aux_head=True, output_stride=output_stride), 5)
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return jax.tree.map(lambda x: x.shape, jax.eval_shape(lambda: model.init(keys, jnp.zeros((1, 64, 64, 3)), train)))

    assert shapes(False, 16) == shapes(True, 16) == shapes(False, 8)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 25_557_032 - 2_049_000),
        ("resnet101", 44_549_160 - 2_049_000),
        ("resnext50_32x4d", 25_028_904 - 2_049_000),
        ("resnext101_32x8d", 88_791_336 - 2_049_000),
        ("resnext101_64x4d", 83_455_272 - 2_049_000),
        ("wide_resnet50_2", 68_883_240 - 2_049_000),
        ("wide_resnet101_2", 126_886_696 - 2_049_000),
        ("xception41", 26_969_560 - 2_049_000),
        ("xception65", 39_916_312 - 2_049_000),
        ("xception71", 42_338_736 - 2_049_000),
        ("mobilenetv2", 3_504_872 - (1280 * 1000 + 1000)),
        ("mobilenetv2_vainf", 3_504_872 - (1280 * 1000 + 1000) - (320 * 1280 + 2 * 1280)),
        ("mobilenetv2_tf", 3_504_872 - (1280 * 1000 + 1000) - (320 * 1280 + 2 * 1280)),
        ("mobilenetv3_large", 5_483_032 - (960 * 1280 + 1280) - (1280 * 1000 + 1000)),
        ("efficientnet_lite0", 4_652_008 - (320 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)),
        ("efficientnet_lite1", 5_416_680 - (320 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)),
        ("efficientnet_lite2", 6_092_072 - (352 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)),
    ],
)
def test_backbones_have_as_many_parameters_as_the_reference_without_the_classifier(name, parameters):
    assert sum(x.size for x in jax.tree.leaves(abstract_variables(make_backbone(name))["params"])) == parameters


def test_mobilenetv3_rounds_channels_to_multiples_of_8_and_keeps_at_least_90_percent():
    assert [scale_channel_count(channels, 64) for channels in (16, 24, 184, 960)] == [16, 24, 184, 960]
    # At width 8, 80 channels scale to 10. Rounding down to 8 would lose more than 10 %, so the result is 16.
    assert [scale_channel_count(channels, 8) for channels in (16, 80, 112, 960)] == [8, 16, 16, 120]


@pytest.mark.parametrize("train", [False, True])
def test_auxiliary_logits_have_the_stride_of_the_third_stage(train):
    model = DeepLabV3(tiny_resnet18(aux_head=True, output_stride=32), 5)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    outputs = jax.eval_shape(lambda: model.init_with_output(keys, jnp.zeros((1, 65, 64, 3)), train)[0])
    assert outputs.logits.shape == (1, 3, 2, 5)
    assert outputs.aux.shape == (1, 5, 4, 5)


@pytest.mark.parametrize("fusion", ["1x1", "3x3", "1x1+3x3"])
def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32(fusion):
    model = DeepLabV3(tiny_resnet18(dtype="bfloat16", fusion=fusion), 5)
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False))
    assert outputs.logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert ("refine" in variables["params"]["aspp"]) == (fusion == "1x1+3x3")


def test_normalize_uses_pixel_units():
    image = jnp.array([[[[0, 100, 255]]]], jnp.uint8)
    np.testing.assert_allclose(normalize(image, (10, 100, 55), (5, 1, 100))[0, 0, 0], [-2, 0, 2])
