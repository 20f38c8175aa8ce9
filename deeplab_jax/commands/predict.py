"""`deeplab-jax predict`."""

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
    """Predict images, folders, patterns and videos. The exit code is 1 if any of them could not be read.

    Args:
      inputs: image or video files, folders with everything below them, or patterns such as 'photos/**/*.jpg'.
      checkpoint: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      out: folder for train_ids, color and overlay: a PNG for each image; for a video overlay/NAME.mp4 and a PNG for each frame.
      confidence: also write the largest probability, 0 to 255.
      opacity: opacity of the colours in overlays, 0 to 1.
      scales: factors by which images are resized; predictions are averaged over them. Default: as the run evaluates.
      flip: average over the mirrored image as well. Default: as the run evaluates.
      window: height and width of a sliding window; 0 0 takes images whole. Default: as the run evaluates.
      output_stride: output stride of the features. Default: as the run evaluates.
      batch_size: images at a time; 0 takes as many as make a million pixels, at most 8.
      max_pixels: larger images go through the network in windows of 768x768, which bounds memory.
    """
    if any(scale < 0.01 for scale in scales or ()):
        raise ConfigError(f"`--scales` (={scales}) must be 0.01 or more")
    if any(side < 0 for side in window or ()):
        raise ConfigError(f"`--window` (={window}) must be 0 or more")
    from deeplab_jax.api import Segmenter, load
    from deeplab_jax.models import validate
    from deeplab_jax.predict.images import Options, run
    from deeplab_jax.predict.inputs import find_inputs

    options = Options(out, confidence, opacity, batch_size, max_pixels)
    files, others = find_inputs(inputs, out)
    if not files:
        raise ConfigError(f"`INPUT` (={' '.join(inputs)}) holds no image or video: give files, folders or 'photos/*.jpg'")
    segmenter = load(checkpoint)
    asked = {"scales": scales, "flip": flip, "window": window, "output_stride": output_stride}
    protocol: dict[str, Any] = {field: value for field, value in asked.items() if value is not None}
    if window:
        protocol["window_stride"] = (0, 0)  # the run's stride belongs to the run's window
    if protocol:
        config = dataclasses.replace(segmenter.config, eval=dataclasses.replace(segmenter.config.eval, **protocol))
        segmenter = Segmenter(validate(config), segmenter.variables)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    failures: list[str] = []
    try:
        run(segmenter, files, options, console, failures.append)
        console.print(f"{len(files) - len(failures)} of {len(files)} predicted into {out}")
        if others:
            names = ", ".join(str(path) for path in others[:3]) + ", ..." * (len(others) > 3)
            console.print(f"{len(others)} passed over, by their names no images or videos: {names}")
    finally:
        for line in failures:
            console.print(f"failed: {line}")
    sys.exit(1 if failures else 0)
