"""Predictions at the images' own size, and confusion counts, both computed on the device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from deeplab_jax import losses, metrics
from deeplab_jax.config import Config, EvalConfig
from deeplab_jax.evaluation.protocols import average_views, slide
from deeplab_jax.models import DeepLabV3, normalize
from deeplab_jax.models.layers import resize_by_gather

Variables = dict[str, Any]


def evaluation_model(config: Config) -> DeepLabV3:
    """The network at `eval.output_stride`: weights of one output stride serve every one."""
    network = dataclasses.replace(config.model, output_stride=config.eval.output_stride or config.model.output_stride)
    return DeepLabV3(network, config.labels.num_classes)


def logits(
    variables: Variables, images: UInt8[Array, "n h w 3"], *, model: DeepLabV3, protocol: EvalConfig
) -> Float[Array, "n h w k"]:
    """float32 logits at the images' size, of images as they are decoded (0-255).

    Args:
      variables: {"params", "batch_stats"}.
      images: of one size.
      model: what `evaluation_model` returns.
      protocol: windows, scales and flip; several views give the logarithm of their mean probabilities, see `average_views`.
    """
    align_corners = model.config.align_corners

    def network(images: Array) -> Array:
        outputs: Any = model.apply(variables, images, train=False)
        return resize_by_gather(outputs.logits, *images.shape[1:3], align_corners=align_corners)

    def windows(images: Array) -> Array:
        return slide(network, images, model.num_classes, window=protocol.window, stride=protocol.window_stride)

    return average_views(
        windows if max(protocol.window) else network,
        normalize(images, model.config.mean, model.config.std),
        model.num_classes,
        scales=protocol.scales,
        flip=protocol.flip,
        align_corners=align_corners,
    )


def predict(
    variables: Variables, images: UInt8[Array, "n h w 3"], *, model: DeepLabV3, protocol: EvalConfig
) -> UInt8[Array, "n h w"]:
    """Train ids at the images' size; arguments as in `logits`."""
    return jnp.argmax(logits(variables, images, model=model, protocol=protocol), axis=-1).astype(jnp.uint8)


def predict_and_count(
    variables: Variables, batch: dict[str, Array], *, model: DeepLabV3, protocol: EvalConfig
) -> tuple[UInt8[Array, "n h w"], Int[Array, "k k"]]:
    """Predictions, and the confusion counts of the batch's valid rows; zeros for a batch without labels."""
    predictions = predict(variables, batch["image"], model=model, protocol=protocol)
    if "label" not in batch:
        return predictions, jnp.zeros((model.num_classes, model.num_classes), jnp.int32)
    mask = losses.valid_pixels(batch["label"], batch["valid"])
    return predictions, metrics.confusion_counts(batch["label"], predictions, mask, model.num_classes)


def compile_predict_and_count(config: Config) -> Callable[..., tuple[Array, Array]]:
    """`predict_and_count` jitted for the network and protocol of `config`, compiled once per image size."""
    return jax.jit(functools.partial(predict_and_count, model=evaluation_model(config), protocol=config.eval))
