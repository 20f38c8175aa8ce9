"""Tensor names and settings for the MobileNetV2 networks of Hugging Face's transformers.

Its MobileNetV2ForSemanticSegmentation has an ASPP without atrous branches. The settings are in config.json and
preprocessor_config.json.
"""

from collections.abc import Collection, Mapping
from reprlib import repr as shorten
from typing import Any

from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.config.model import OUTPUT_STRIDES
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.labels import IGNORE, VOC, LabelSet, distinct_colors
from deeplab_jax.models.backbones.mobilenetv2 import MIN_TF_WIDTH
from deeplab_jax.models.stages import Shapes
from deeplab_jax.weights.source import ASSUMED, Facts, OtherHeadError, Source, StateDict, conv_bn, output_channels

_HEAD = "segmentation_head"
# The only values of these settings that our network can express.
_FIXED = {
    "model_type": "mobilenet_v2",
    "tf_padding": True,
    "hidden_act": "relu6",
    "layer_norm_eps": 0.001,
    "expand_ratio": 6,
    "depth_divisible_by": 8,
    "min_depth": 8,
    "first_layer_is_expansion": True,
}
_PUBLISHED_STRIDE = 8  # of google/deeplabv3_mobilenet_v2_1.0_513


def has_names(names: Collection[str]) -> bool:
    """Return whether any tensor belongs to the head or the stem, whose names only transformers uses."""
    return any(name.startswith((f"{_HEAD}.conv_pool.", f"{_HEAD}.conv_aspp.", "conv_stem.first_conv.")) for name in names)


def head_names(model: ModelConfig) -> dict[str, str]:
    """Return a dict mapping our layer paths in the heads to transformers' layer names."""
    names = {"classifier": f"{_HEAD}.classifier.convolution"}
    layers = {"branch_1x1": "conv_aspp", "branch_pool": "conv_pool", "fuse": "conv_projection"}
    for ours, theirs in layers.items():
        names |= conv_bn(f"aspp/{ours}", f"{_HEAD}.{theirs}.convolution", f"{_HEAD}.{theirs}.normalization")
    return names


def read_head(shapes: Shapes) -> dict[str, Any]:
    """Infer the `ModelConfig` fields, plus "num_classes", from the head's tensors.

    The result is {} for a file that contains only a backbone.

    Raises:
      OtherHeadError: The head is not the one of MobileNetV2ForSemanticSegmentation.
      CheckpointError: A tensor is missing.
    """
    if not any(name.startswith(f"{_HEAD}.") for name in shapes):
        return {}
    if f"{_HEAD}.conv_aspp.convolution.weight" not in shapes:
        raise OtherHeadError("has a head without a 1x1 branch")
    return {
        "aspp_width": output_channels(shapes, f"{_HEAD}.conv_aspp.convolution.weight"),
        "atrous_rates": (),
        "fusion": "1x1",
        "num_classes": output_channels(shapes, f"{_HEAD}.classifier.convolution.weight"),
    }


def check_settings(state: StateDict) -> None:
    """Raise a CheckpointError if the settings are those of a network that ours does not reproduce."""
    for field, value in _FIXED.items():
        if state.config.get(field, value) != value:
            raise CheckpointError(
                f"has {field}={shorten(state.config[field])} in its config.json, but only {value!r} is supported. Use "
                "different weights."
            )
    if state.preprocessing.get("do_flip_channel_order"):
        raise CheckpointError("was trained on BGR images, which is not supported. Use different weights.")


def read_facts(state: StateDict, model: ModelConfig, overrides: Mapping[str, Any]) -> Facts:
    """Return the settings in config.json and preprocessor_config.json, or the published network's if a file is missing.

    Raises:
      CheckpointError: A setting is invalid.
    """
    config, origin = state.config, "config.json" if state.config else ASSUMED
    # transformers leaves out settings that have its own default values.
    stride = config.get("output_stride", 32) if config else _PUBLISHED_STRIDE
    if stride not in OUTPUT_STRIDES:
        raise CheckpointError(
            f"has output_stride={shorten(stride)} in its config.json, but only 8, 16 or 32 is supported. Use different weights."
        )
    classes = output_channels({name: x.shape for name, x in state.tensors.items()}, f"{_HEAD}.classifier.convolution.weight")
    labels = _read_labels(config, state.preprocessing, classes)
    facts: Facts = {
        "labels": (labels, origin) if labels else (VOC, "assumed: the published weights' classes"),
        "model.atrous_rates": ((), "the only possible value"),
        "model.output_stride": (int(stride), origin),
        "model.dropout": (float(config.get("classifier_dropout_prob", 0.8)), origin),
    }
    return facts | _read_normalization(state.preprocessing, len(model.mean))


def read_notes(state: StateDict) -> tuple[str, ...]:
    """Return what preprocessor_config.json says that a config cannot express: the size to which images are resized."""
    size = state.preprocessing.get("size")
    if not isinstance(size, dict) or not state.preprocessing.get("do_resize", True):
        return ()
    shown = ", ".join(f"{key} {value}" for key, value in size.items() if isinstance(value, int) and key.isprintable())
    if not shown:
        return ()
    return (f"transformers resizes images for these weights ({shown}). eval.py and predict use them as they are",)


def _read_labels(config: Mapping[str, Any], preprocessing: Mapping[str, Any], classes: int) -> LabelSet | None:
    """Return the label set of "id2label", or None if there is none."""
    table = config.get("id2label")
    if not table:
        return None
    names: tuple[Any, ...] = tuple(table.get(str(i)) for i in range(len(table))) if isinstance(table, dict) else ()
    if not names or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise CheckpointError(
            "has an id2label in its config.json without a name for each class from 0 on. Use the config.json of these weights."
        )
    if len(names) != classes:
        raise CheckpointError(
            f"has a head for {classes} classes, but an id2label for {len(names)} in its config.json. Use the config.json of "
            "these weights."
        )
    if [_simplify(name) for name in names] == [_simplify(name) for name in VOC.names]:
        return VOC
    # Label value 0 is ignored, and the first class has the value 1.
    is_shifted = bool(preprocessing.get("do_reduce_labels"))
    ids, ignored = (tuple(range(1, classes + 1)), (0, IGNORE)) if is_shifted else ((), (IGNORE,))
    try:
        return LabelSet("imported", names, distinct_colors(classes), ids, ignored)
    except ConfigError as error:
        raise CheckpointError(f"has an id2label in its config.json that is not a valid label set: {error}") from None


def _simplify(name: str) -> str:
    letters = "".join(letter for letter in name.lower() if letter.isalpha())
    return "tvmonitor" if letters == "tv" else letters


def _read_normalization(preprocessing: Mapping[str, Any], channels: int) -> Facts:
    """Return the `mean` and `std` of the images, on a scale of 0 to 255."""
    if not preprocessing:
        return {}  # the backbone has the published values
    factor = float(preprocessing.get("rescale_factor", 1 / 255)) if preprocessing.get("do_rescale", True) else 1.0
    is_normalized = preprocessing.get("do_normalize", True)
    origin = "preprocessor_config.json" if is_normalized else "preprocessor_config.json, which only rescales images"
    if not factor > 0:
        raise CheckpointError(f"has rescale_factor={factor!r} in its preprocessor_config.json. Use a number above 0.")
    facts: Facts = {}
    for field, neutral in (("mean", 0.0), ("std", 1.0)):
        stored = preprocessing.get(f"image_{field}")
        value = neutral if not is_normalized else 0.5 if stored is None else stored
        each = tuple(value) if isinstance(value, list | tuple) else (value,) * channels
        if len(each) != channels or not all(isinstance(number, int | float) for number in each):
            raise CheckpointError(
                f"has image_{field}={shorten(value)} in its preprocessor_config.json, not a number for each of {channels} "
                "channels. Correct it, or use the weights file alone."
            )
        # The product with 255 should be 127.5 and not 127.50000000000001.
        facts[f"model.{field}"] = (tuple(round(number / factor, 6) for number in each), origin)
    return facts


def required(model: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """Return the supported values of the `ModelConfig` fields for which not only the default is supported."""
    return {
        "backbone": ("mobilenetv2_tf",),
        "width": (max(model.width, MIN_TF_WIDTH),),
        "atrous_rates": ((),),
    }


def describe(config: Config) -> str:
    """Return the Python call that builds the network, plus the normalisation of its images."""
    model = config.model
    arguments = {
        "num_channels": model.channels,
        "depth_multiplier": model.width / 64,
        "output_stride": model.output_stride,
        "classifier_dropout_prob": model.dropout,
        "num_labels": config.labels.num_classes,
    }
    call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    mean, std = ([round(value / 255, 8) for value in values] for values in (model.mean, model.std))
    return (
        f"transformers.MobileNetV2ForSemanticSegmentation(transformers.MobileNetV2Config({call}))\n"
        f"Its images are normalised with image_mean={mean}, image_std={std} on values from 0 to 1."
    )


SOURCE = Source(
    has_names=has_names,
    head_names=head_names,
    read_head=read_head,
    read_facts=read_facts,
    check_settings=check_settings,
    read_notes=read_notes,
    required=required,
    free=Source.free | {"align_corners"},
    describe=describe,
    backbone_prefix="mobilenet_v2.",
    first_inputs=lambda model: {"aspp/fuse": model.aspp_width},
)
