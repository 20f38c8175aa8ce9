"""The report of a run: evaluates a checkpoint and writes one HTML page about it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from markupsafe import Markup
from rich.console import Console

from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config, MeshConfig, to_dict
from deeplab_jax.errors import DataError
from deeplab_jax.evaluation import metrics
from deeplab_jax.evaluation.evaluate import Batch, evaluate
from deeplab_jax.evaluation.metrics import Confusion
from deeplab_jax.files import replacing
from deeplab_jax.pages import charts, html_page
from deeplab_jax.pages.examples import Example, WorstImages, confusions, row_shares
from deeplab_jax.train.metrics_log import read_log
from deeplab_jax.train.receipt import read_starts

MATRIX_CLASSES = 30  # a larger confusion matrix is unreadable
LISTED = 10  # confusions listed in words

Rows = Sequence[Mapping[str, Any]]  # of the run's log


def evaluation_config(run: str, split: str | None) -> tuple[Config, epath.Path]:
    """Return the config to evaluate with, on one device, and the checkpoint that `run` means.

    Args:
      run: what `resolve` takes.
      split: instead of the run's `eval.split`.

    Raises:
      CheckpointError: Nothing is found, or it cannot be read.
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


def write_report(
    config: Config,
    checkpoint: epath.Path,
    out: str,
    batches: Iterable[Batch],
    names: Sequence[str],
    images: int,
    console: Console,
) -> None:
    """Evaluate, and write `out`, whole or not at all.

    Args:
      config, checkpoint: what `evaluation_config` returns.
      out: the HTML file.
      batches: of the split that is evaluated.
      names: of its images.
      images: how many of the worst to show.
      console: where progress and the result go.

    Raises:
      CheckpointError: Checkpoint, log or receipt cannot be read.
      DataError: An image or label cannot be read, or the split has no labels.
    """
    workdir = checkpoint.parent.parent
    train, evaluations, starts = read_log(str(workdir), "train"), read_log(str(workdir), "eval"), read_starts(str(workdir))
    worst = WorstImages(names, config.labels, images)
    variables = restore_model(str(checkpoint), like=config)
    confusion = evaluate(config, variables, batches, len(names), [worst.add], console)
    if not confusion.any():
        raise DataError(f"`eval.split` (={config.eval.split!r}) has no labels to compare with: give --split")
    title, versions = f"{workdir.name}, step {checkpoint.name}", starts[-1].versions if starts else {}
    page = render_report(title, config, train, evaluations, confusion, len(names), worst.examples(), versions)
    with replacing(epath.Path(out)) as file:
        file.write(page.encode(errors="backslashreplace"))  # a name of a file need not be valid UTF-8
    console.print(f"{out}: mIoU {metrics.mean_iou(confusion):.4f} on {config.eval.split}, {len(names)} images")


def render_report(
    title: str,
    config: Config,
    train: Rows,
    evaluations: Rows,
    confusion: Confusion,
    images: int,
    worst: Sequence[Example],
    versions: Mapping[str, str],
) -> str:
    """Return the report as HTML.

    Args:
      title: names the run and its step.
      config: of the run, with the protocol of this evaluation.
      train, evaluations: rows of the run's log, may be empty.
      confusion: pixels by (label, prediction).
      images: number of images evaluated.
      worst: the images to show, worst first.
      versions: that the run was trained with.
    """
    labels = config.labels
    return html_page.render(
        "report.html",
        title=title,
        labels=labels,
        facts=_facts(config, train, confusion, images),
        charts=_charts(train, evaluations),
        class_iou=metrics.class_iou(confusion).tolist(),
        confusions=confusions(confusion, LISTED),
        shares=row_shares(confusion).tolist() if labels.num_classes <= MATRIX_CLASSES else [],
        labelled=confusion.any(1).tolist(),
        shown=np.flatnonzero(confusion.sum(0) + confusion.sum(1)).tolist(),
        worst=worst,
        config=json.dumps(to_dict(config), indent=1),
        versions={name: version for name, version in versions.items() if version},
    )


def _facts(config: Config, train: Rows, confusion: Confusion, images: int) -> dict[str, str]:
    where = f" on {config.eval.split}, {images:,} images"
    facts = {
        metrics.title_of(name) + where * (name == "miou"): html_page.percent(metric(confusion))
        for name, metric in metrics.OVERALL_METRICS.items()
    }
    facts["backbone"] = f"{config.model.backbone}, output stride {config.eval.output_stride or config.model.output_stride}"
    return facts | ({"steps": f"{train[-1]['step']:,}"} if train else {})


def _charts(train: Rows, evaluations: Rows) -> list[Markup]:
    def points(rows: Rows, name: str, factor: float = 1) -> charts.Points:
        return [(row["step"], factor * row[name]) for row in rows if row.get(name) is not None]

    scores = {metrics.title_of(name): points(evaluations, name, 100) for name in metrics.OVERALL_METRICS}
    drawn = [
        charts.lines("loss in training", {"loss": points(train, "loss")}),
        charts.lines("evaluations, %", scores, dots=True),
        charts.lines("learning rate", {"learning rate": points(train, "lr")}),
        charts.lines("images a second", {"images a second": points(train, "images_per_second")}),
    ]
    return [chart for chart in drawn if chart]
