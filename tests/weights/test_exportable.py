"""Test which networks each library supports, and the instructions for building them there."""

import dataclasses

import pytest

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.switches import is_used
from deeplab_jax.weights.convert import require_exportable, supported_values
from deeplab_jax.weights.sources import SOURCES

SEPARABLE = "depthwise+bn+relu+1x1"
# Networks that each reference library supports, and config values that it never supports.
SUPPORTED = {
    "torchvision": [
        ModelConfig(fusion="1x1+3x3"),
        ModelConfig(backbone="resnet101", fusion="1x1+3x3", multi_grid=(0.5, 1.0), dilate_conv2=False, low_level_width=32),
        ModelConfig(backbone="mobilenetv3_large", fusion="1x1+3x3", multi_grid=(1.0,) * 3, atrous_rates=(12, 24, 36)),
    ],
    "mmseg": [
        ModelConfig(backbone="resnet18", fusion="3x3", dilate_conv2=False, aspp_width=128),
        ModelConfig(backbone="resnet34", fusion="3x3", dilate_conv2=False, width=32, align_corners=True),
        ModelConfig(fusion="3x3", dilate_conv2=True, stem="3x3", multi_grid=(1.0, 2.0, 4.0)),
        ModelConfig(backbone="resnet152", fusion="3x3", dilate_conv2=False, atrous_rates=(6, 12)),
        ModelConfig(fusion="3x3", decoder_width=256, aspp_conv=SEPARABLE, decoder_conv=SEPARABLE, low_level_width=12),
        ModelConfig(fusion="3x3", shortcut="avgpool+1x1", pool_dilated_shortcuts=False),
    ],
    "smp": [
        ModelConfig("resnet18", fusion="1x1+3x3", multi_grid=(1.0, 1.0), align_corners=True, aspp_width=128),
        ModelConfig(
            backbone="resnext101_32x8d",
            output_stride=8,
            stage3_first_rate=2,
            multi_grid=(1.0,),
            atrous_rates=(1, 2, 3),
            aspp_conv="depthwise+1x1",
            fusion="1x1+depthwise+1x1",
            decoder_width=256,
            decoder_conv="depthwise+1x1",
            decoder_depth=1,
            align_corners=True,
        ),
        ModelConfig("efficientnet_lite1_symmetric", fusion="1x1+3x3", multi_grid=(1.0,), align_corners=True),
    ],
    "vainf": [
        ModelConfig("resnet101", fusion="1x1+3x3"),
        ModelConfig("mobilenetv2_vainf", output_stride=8, fusion="1x1", decoder_width=256, decoder_depth=1),
        ModelConfig(
            aspp_conv="depthwise+1x1", decoder_width=256, decoder_conv="depthwise+1x1", decoder_depth=1, dilate_conv2=False
        ),
    ],
}
_PADDLESEG = ModelConfig(
    stem="3x3",
    shortcut="avgpool+1x1",
    pool_dilated_shortcuts=False,
    output_stride=8,
    multi_grid=(1.0, 2.0, 4.0),
    stage3_first_rate=2,
    conv_bias=True,
)
SUPPORTED["paddleseg"] = [
    dataclasses.replace(_PADDLESEG, aspp_width=128, align_corners=True, multi_grid=(1.0,)),
    dataclasses.replace(_PADDLESEG, backbone="resnet101", output_stride=16, stage3_first_rate=1),
    dataclasses.replace(_PADDLESEG, aspp_conv="depthwise+bn+1x1", decoder_width=256, decoder_conv="depthwise+bn+1x1"),
]
UNSUPPORTED = {
    "paddleseg": {
        "backbone": ("resnet18", "resnext50_32x4d"),
        "width": (32, 128),
        "stem": ("7x7",),
        "shortcut": ("1x1",),
        "pool_dilated_shortcuts": (True,),
        "output_stride": (32,),
        "multi_grid": ((0.5, 1.0, 1.0),),
        "stage3_first_rate": (3,),
        "atrous_rates": ((0.5, 6, 12),),  # a rate of 1 or less at output strides 8 and 16
        "aspp_width": (),
        "aspp_conv": ("depthwise+1x1", SEPARABLE),
        "fusion": ("3x3", "1x1+3x3"),
        "conv_bias": (False,),
        "decoder_width": (128,),
        "low_level_width": (32,),
        "decoder_conv": ("3x3", SEPARABLE),
        "decoder_depth": (1, 3),
        "aux_head": (True,),
    },
    "torchvision": {
        "backbone": ("resnet18", "resnet34", "resnet152", "resnext50_32x4d"),
        "width": (32, 128),
        "stem": ("3x3",),
        "shortcut": ("avgpool+1x1",),
        "multi_grid": ((0.5, 1.0, 2.0), (1.0, 2.0, 4.0), (0.5,)),
        "stage3_first_rate": (2,),
        "atrous_rates": ((6, 12), (6, 12, 18, 24), (12, 18, 6)),
        "aspp_width": (128, 512),
        "aspp_conv": (SEPARABLE,),
        "fusion": ("1x1", "3x3", "1x1+depthwise+1x1"),
        "conv_bias": (True,),
        "decoder_width": (48, 256),
        "align_corners": (True,),
    },
    "mmseg": {
        "backbone": ("mobilenetv3_large", "resnext50_32x4d"),
        "pool_dilated_shortcuts": (True,),
        "aspp_conv": ("depthwise+1x1", "depthwise+bn+1x1"),
        "fusion": ("1x1", "1x1+3x3"),
        "conv_bias": (True,),
        "decoder_width": (48, 512),
        "decoder_conv": ("3x3", "depthwise+1x1"),
        "decoder_depth": (1, 3),
        "stage3_first_rate": (2,),
        "dilate_conv2": (True,),
    },
    "vainf": {
        "backbone": ("resnet18", "mobilenetv2", "mobilenetv3_large"),
        "width": (32, 128),
        "stem": ("3x3",),
        "shortcut": ("avgpool+1x1",),
        "output_stride": (32,),
        "multi_grid": ((1.0,), (1.0, 2.0, 4.0)),
        "stage3_first_rate": (2,),
        "atrous_rates": ((6, 12), (12, 24, 36)),
        "aspp_width": (128, 512),
        "aspp_conv": (SEPARABLE, "depthwise+bn+1x1"),
        "fusion": ("3x3",),
        "conv_bias": (True,),
        "decoder_width": (48, 512),
        "low_level_width": (32,),
        "decoder_conv": (SEPARABLE,),
        "decoder_depth": (2,),
        "aux_head": (True,),
        "align_corners": (True,),
    },
    "smp": {
        "backbone": ("mobilenetv3_large", "wide_resnet50_2", "xception65", "efficientnet_lite0", "mobilenetv2_tf"),
        "width": (32, 128),
        "stem": ("3x3",),
        "shortcut": ("avgpool+1x1",),
        "output_stride": (32,),
        "multi_grid": ((0.5, 1.0, 1.0), (1.0, 2.0, 4.0)),
        "stage3_first_rate": (3,),
        "dilate_conv2": (False,),
        "atrous_rates": ((6, 12), (6, 12, 18, 24)),
        "decoder_width": (48, 512),
        "aspp_conv": (SEPARABLE,),
        "fusion": ("1x1", "3x3"),
        "conv_bias": (True,),
        "low_level_width": (32,),
        "decoder_conv": ("3x3", SEPARABLE),
        "decoder_depth": (2,),
        "aux_head": (True,),
        "align_corners": (False,),
    },
}
UNSUPPORTED_VALUES = [
    (fmt, field, value) for fmt, fields in UNSUPPORTED.items() for field, values in fields.items() for value in values
]


@pytest.mark.parametrize(("fmt", "model"), [(fmt, model) for fmt, models in SUPPORTED.items() for model in models])
def test_every_config_of_a_supported_network_is_exportable(fmt, model):
    require_exportable(model, fmt)
    assert not any(is_used(model, field) for field in supported_values(model, fmt).keys() - UNSUPPORTED[fmt].keys())


@pytest.mark.parametrize(("fmt", "field", "value"), UNSUPPORTED_VALUES)
def test_every_unsupported_value_is_refused(fmt, field, value):
    for model in SUPPORTED[fmt]:
        if not is_used(model, field):
            continue
        with pytest.raises(CheckpointError) as error:
            require_exportable(dataclasses.replace(model, **{field: value}), fmt)
        assert f"does not support model.{field}={value!r}, only " in str(error.value)


def test_the_instructions_leave_out_the_default_multi_grid():
    for grid in ((0.5, 1.0), (0.5, 1.0, 1.0)):
        assert "multi_grid" not in SOURCES["mmseg"].describe(Config(model=ModelConfig(multi_grid=grid, fusion="3x3")))


@pytest.mark.parametrize(
    ("fmt", "normalization"),
    [
        ("smp", "normalised with mean=[127.5, 51.0, 0.0], std=[127.5, 255.0, 63.75] on values from 0 to 255."),
        ("vainf", "normalised with mean=[127.5, 51.0, 0.0], std=[127.5, 255.0, 63.75] on values from 0 to 255."),
        ("mmseg", "data_preprocessor=dict(mean=[127.5, 51.0, 0.0], std=[127.5, 255.0, 63.75])"),
        ("torchvision", "\ntorchvision.transforms.Normalize(mean=[0.5, 0.2, 0.0], std=[0.5, 1.0, 0.25]) on values from 0 to 1"),
    ],
)
def test_the_instructions_include_a_normalization_that_is_not_imagenets(fmt, normalization):
    for model in SUPPORTED[fmt][:2]:
        assert "mean" not in SOURCES[fmt].describe(Config(model=model))
        own = dataclasses.replace(model, mean=(127.5, 51.0, 0.0), std=(127.5, 255.0, 63.75))
        assert SOURCES[fmt].describe(Config(model=own)).endswith(normalization)
        assert "mean" in SOURCES[fmt].describe(Config(model=dataclasses.replace(model, std=(58.0, 57.0, 57.0))))
