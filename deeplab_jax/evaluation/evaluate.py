"""Run a network over a split, add up its totals, and call visitor functions with each image, for example to write files."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, UInt8
from rich.console import Console
from rich.progress import Progress

from deeplab_jax.config import Config
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation.inference import Evaluator
from deeplab_jax.evaluation.metrics import Totals, add_totals, empty_totals
from deeplab_jax.runtime.compilation import compiling_ahead
from deeplab_jax.runtime.memory import report_out_of_memory
from deeplab_jax.runtime.mesh import check_batch, local_rows, make_mesh, place, prefetch, replicated_sharding

Batch = dict[str, np.ndarray]


class StoppedError(Exception):
    """Raised if an evaluation was stopped before its last batch."""


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """An image with its prediction and label.

    Attributes:
      index: The image's position in the split.
      image: The decoded image.
      prediction: The predicted train ids.
      label: The true train ids, or None if the split has no labels.
    """

    index: int
    image: UInt8[np.ndarray, "h w c"]
    prediction: UInt8[np.ndarray, "h w"]
    label: UInt8[np.ndarray, "h w"] | None


Visitor = Callable[[EvaluatedImage], None]


def score(
    evaluator: Evaluator,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    show: Callable[[Batch, Sequence[int], Array], None],
    should_stop: Callable[[], bool] = lambda: False,
    names: Sequence[str] = (),
) -> Totals:
    """Evaluate all `batches` at label resolution and return the totals.

    Args:
      evaluator: The evaluator to run.
      variables: The network variables, {"params", "batch_stats"}, placed on the mesh.
      batches: This process's batches, from `data.evaluation.eval_batches`.
      show: A function called with each batch, the indices of its valid rows, and the on-device predictions from all processes.
        Use `local_rows` to get this process's predictions.
      should_stop: A function called before each batch. It must return the same value on all processes.
      names: The images' names by index, for error messages.

    Returns:
      The sums over all processes, or zeros for a split without labels.

    Raises:
      OutOfMemoryError: A batch does not fit into memory.
      StoppedError: `should_stop` returned True.
    """
    totals = empty_totals(evaluator.num_classes)
    with report_out_of_memory(evaluator.memory_advice):
        for batch, on_device in prefetch(batches, evaluator.mesh, evaluator.row_unit):
            if should_stop():
                raise StoppedError
            what = _describe_batch(batch, names)
            predictions, counts = evaluator(variables, on_device, batch["image"].shape[1], what)
            totals = add_totals(totals, counts)
            show(batch, np.flatnonzero(batch["valid"]).tolist(), predictions)
    return totals


def list_images(batch: Batch, rows: Sequence[int], predictions: Array) -> Iterator[EvaluatedImage]:
    """Yield the images in the given rows of a batch, without the padding around them.

    Args:
      batch: This process's batch, from `data.evaluation.eval_batches`.
      rows: The rows to yield.
      predictions: The on-device predictions from all processes.
    """
    on_host = local_rows(predictions)
    for i in rows:
        height, width = batch["size"][i] if "size" in batch else batch["image"].shape[1:3]
        label = batch["label"][i, :height, :width] if "label" in batch else None
        yield EvaluatedImage(int(batch["index"][i]), batch["image"][i, :height, :width], on_host[i, :height, :width], label)


def _describe_batch(batch: Batch, names: Sequence[str]) -> str:
    count, height, width = batch["image"].shape[:3]
    first = names[int(batch["index"][0])] if names else ""
    canvas = f"{width}x{height} pixels"
    if "size" in batch:
        canvas = f"up to {canvas}"
    if count == 1 and first:
        return f"{first} ({canvas})"
    example = f", such as {first}," if first else ""
    return f"A batch of {count} image{'s' * (count > 1)} of {canvas}{example}"


def open_evaluator(config: Config, variables: dict[str, Any]) -> tuple[Evaluator, dict[str, Any]]:
    """Return an evaluator for a config, and the variables placed on its devices.

    Args:
      config: The checkpoint's config. Its `eval` section sets the evaluation protocol.
      variables: The network variables, {"params", "batch_stats"}.

    Raises:
      ConfigError: The batch size cannot be divided evenly among the devices.
      OutOfMemoryError: The variables do not fit into memory.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    evaluator = Evaluator(config, mesh)
    with report_out_of_memory(evaluator.memory_advice):
        return evaluator, jax.device_put(variables, replicated_sharding(mesh))


def evaluate(
    config: Config,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    num_images: int,
    visitors: Sequence[Visitor],
    console: Console,
    names: Sequence[str] = (),
    kinds: Sequence[Batch] = (),
) -> Totals:
    """Evaluate `batches`, call the visitors with each image, and return the totals.

    Args:
      config: The checkpoint's config. Its `eval` section sets the evaluation protocol.
      variables: The network variables, {"params", "batch_stats"}.
      batches: This process's batches, from `data.evaluation.eval_batches`.
      num_images: The number of valid rows in `batches`.
      visitors: Functions to call, in order, with each image read by this process.
      console: The console for the progress bar.
      names: The images' names by index, for error messages.
      kinds: A batch of each kind, in the order of `batches`. Their programs are compiled ahead.

    Raises:
      ConfigError: The batch size cannot be divided evenly among the devices.
      OutOfMemoryError: A batch does not fit into memory.
    """
    evaluator, variables = open_evaluator(config, variables)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=num_images)

        def show(batch: Batch, rows: Sequence[int], predictions: Array) -> None:
            if visitors:
                for image in list_images(batch, rows, predictions):
                    for visit in visitors:
                        visit(image)
            progress.advance(task, len(rows))

        def compile_kind(batch: Batch) -> None:
            evaluator.compile(variables, place(batch, evaluator.mesh, evaluator.row_unit), batch["image"].shape[1])

        with compiling_ahead([functools.partial(compile_kind, batch) for batch in kinds]):
            return score(evaluator, variables, batches, show, names=names)


def require_labels(totals: Totals, split: str) -> None:
    """Check that an evaluation of the split `split` has counted any pixels.

    Raises:
      DataError: No pixel of the split has a label.
    """
    if not totals.confusion.any():
        raise DataError(f"`eval.split` (={split!r}) has no labels. Choose a labelled split with --split.")
