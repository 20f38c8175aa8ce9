"""The `deeplab-jax predict` command."""

import dataclasses
import sys
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from deeplab_jax.errors import ConfigError


def predict(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    out: Annotated[str, tyro.conf.arg(metavar="DIR")],
    confidence: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    opacity: float = 0.5,
    scales: tuple[float, ...] | None = None,
    flip: tyro.conf.DisallowNone[bool | None] = None,
    window: tuple[int, int] | None = None,
    output_stride: Literal[8, 16, 32] | None = None,
    batch_size: int = 0,
    max_pixels: int = 2**22,
) -> None:
    """Segment images and videos. The exit code is 1 if any file is unreadable.

    Args:
      inputs: Image files, video files, folders (including their subfolders), or patterns such as 'photos/**/*.jpg'.
      checkpoint: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      out: The results folder. Each image gets a PNG in train_ids, color and overlay. A video gets overlay/NAME.mp4, and its
        frames get PNGs in train_ids and color.
      confidence: Also write each pixel's largest class probability, scaled to 0-255.
      opacity: The opacity of the colours in overlays, from 0 to 1.
      scales: The factors by which to resize images. Predictions are averaged over all factors. The default is the run's scales.
      flip: Also predict the mirror image, and average the two predictions. The default is the run's setting.
      window: The sliding window's height and width, or 0 0 for full images. The default is the run's window.
      output_stride: The network's output stride. The default is the run's output stride.
      batch_size: The number of images per batch. If 0, use 1 on a CPU and otherwise as many images as fit in about a million
        pixels, between 1 and 8.
      max_pixels: The largest image, in pixels, to process in one piece. Larger images are processed in 768x768 windows to limit
        memory use.
    """
    if any(scale < 0.01 for scale in scales or ()):
        raise ConfigError(f"`--scales` (={scales}) cannot be used. Use factors of at least 0.01.")
    if any(side < 0 for side in window or ()):
        raise ConfigError(f"`--window` (={window}) is negative. Use a positive height and width, or 0 0 for full images.")
    from deeplab_jax.api import Segmenter, load
    from deeplab_jax.checkpoints.paths import resolve
    from deeplab_jax.models import validate
    from deeplab_jax.predict.images import Options, run
    from deeplab_jax.predict.inputs import find_inputs

    options = Options(out, confidence, opacity, batch_size, max_pixels)
    files, others = find_inputs(inputs, out)
    if not files:
        raise ConfigError(f"`INPUT` (={' '.join(inputs)}) contains no image or video. Give files, folders or patterns.")
    step = resolve(checkpoint)
    segmenter = load(step)
    overrides = {"scales": scales, "flip": flip, "window": window, "output_stride": output_stride}
    protocol: dict[str, Any] = {field: value for field, value in overrides.items() if value is not None}
    if window:
        protocol["window_stride"] = (0, 0)  # the run's stride was chosen for the run's window
    if protocol:
        config = dataclasses.replace(segmenter.config, eval=dataclasses.replace(segmenter.config.eval, **protocol))
        segmenter = Segmenter(validate(config), segmenter.variables)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"Checkpoint: {step}")
    failures: list[str] = []
    try:
        run(segmenter, files, options, console, failures.append)
        console.print(f"Segmented {len(files) - len(failures)} of {len(files)} files. The results are in {out}.")
        if others:
            names = ", ".join(str(path) for path in others[:3]) + ", ..." * (len(others) > 3)
            console.print(f"Skipped {len(others)} files without an image or video suffix: {names}")
    finally:
        for line in failures:
            console.print(f"failed: {line}")
    sys.exit(1 if failures else 0)
