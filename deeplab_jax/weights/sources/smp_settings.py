"""Read the config.json that segmentation_models.pytorch's `save_pretrained` writes: the arguments that built the network."""

from collections.abc import Mapping
from reprlib import repr as shorten
from typing import Any

from deeplab_jax.config import ModelConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.models.backbones import BACKBONES

STRIDES = (8, 16)
_MAX_RATE = 10_000
_CLASSES = {False: "DeepLabV3", True: "DeepLabV3Plus"}  # by whether the network has a decoder
# They change neither the class with the largest logit nor the probabilities that a softmax gives.
_HARMLESS = (None, "identity", "softmax", "softmax2d", "logsoftmax", "argmax", "argmax2d")


def read_settings(config: Mapping[str, Any], model: ModelConfig, classes: int) -> dict[str, Any]:
    """Return the `ModelConfig` fields that a config.json determines, or {} if another program wrote it.

    Args:
      config: The content of config.json.
      model: The network recognised in the tensors.
      classes: The number of channels of the logits.

    Raises:
      CheckpointError: The file does not describe these tensors, or our implementation cannot reproduce the network. The message
        continues a sentence that starts with the folder.
    """
    if "encoder_name" not in config:
        return {}
    is_plus = model.decoder_width > 0
    stride = config.get("encoder_output_stride", 16 if is_plus else 8)
    _require(config, "encoder_output_stride", stride, STRIDES)
    stride = int(stride)
    _require_same_network(config, model, classes)
    _require(config, "encoder_depth", config.get("encoder_depth", 5), (5,))
    upsampling = 4 if is_plus else stride
    _require(config, "upsampling", config.get("upsampling") or upsampling, (upsampling,))
    _require_activation(config.get("activation"), classes)
    rates, dropout = config.get("decoder_atrous_rates", (12, 24, 36)), config.get("decoder_aspp_dropout", 0.5)
    are_integers = isinstance(rates, list | tuple) and all(isinstance(rate, int) for rate in rates)
    if not are_integers or any(not 1 <= rate <= _MAX_RATE or rate * stride % 16 for rate in rates):
        raise CheckpointError(
            f"has decoder_atrous_rates={shorten(rates)} at output stride {stride} in its config.json. At output stride 16, "
            f"rates must be integers from 1 to {_MAX_RATE}. Use different weights."
        )
    return {
        "output_stride": stride,
        "atrous_rates": tuple(rate * stride // 16 for rate in rates),
        "dropout": float(dropout),
    }


def _require_same_network(config: Mapping[str, Any], model: ModelConfig, classes: int) -> None:
    """Raise a CheckpointError if config.json belongs to a network with other tensors."""
    encoder = BACKBONES[model.backbone].references.get("smp", {}).get("encoder_name", config["encoder_name"])
    name = _CLASSES[model.decoder_width > 0]
    tensors = {
        "_model_class": name,
        "encoder_name": encoder,
        "decoder_channels": model.aspp_width,
        "classes": classes,
        "in_channels": model.channels,
    }
    for field, value in tensors.items():
        if config.get(field, value) != value:
            raise CheckpointError(
                f"has {field}={shorten(config[field])} in its config.json, but tensors for {value!r}. Use the config.json "
                "of these weights."
            )


def _require_activation(activation: Any, classes: int) -> None:
    if activation in _HARMLESS or (activation == "sigmoid" and classes == 1):
        return
    reason = "Its classes can overlap" if activation == "sigmoid" else "It changes the meaning of the logits"
    raise CheckpointError(
        f"has activation={shorten(activation)} for {classes} classes in its config.json, which is not supported. {reason}. "
        "Use weights with one class for each pixel."
    )


def _require(config: Mapping[str, Any], field: str, value: Any, supported: tuple[Any, ...]) -> None:
    if value not in supported:
        values = " or ".join(map(repr, supported))
        raise CheckpointError(
            f"has {field}={shorten(config.get(field))} in its config.json, but only {values} is supported. Use different "
            "weights."
        )
