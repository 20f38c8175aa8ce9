"""`deeplab-jax report`: evaluates a checkpoint, and writes the page."""

import dataclasses
from collections.abc import Iterable, Sequence

from etils import epath
from rich.console import Console

from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config, MeshConfig
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluate import Batch, evaluate
from deeplab_jax.files import replacing
from deeplab_jax.pages.examples import Worst
from deeplab_jax.pages.report_page import Scored, page
from deeplab_jax.train.metrics_log import read_log
from deeplab_jax.train.receipt import read_starts


def opened(run: str, split: str | None) -> tuple[Config, epath.Path]:
    """The config to evaluate with, on one device, and the checkpoint that `run` means.

    Args:
      run: see `checkpoint.resolve`.
      split: instead of the run's `eval.split`.

    Raises:
      CheckpointError: nothing is found, or it cannot be read.
    """
    checkpoint = resolve(run)
    config = stored_config(str(checkpoint))
    config = dataclasses.replace(
        config,
        # Any machine has one device; the run may have had 64.
        mesh=MeshConfig(data=1),
        eval=dataclasses.replace(config.eval, split=split or config.eval.split),
    )
    return config, checkpoint


def write(
    config: Config,
    checkpoint: epath.Path,
    out: str,
    batches: Iterable[Batch],
    names: Sequence[str],
    images: int,
    console: Console,
) -> None:
    """Evaluates and writes `out`, whole or not at all.

    Args:
      config, checkpoint: what `opened` returns.
      out: the HTML file.
      batches: of the split that is evaluated.
      names: of its images.
      images: how many of the worst to show.
      console: where progress and the result go.

    Raises:
      CheckpointError: checkpoint, log or receipt cannot be read.
      DataError: an image or label cannot be read, or the split has no labels.
    """
    workdir = checkpoint.parent.parent
    name = str(workdir)
    train, evaluations, starts = read_log(name, "train"), read_log(name, "eval"), read_starts(name)
    worst = Worst(names, config.labels, images)
    variables = restore_model(str(checkpoint), like=config)
    confusion = evaluate(config, variables, batches, len(names), [worst.add], console)
    if not confusion.any():
        raise DataError(f"`eval.split` (={config.eval.split!r}) has no labels to compare with: give --split")
    scored = Scored(config.eval.split, len(names), confusion, worst.examples())
    versions = starts[-1].versions if starts else {}
    with replacing(epath.Path(out)) as file:
        file.write(page(f"{workdir.name}, step {checkpoint.name}", config, train, evaluations, scored, versions).encode())
    console.print(f"{out}: mIoU {metrics.mean_iou(confusion):.4f} on {config.eval.split}, {len(names)} images")
