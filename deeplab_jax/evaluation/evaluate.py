"""One pass over a split: confusion counts, and what is written of each image."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8
from rich.console import Console
from rich.progress import Progress

from deeplab_jax.config import Config
from deeplab_jax.evaluation.inference import Evaluator
from deeplab_jax.runtime.mesh import check_batch, local_rows, make_mesh, prefetch, replicated

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluatedImage:
    """One evaluated image.

    Attributes:
      index: its position in the list.
      image: as it was decoded.
      prediction: train ids.
      label: train ids; None in a split without labels.
    """

    index: int
    image: UInt8[np.ndarray, "h w 3"]
    prediction: UInt8[np.ndarray, "h w"]
    label: UInt8[np.ndarray, "h w"] | None


Visitor = Callable[[EvaluatedImage], None]


def score(
    evaluator: Evaluator,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    show: Callable[[Batch, Sequence[int], Array], None],
) -> Int[np.ndarray, "k k"]:
    """Return confusion counts of one pass over `batches`, at the labels' own resolution; zeros for a split without labels.

    Args:
      evaluator: of the config and mesh.
      variables: {"params", "batch_stats"} on the mesh.
      batches: what `data.pipeline.eval_batches` yields on this process; the counts are those of all processes.
      show: called with each batch, its valid rows and the predictions on the devices, of all processes (`local_rows`).
    """
    total = np.zeros((evaluator.num_classes, evaluator.num_classes), np.int64)
    for batch, on_device in prefetch(batches, evaluator.mesh, evaluator.row_unit):
        predictions, counts = evaluator(variables, on_device, batch["image"].shape[1])
        total += np.asarray(counts, np.int64)
        show(batch, np.flatnonzero(batch["valid"]).tolist(), predictions)
    return total


def evaluate(
    config: Config,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    num_images: int,
    visitors: Sequence[Visitor],
    console: Console,
) -> Int[np.ndarray, "k k"]:
    """Return confusion counts of `batches` while progress is shown and `visitors` get each image.

    Args:
      config: of the checkpoint, `eval` as wanted.
      variables: {"params", "batch_stats"}.
      batches: what `data.pipeline.eval_batches` yields.
      num_images: how many valid rows `batches` have.
      visitors: called in turn with each image that this process read, once.
      console: where progress is shown.

    Raises:
      ConfigError: the batch does not divide over the devices.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    evaluator = Evaluator(config, mesh)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=num_images)

        def show(batch: Batch, rows: Sequence[int], predictions: Array) -> None:
            if visitors:
                on_host = local_rows(predictions)
                labels = batch.get("label", [None] * len(on_host))
                for i in rows:
                    for visit in visitors:
                        visit(EvaluatedImage(int(batch["index"][i]), batch["image"][i], on_host[i], labels[i]))
            progress.advance(task, len(rows))

        variables = jax.device_put(variables, replicated(mesh))
        return score(evaluator, variables, batches, show)
