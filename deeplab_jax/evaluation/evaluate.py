"""One pass over a split: confusion counts, and what is written of each image."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from deeplab_jax.config import Config
from deeplab_jax.evaluation import inference, pictures
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3
from deeplab_jax.sharding import check_batch, make_mesh, replicated

Batch = dict[str, np.ndarray]


def evaluate(
    config: Config,
    variables: dict[str, Any],
    batches: Iterable[Batch],
    names: Sequence[str],
    output: str | None,
    console: Console,
) -> Int[np.ndarray, "k k"]:
    """Scores `batches` at the labels' own resolution; zeros for a split without labels.

    Args:
      config: of the checkpoint, `eval` as wanted.
      variables: {"params", "batch_stats"}.
      batches: what `data.pipeline.eval_batches` yields.
      names: of the images, by the batches' "index".
      output: folder for the pictures, or None for none.
      console: where progress is shown.

    Raises:
      ConfigError: the batch does not divide over the devices.
    """
    mesh = make_mesh(config.mesh)
    check_batch(config.eval.batch_size, mesh, "eval.batch_size")
    network = inference.with_output_stride(config.model, config.eval.output_stride)
    compiled = inference.compile_predict_and_count(DeepLabV3(network, config.labels.num_classes))
    variables = jax.device_put(variables, replicated(mesh))
    total = np.zeros((config.labels.num_classes,) * 2, np.int64)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(names))
        for batch, predictions, counts in inference.scored_batches(compiled, variables, batches, mesh):
            total += counts
            rows = np.flatnonzero(batch["valid"])
            for i in rows if output else ():
                name = names[int(batch["index"][i])]
                _write_pictures(epath.Path(str(output)), name, batch["image"][i], np.asarray(predictions[i]), config.labels)
            progress.advance(task, len(rows))
    return total


def _write_pictures(
    output: epath.Path, name: str, image: UInt8[np.ndarray, "h w 3"], prediction: UInt8[np.ndarray, "h w"], label_set: LabelSet
) -> None:
    """`<output>/{train_ids,color,overlay}/<name>.png`."""
    drawn = {
        "train_ids": prediction,
        "color": pictures.colorize(prediction, label_set),
        "overlay": pictures.overlay(image, prediction, label_set),
    }
    for kind, pixels in drawn.items():
        path = output / kind / epath.Path(name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.fromarray(pixels).save(file, "PNG")
