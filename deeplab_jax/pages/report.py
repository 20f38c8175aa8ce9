"""Evaluate a checkpoint and write a run report, a single HTML page with the results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from markupsafe import Markup
from rich.console import Console

from deeplab_jax.checkpoints.store import restore_model
from deeplab_jax.config import Config, to_dict
from deeplab_jax.evaluation import scores
from deeplab_jax.evaluation.evaluate import Batch, evaluate, require_labels
from deeplab_jax.evaluation.metrics import BINS, CLASS_METRICS, OVERALL_METRICS, Totals
from deeplab_jax.evaluation.robustness import CLEAN, Robustness, read_results
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import LabelSet
from deeplab_jax.pages import charts, html_page
from deeplab_jax.pages.examples import Example, WorstImages, list_confusions, row_shares
from deeplab_jax.training.metrics_log import read_log
from deeplab_jax.training.receipt import read_starts

MAX_MATRIX_CLASSES = 30  # a confusion matrix with more classes would be unreadable
MAX_LISTED = 10  # maximum number of confusions to list as text

Rows = Sequence[Mapping[str, Any]]  # rows from the run's metrics log


def write_report(
    config: Config,
    run: str,
    checkpoint: epath.Path,
    out: str,
    batches: Iterable[Batch],
    names: Sequence[str],
    images: int,
    console: Console,
) -> None:
    """Evaluate a checkpoint and write the report to `out`. No partial file is left behind after an error.

    Args:
      config: The config for the evaluation, on one device.
      run: What the user gave as the run.
      checkpoint: The step folder to evaluate.
      out: The HTML file to write.
      batches: The batches of the evaluated split.
      names: The names of the split's images.
      images: The number of worst images to show.
      console: The console for the progress bar and the result.

    Raises:
      CheckpointError: The checkpoint, metrics log or receipt cannot be read.
      DataError: An image, a label or robustness.json cannot be read, or the split has no labels.
    """
    workdir = checkpoint.parent.parent
    train, evaluations, starts = read_log(str(workdir), "train"), read_log(str(workdir), "eval"), read_starts(str(workdir))
    robustness = describe_robustness(read_results(workdir / "robustness"), config.labels)
    worst = WorstImages(names, config.labels, images)
    variables = restore_model(str(checkpoint), like=config, given=run)
    totals = evaluate(config, variables, batches, len(names), [worst.add], console)
    require_labels(totals, config.eval.split)
    if warning := scores.warn_of_infinite_logits(scores.summary(totals, config.labels)):
        console.print(warning)
    title, versions = f"{workdir.name}, step {checkpoint.name}", starts[-1].versions if starts else {}
    page = render_report(title, config, train, evaluations, totals, len(names), worst.examples(), versions, robustness)
    with write_atomically(epath.Path(out)) as file:
        file.write(page.encode(errors="backslashreplace"))  # file names need not be valid UTF-8
    console.print(f"{out}: mIoU {OVERALL_METRICS['miou'].compute(totals):.4f} on {config.eval.split}, {len(names)} images")


def render_report(
    title: str,
    config: Config,
    train: Rows,
    evaluations: Rows,
    totals: Totals,
    images: int,
    worst: Sequence[Example],
    versions: Mapping[str, str],
    robustness: Mapping[str, Any] | None = None,
) -> str:
    """Return the HTML report.

    Args:
      title: The run name and step.
      config: The run's config, but with the `eval` fields used for this evaluation.
      train: The training rows from the metrics log, or an empty list.
      evaluations: The evaluation rows from the metrics log, or an empty list.
      totals: The sums over the evaluated images, which have labelled pixels.
      images: The number of evaluated images.
      worst: The images to show, worst first.
      versions: Maps each library used for training to its version.
      robustness: The scores on corrupted images, from `describe_robustness`.
    """
    labels, confusion = config.labels, np.asarray(totals.confusion)
    return html_page.render(
        "report.html",
        title=title,
        labels=labels,
        facts=_facts(config, train, totals, images),
        charts=_charts(train, evaluations),
        class_titles=[metric.title for metric in CLASS_METRICS.values()],
        class_scores=_list_class_scores(totals),
        reliability=_draw_reliability(totals),
        confusions=list_confusions(confusion, MAX_LISTED),
        shares=row_shares(confusion).tolist() if labels.num_classes <= MAX_MATRIX_CLASSES else [],
        labelled=confusion.any(1).tolist(),
        shown=np.flatnonzero(confusion.sum(0) + confusion.sum(1)).tolist(),
        worst=worst,
        config=json.dumps(to_dict(config), indent=1),
        versions={name: version for name, version in versions.items() if version},
        robustness=robustness,
    )


def describe_robustness(results: Robustness | None, labels: LabelSet) -> dict[str, Any] | None:
    """Return what robustness.html shows, or None without scores on clean images or with those of other classes.

    Args:
      results: The contents of the run's robustness folder, or None if it has none.
      labels: The run's label set.
    """
    if results is None or CLEAN not in results.cells or results.cells[CLEAN]["iou"].keys() != set(labels.names):
        return None
    severities, corruptions, clean = results.severities(), results.corruptions(), results.cells[CLEAN]
    summary = results.summary()
    return {
        "settings": results.settings,
        "severities": severities,
        "summary": summary,
        "means": results.describe_means(),
        "rows": [(name, [results.miou(name, s) for s in severities], summary["corruptions"][name]) for name in corruptions],
        "classes": [(clean["iou"][name], [results.class_iou(each, name) for each in corruptions]) for name in labels.names],
    }


def _facts(config: Config, train: Rows, totals: Totals, images: int) -> dict[str, str]:
    where = f" on {config.eval.split}, {images:,} images"
    facts = {
        metric.title + where * (name == "miou"): scores.format_score(metric, metric.compute(totals))
        for name, metric in OVERALL_METRICS.items()
    }
    facts["backbone"] = f"{config.model.backbone}, output stride {config.eval.output_stride or config.model.output_stride}"
    return facts | ({"steps": f"{train[-1]['step']:,}"} if train else {})


def _list_class_scores(totals: Totals) -> list[list[float]]:
    """Return each class's CLASS_METRICS, followed by its share of the labelled pixels."""
    shares = totals.confusion.sum(1) / totals.confusion.sum()
    return np.stack([*(metric.compute(totals) for metric in CLASS_METRICS.values()), shares], axis=1).tolist()


def _draw_reliability(totals: Totals) -> Markup:
    """Return a reliability diagram: the accuracy over the mean confidence, in percent, of the bins with pixels."""
    pixels, hits, confidence = (values[totals.calibration.pixels > 0] for values in totals.calibration)
    points = list(zip((100 * confidence / pixels).tolist(), (100 * hits / pixels).tolist(), strict=True))
    lines = {"network": points, "perfect calibration": [(0, 0), (100, 100)]}
    return charts.draw_lines(f"accuracy in % over confidence in %, in {BINS} bins", lines, dots=True, x_name="confidence")


def _charts(train: Rows, evaluations: Rows) -> list[Markup]:
    def points(rows: Rows, name: str, factor: float = 1) -> charts.Points:
        return [(row["step"], factor * row[name]) for row in rows if row.get(name) is not None]

    def evaluated(*names: str) -> dict[str, charts.Points]:
        return {OVERALL_METRICS[name].title: points(evaluations, name, 100) for name in names}

    drawn = [
        charts.draw_lines("training loss", {"loss": points(train, "loss")}),
        charts.draw_lines("evaluation loss", {"loss": points(evaluations, "loss")}, dots=True),
        charts.draw_lines("evaluation scores, %", evaluated("miou", "pixel_accuracy", "boundary_miou"), dots=True),
        charts.draw_lines("calibration error, %", evaluated("ece"), dots=True),
        charts.draw_lines("learning rate", {"learning rate": points(train, "lr")}),
        charts.draw_lines("images per second", {"images per second": points(train, "images_per_second")}),
    ]
    return [chart for chart in drawn if chart]
