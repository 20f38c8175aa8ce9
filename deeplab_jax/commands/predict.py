"""The `deeplab-jax predict` command."""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from etils import epath
from rich.console import Console

from deeplab_jax.errors import ConfigError, summarize
from deeplab_jax.files import require_folder

if TYPE_CHECKING:
    from deeplab_jax.api import Segmenter
    from deeplab_jax.predict.images import Options
    from deeplab_jax.predict.inputs import Input
    from deeplab_jax.runtime.work_shard import Join

DEFAULT_CONFIDENCE = 0.9


def predict(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    out: Annotated[str, tyro.conf.arg(metavar="DIR")],
    confidence: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    opacity: float = 0.5,
    as_labels: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    min_confidence: float | None = None,
    scales: tuple[float, ...] | None = None,
    flip: tyro.conf.DisallowNone[bool | None] = None,
    window: tuple[int, int] | None = None,
    output_stride: Literal[8, 16, 32] | None = None,
    batch_size: int = 0,
    max_pixels: int = 2**22,
    shard: Annotated[str, tyro.conf.arg(metavar="I/N")] = "",
) -> None:
    """Segment images and videos. The exit code is 1 if any file is unreadable.

    Args:
      inputs: Image files, video files, folders (including their subfolders), or patterns such as 'photos/**/*.jpg'.
      checkpoint: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      out: The results folder. Each image gets a PNG in train_ids, color and overlay. A video gets overlay/NAME.mp4, and its
        frames get PNGs in train_ids and color.
      confidence: Also write each pixel's largest class probability, scaled to 0-255.
      opacity: The opacity of the colours in overlays, from 0 to 1.
      as_labels: Write the predictions as the labels of a new split instead of pictures. --out is then the data set folder and
        the name of the split, such as ROOT/pseudo. See docs/how-to/pseudo-labels.md.
      min_confidence: With --as-labels, the smallest probability of a pixel's class for which the pixel gets a label. All others
        are ignored in training. The default is 0.9.
      scales: The factors by which to resize images. Predictions are averaged over all factors. The default is the run's scales.
      flip: Also predict the mirror image, and average the two predictions. The default is the run's setting.
      window: The sliding window's height and width, or 0 0 for full images. The default is the run's window.
      output_stride: The network's output stride. The default is the run's output stride.
      batch_size: The number of images per batch. If 0, use 1 on a CPU and otherwise as many images as fit in about a million
        pixels, between 1 and 8.
      max_pixels: The largest image, in pixels, to process in one piece. Larger images are processed in 768x768 windows to limit
        memory use.
      shard: Do one share of the work, with I from 1 to N, and leave the others to N - 1 processes with the same command. The
        default is the share of this task of a SLURM array, and otherwise everything. See docs/how-to/clusters.md.
    """
    require_folder(out, "--out", "predicted")
    protocol = _make_protocol(scales, flip, window, output_stride)
    _check_label_flags(as_labels, min_confidence, confidence, opacity)
    from deeplab_jax.checkpoints.paths import resolve
    from deeplab_jax.predict.images import Options
    from deeplab_jax.runtime.console import make_console
    from deeplab_jax.runtime.work_shard import choose_shard

    options = Options(out, confidence, opacity, batch_size, max_pixels, choose_shard(shard, os.environ))
    files, others = _find_files(inputs, out)
    step = resolve(checkpoint)
    segmenter = _load(step, protocol)
    console = make_console(markup=False)
    console.print(f"Checkpoint: {step}")
    if options.shard.count > 1:
        console.print(options.shard.describe())
    if others:
        count = f"{len(others)} file{'s' * (len(others) > 1)}"
        console.print(f"Skipped {count} without an image or video suffix: {summarize(others, 3)}")
    limit = DEFAULT_CONFIDENCE if min_confidence is None else min_confidence
    failures = _write_results(segmenter, files, options, as_labels, limit, console)
    sys.exit(1 if failures else 0)


def _find_files(inputs: Sequence[str], out: str) -> tuple[Sequence["Input"], Sequence[Path]]:
    """Return the images and videos, and the files that are neither."""
    from deeplab_jax.predict.inputs import IMAGES, VIDEOS, find_inputs

    if not inputs:
        raise ConfigError("`INPUT` is missing. Give files, folders or patterns such as 'photos/*.jpg'.")
    files, others = find_inputs(inputs, out)
    if not files:
        rest = f", only {summarize(map(str, others), 3)}" if others else ""
        raise ConfigError(
            f"`INPUT` (={' '.join(inputs)}) contains no image or video{rest}. Give files with one of the suffixes "
            f"{', '.join(sorted(IMAGES | VIDEOS))}."
        )
    return files, others


def _write_results(
    segmenter: "Segmenter",
    files: Sequence["Input"],
    options: "Options",
    as_labels: bool,
    min_confidence: float,
    console: Console,
) -> list[str]:
    """Predict the files of this process's share. Print and return a line for each that failed."""
    failures: list[str] = []
    join = _make_join(segmenter, files, options, as_labels, min_confidence)
    try:
        if as_labels:
            from deeplab_jax.commands.pseudo_labels import write_split  # imports TensorFlow

            count = write_split(segmenter, files, options, min_confidence, console, failures.append, join)
        else:
            count = _write_pictures(segmenter, files, options, console, failures.append, join)
        console.print(f"Segmented {count - len(failures)} of {count} files. The results are in {options.out}.")
    finally:
        for line in failures:
            console.print(f"failed: {line}")
    return failures


def _write_pictures(
    segmenter: "Segmenter",
    files: Sequence["Input"],
    options: "Options",
    console: Console,
    fail: Callable[[str], None],
    join: "Join",
) -> int:
    """Predict the files of this process's share, and return their number."""
    from deeplab_jax.predict.images import run

    join.withdraw()
    share = run(segmenter, files, options, console, fail)
    counts = join.finish(share.count, share.plan, console.print)
    if counts and options.shard.count > 1:
        console.print(f"All {len(counts)} shards are done, with {sum(counts)} files in total.")
    return share.count


def _make_join(
    segmenter: "Segmenter", files: Sequence["Input"], options: "Options", as_labels: bool, min_confidence: float
) -> "Join":
    """Return the `Join` for the shards of this command. Those of other networks, files or settings do not count."""
    from deeplab_jax.runtime.work_shard import EVERYTHING, Join
    from deeplab_jax.training.state import state_digest

    if options.shard == EVERYTHING:
        return Join(EVERYTHING, epath.Path(options.out), "", is_exclusive=as_labels)
    names = [(str(each.path), each.name) for each in files]
    settings = (segmenter.config.eval, dataclasses.replace(options, shard=EVERYTHING), as_labels, min_confidence)
    work = repr((state_digest(segmenter.variables), names, settings)).encode(errors="surrogateescape")
    # Pictures of other inputs can be in the same folder. Labels are one split.
    return Join(options.shard, epath.Path(options.out), hashlib.sha256(work).hexdigest()[:16], is_exclusive=as_labels)


def _make_protocol(
    scales: tuple[float, ...] | None, flip: bool | None, window: tuple[int, int] | None, output_stride: int | None
) -> dict[str, Any]:
    """Return the fields of the run's `eval` config to replace."""
    if scales is not None and not (scales and all(0.01 <= scale <= 8 for scale in scales)):
        raise ConfigError(f"`--scales` (={scales}) cannot be used. Give factors from 0.01 to 8.")
    if window and min(window) < 1 and window != (0, 0):
        raise ConfigError(f"`--window` (={window}) cannot be used. Give a positive height and width, or 0 0 for full images.")
    overrides: dict[str, Any] = {"scales": scales, "flip": flip, "window": window, "output_stride": output_stride}
    if window:
        overrides["window_stride"] = (0, 0)  # the run's stride was chosen for the run's window
    return {field: value for field, value in overrides.items() if value is not None}


def _load(step: os.PathLike[str], protocol: dict[str, Any]) -> "Segmenter":
    """Load a network, with some fields of its `eval` config replaced."""
    from deeplab_jax.api import Segmenter, load
    from deeplab_jax.models import validate

    segmenter = load(step)
    if not protocol:
        return segmenter
    config = dataclasses.replace(segmenter.config, eval=dataclasses.replace(segmenter.config.eval, **protocol))
    return Segmenter(validate(config), segmenter.variables)


def _check_label_flags(as_labels: bool, min_confidence: float | None, confidence: bool, opacity: float) -> None:
    if min_confidence is not None and not as_labels:
        raise ConfigError(f"`--min-confidence` (={min_confidence:g}) only works with --as-labels. Add it, or leave this out.")
    if min_confidence is not None and not 0 <= min_confidence <= 1:
        raise ConfigError(f"`--min-confidence` (={min_confidence:g}) cannot be used. Use a probability from 0 to 1.")
    if as_labels and confidence:
        raise ConfigError(
            "`--confidence` cannot be combined with --as-labels, which writes no pictures. Run the command twice."
        )
    if as_labels and opacity != 0.5:
        raise ConfigError(f"`--opacity` (={opacity:g}) cannot be combined with --as-labels, which writes no pictures.")
