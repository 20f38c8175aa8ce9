"""Compute predictions, and what the metrics are computed from, on the device.

Predictions have the original image size and can be averaged over views (scales and mirror images) and over windows.
"""

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Real, UInt8

from deeplab_jax.config import Config, EvalConfig
from deeplab_jax.evaluation.counts import PixelCounts, confidences, count_images, count_pixels, valid_pixels
from deeplab_jax.evaluation.metrics import Totals, empty_totals
from deeplab_jax.evaluation.views import average_views
from deeplab_jax.evaluation.windows import slide
from deeplab_jax.labels import IGNORE
from deeplab_jax.models import DeepLabV3, normalize
from deeplab_jax.models.backbones import find_backbone
from deeplab_jax.models.extent import Extent, place_on_canvas
from deeplab_jax.models.operations import interpreted_by
from deeplab_jax.models.resize import Sizes, resize_like
from deeplab_jax.models.rows import compute_on_rows, split_rows
from deeplab_jax.models.target import compiling_for, get_target
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.compilation import Programs, lean_options
from deeplab_jax.runtime.memory import require_memory
from deeplab_jax.runtime.mesh import replicated_sharding
from deeplab_jax.runtime.shared_errors import failing_together

Variables = dict[str, Any]
Counted = tuple[UInt8[Array, "n h w"], Totals]  # a batch's predictions and totals


def evaluation_model(config: Config) -> DeepLabV3:
    """Return the network at `eval.output_stride`. The same weights work at every output stride."""
    network = dataclasses.replace(config.model, output_stride=config.eval.output_stride or config.model.output_stride)
    return DeepLabV3(network, config.labels.num_classes)


def logits(
    variables: Variables,
    images: Real[Array, "n h w c"],
    sizes: Int[Array, "n 2"] | None = None,
    *,
    model: DeepLabV3,
    protocol: EvalConfig,
    rows: Extent | None = None,
) -> Float[Array, "n h w k"]:
    """Return full-resolution float32 logits.

    Args:
      variables: The network variables, {"params", "batch_stats"}.
      images: Decoded images with values from 0 to 255.
      sizes: The images' heights and widths if they are in the top left corners of their arrays, whose height and width must
        then be divisible by the network's output stride. None if they fill their arrays.
      model: The network from `evaluation_model`.
      protocol: The windows, scales and flip to use. With several views, the result is the logarithm of the views' mean
        probabilities (see `average_views`).
      rows: How image rows are split over devices, or None if they are not split.

    Raises:
      ValueError: The arrays are not divisible by the output stride.
    """
    align_corners, unit = model.config.align_corners, model.config.output_stride
    margin = find_backbone(model.config.backbone).margin
    if sizes is not None and any(side % unit for side in images.shape[1:3]):
        raise ValueError(f"A canvas of {images.shape[1:3]} is not divisible by the output stride {unit}.")

    def network(images: Array, sizes: Sizes | None) -> Array:
        extent = rows if sizes is None else place_on_canvas(sizes, (images.shape[1], images.shape[2]), rows, margin)
        with interpreted_by(extent) if extent else contextlib.nullcontext():
            outputs: Any = model.apply(variables, images, False)
            return resize_like(outputs.logits, images, align_corners=align_corners, by_gather=True)

    def windows(images: Array, sizes: Sizes | None) -> Array:
        window, stride = protocol.window, protocol.window_stride
        return slide(network, images, sizes, model.num_classes, window=window, stride=stride, unit=unit)

    return average_views(
        windows if max(protocol.window) else network,
        normalize(images, model.config.mean, model.config.std),
        None if sizes is None else (sizes[:, 0], sizes[:, 1]),
        model.num_classes,
        scales=protocol.scales,
        flip=protocol.flip,
        align_corners=align_corners,
        unit=unit,
    )


def predict(
    variables: Variables,
    images: UInt8[Array, "n h w c"],
    sizes: Int[Array, "n 2"] | None = None,
    *,
    model: DeepLabV3,
    protocol: EvalConfig,
) -> UInt8[Array, "n h w"]:
    """Return full-resolution train ids. Takes the same arguments as `logits`."""
    return jnp.argmax(logits(variables, images, sizes, model=model, protocol=protocol), axis=-1).astype(jnp.uint8)


def predict_with_confidence(
    variables: Variables,
    images: UInt8[Array, "n h w c"],
    sizes: Int[Array, "n 2"] | None = None,
    *,
    model: DeepLabV3,
    protocol: EvalConfig,
) -> tuple[UInt8[Array, "n h w"], UInt8[Array, "n h w"]]:
    """Return each pixel's train id and its probability, scaled to 0-255. Takes the same arguments as `logits`."""
    values = logits(variables, images, sizes, model=model, protocol=protocol)
    return jnp.argmax(values, axis=-1).astype(jnp.uint8), jnp.round(255 * confidences(values)).astype(jnp.uint8)


def predict_labels(
    variables: Variables,
    images: UInt8[Array, "n h w c"],
    sizes: Int[Array, "n 2"] | None = None,
    *,
    model: DeepLabV3,
    protocol: EvalConfig,
    min_confidence: float,
) -> tuple[UInt8[Array, "n h w"], UInt8[Array, "n h w"]]:
    """Return each pixel's train id, and the same with 255 where its probability is below `min_confidence`.

    Takes the same other arguments as `logits`.
    """
    values = logits(variables, images, sizes, model=model, protocol=protocol)
    train_ids = jnp.argmax(values, axis=-1).astype(jnp.uint8)
    return train_ids, jnp.where(confidences(values) >= min_confidence, train_ids, jnp.uint8(IGNORE))


def predict_and_count(
    variables: Variables, batch: dict[str, Array], *, model: DeepLabV3, protocol: EvalConfig, rows: Extent | None = None
) -> tuple[UInt8[Array, "n h w"], PixelCounts | None]:
    """Return the predictions, and the sums over the pixels of the valid images, or None for a batch without labels.

    Args:
      variables: The network variables, {"params", "batch_stats"}.
      batch: A batch from `eval_batches`. Its labels are 255 outside the images.
      model, protocol, rows: See `logits`.
    """
    values = logits(variables, batch["image"], batch.get("size"), model=model, protocol=protocol, rows=rows)
    predictions = jnp.argmax(values, axis=-1).astype(jnp.uint8)
    if "label" not in batch:
        return predictions, None
    mask = valid_pixels(batch["label"], batch["valid"])
    return predictions, count_pixels(values, batch["label"], predictions, mask)


def jit_by_config(function: Any, config: Config) -> Any:
    """Return `function`, jitted for the config's network and protocol, as a function of (variables, images, sizes).

    Args:
      function: `logits`, `predict`, `predict_with_confidence`, or `predict_labels` with a fixed `min_confidence`.
      config: A validated config.
    """
    compute = functools.partial(function, model=evaluation_model(config), protocol=config.eval)
    return jax.jit(compute, compiler_options=lean_options(get_target().platform))


def advise_on_memory(protocol: EvalConfig) -> str:
    """Return a sentence that says what to lower if an evaluation runs out of memory."""
    ways = [f"eval.batch_size (={protocol.batch_size}) to 1"] if protocol.batch_size > 1 else []
    ways += [] if max(protocol.window) else ["eval.window to (769,769)"]
    return f"Set {' and '.join(ways)}, or cut large images into tiles." if ways else "Cut large images into tiles."


def can_split_rows(protocol: EvalConfig) -> bool:
    """Return whether image rows can be split across devices. Windows and resized views must stay on one device."""
    return not max(protocol.window) and protocol.scales == (1.0,)


class Evaluator:
    """A callable that predicts and counts batches on a device mesh, compiling a program for each new image size.

    Args:
      config: A validated config, which sets the network and protocol.
      mesh: The device mesh.
    """

    def __init__(self, config: Config, mesh: Mesh) -> None:
        self.mesh = mesh
        self.num_classes = config.labels.num_classes
        model = evaluation_model(config)
        self._output_stride, self._margin = model.config.output_stride, find_backbone(model.config.backbone).margin
        self.row_unit = self._output_stride if can_split_rows(config.eval) else 0
        count = functools.partial(predict_and_count, model=model, protocol=config.eval)
        shardings = (NamedSharding(mesh, P("data")), replicated_sharding(mesh))
        self._platform = mesh.devices.flat[0].platform
        self._jitted = jax.jit(
            functools.partial(self._run, count),
            static_argnames="height",
            out_shardings=shardings,
            compiler_options=lean_options(self._platform),
        )
        self._programs = Programs()
        self.memory_advice = advise_on_memory(config.eval)

    def __call__(self, variables: Variables, batch: dict[str, Array], height: int, what: str = "") -> Counted:
        """Return the predictions and the totals for a batch. The totals are zeros if it has no labels.

        Takes the same arguments and raises the same errors as `compile`.
        """
        return self.compile(variables, batch, height, what)(variables, batch)

    def compile(self, variables: Variables, batch: dict[str, Array], height: int, what: str = "") -> Any:
        """Return the program for batches like this one, as a function of (variables, batch).

        Args:
          variables: The network variables, {"params", "batch_stats"}.
          batch: A batch placed on the mesh by `place`.
          height: The image height, without the padding rows added by `place`.
          what: The subject of an error message about memory, such as "A batch of 4 images".

        Raises:
          OutOfMemoryError: The program does not fit into the memory of this process's devices.
        """

        def compile_it() -> Any:
            program = hosts.compile_together(self._jitted, variables, batch, height=height)
            with failing_together():
                require_memory(program, self.mesh.local_devices, what or "A batch", self.memory_advice)
            return program

        key = (height, *sorted((name, x.shape) for name, x in batch.items()))
        return self._programs.get(key, compile_it)

    def lower(self, variables: Variables, batch: dict[str, Any], height: int) -> Any:
        """Trace the program for a batch, which can consist of shapes alone, without compiling it."""
        return self._jitted.lower(variables, batch, height=height)

    def _run(self, count: Any, variables: Variables, batch: dict[str, Array], height: int) -> Counted:
        with compiling_for(self._platform, mesh=self.mesh):
            predictions, pixels = self._predict_and_count(count, variables, batch, height)
        if pixels is None:
            return predictions, jax.tree.map(jnp.asarray, empty_totals(self.num_classes))
        # Whether a pixel lies on a boundary depends on rows of other devices, so each device gets full label maps.
        whole = NamedSharding(self.mesh, P("data"))
        labels, predictions = lax.with_sharding_constraint((batch["label"][:, :height], predictions), whole)
        mask = valid_pixels(labels, batch["valid"])
        return predictions, count_images(pixels, labels, predictions, mask, batch.get("size"))

    def _predict_and_count(
        self, count: Any, variables: Variables, batch: dict[str, Array], height: int
    ) -> tuple[UInt8[Array, "n h w"], PixelCounts | None]:
        rows = split_rows(self.mesh, height, self._output_stride, self._margin) if self.row_unit else None
        if rows is None:
            return count(variables, batch)

        def count_rows(variables: Variables, batch: dict[str, Array], rows: Extent) -> tuple[Array, PixelCounts | None]:
            predictions, pixels = count(variables, batch, rows=rows)
            return predictions, lax.psum(pixels, rows.axis)

        specs = {name: P(None, rows.axis) if name in ("image", "label") else P() for name in batch}
        split = compute_on_rows(count_rows, self.mesh, rows, (P(), specs), (P(None, rows.axis), P()))
        predictions, pixels = split(variables, batch)
        return predictions[:, :height], pixels
