"""Predictions at the images' own size, and confusion counts, both computed on the device."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from deeplab_jax import losses
from deeplab_jax.config import Config, EvalConfig
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.protocols import average_views, slide
from deeplab_jax.models import DeepLabV3, normalize
from deeplab_jax.models.extent import split_rows
from deeplab_jax.models.operations import interpreted_by
from deeplab_jax.models.resize import resize_like
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.compilation import Programs, lean_options
from deeplab_jax.runtime.mesh import replicated

Variables = dict[str, Any]


def evaluation_model(config: Config) -> DeepLabV3:
    """The network at `eval.output_stride`: weights of one output stride serve every one."""
    network = dataclasses.replace(config.model, output_stride=config.eval.output_stride or config.model.output_stride)
    return DeepLabV3(network, config.labels.num_classes)


def logits(
    variables: Variables,
    images: UInt8[Array, "n h w 3"],
    *,
    model: DeepLabV3,
    protocol: EvalConfig,
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
        outputs: Any = model.apply(variables, images, False)
        return resize_like(outputs.logits, images, align_corners=align_corners, by_gather=True)

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
    variables: Variables,
    images: UInt8[Array, "n h w 3"],
    *,
    model: DeepLabV3,
    protocol: EvalConfig,
) -> UInt8[Array, "n h w"]:
    """Train ids at the images' size; arguments as in `logits`."""
    return jnp.argmax(logits(variables, images, model=model, protocol=protocol), axis=-1).astype(jnp.uint8)


def predict_with_confidence(
    variables: Variables, images: UInt8[Array, "n h w 3"], *, model: DeepLabV3, protocol: EvalConfig
) -> tuple[UInt8[Array, "n h w"], UInt8[Array, "n h w"]]:
    """What `predict` gives, and the probability of that class, 0 to 255."""
    values = logits(variables, images, model=model, protocol=protocol)
    largest = jnp.max(values, axis=-1, keepdims=True)
    confidence = 1 / jnp.sum(jnp.exp(values - largest), axis=-1)
    return jnp.argmax(values, axis=-1).astype(jnp.uint8), jnp.round(255 * confidence).astype(jnp.uint8)


def predict_and_count(
    variables: Variables, batch: dict[str, Array], *, model: DeepLabV3, protocol: EvalConfig
) -> tuple[UInt8[Array, "n h w"], Int[Array, "k k"]]:
    """Predictions, and the confusion counts of the batch's valid rows; zeros for a batch without labels."""
    predictions = predict(variables, batch["image"], model=model, protocol=protocol)
    if "label" not in batch:
        return predictions, jnp.zeros((model.num_classes, model.num_classes), jnp.int32)
    mask = losses.valid_pixels(batch["label"], batch["valid"])
    counts = metrics.confusion_counts(batch["label"], predictions, mask, model.num_classes)
    return predictions, counts


def jitted(function: Any, config: Config) -> Any:
    """`logits`, `predict` or `predict_with_confidence` of (variables, images) under `jit`, for a network and its protocol."""
    compute = functools.partial(function, model=evaluation_model(config), protocol=config.eval)
    return jax.jit(compute, compiler_options=lean_options(jax.default_backend()))


def splits_rows(protocol: EvalConfig) -> bool:
    """Whether image rows can be split over devices: a window or a resized view is computed whole on each."""
    return not max(protocol.window) and protocol.scales == (1.0,)


class Evaluator:
    """`predict_and_count` compiled for a network, a protocol and a mesh, once per image size.

    Args:
      config: validated.
      mesh: the devices.
    """

    def __init__(self, config: Config, mesh: Mesh) -> None:
        self.mesh = mesh
        self.num_classes = config.labels.num_classes
        model = evaluation_model(config)
        self._output_stride = model.config.output_stride
        self.row_unit = self._output_stride if splits_rows(config.eval) else 0
        count = functools.partial(predict_and_count, model=model, protocol=config.eval)
        shardings = (NamedSharding(mesh, P("data")), replicated(mesh))
        self._jitted = jax.jit(
            functools.partial(self._run, count),
            static_argnames="height",
            out_shardings=shardings,
            compiler_options=lean_options(mesh.devices.flat[0].platform),
        )
        self._programs = Programs()

    def __call__(self, variables: Variables, batch: dict[str, Array], height: int) -> tuple[Array, Array]:
        """Predictions [n, h, w] and counts [k, k] of a batch that `place` put on the mesh, of images of `height`."""
        key = (height, *sorted((name, x.shape) for name, x in batch.items()))
        program = self._programs.get(key, lambda: hosts.compile_together(self._jitted, variables, batch, height=height))
        return program(variables, batch)

    def _run(self, count: Any, variables: Variables, batch: dict[str, Array], height: int) -> tuple[Array, Array]:
        rows = split_rows(self.mesh, height, self._output_stride) if self.row_unit else None
        if rows is None:
            return count(variables, batch)

        def count_rows(variables: Variables, batch: dict[str, Array]) -> tuple[Array, Array]:
            with interpreted_by(rows):
                predictions, counts = count(variables, batch)
            return predictions, jax.lax.psum(counts, rows.axis)

        specs = {name: P() if name == "valid" else P(None, rows.axis) for name in batch}
        split = jax.shard_map(
            count_rows,
            mesh=self.mesh,
            in_specs=(P(), specs),
            out_specs=(P(None, rows.axis), P()),
            axis_names={rows.axis},
        )
        predictions, counts = split(variables, batch)
        return predictions[:, :height], counts
