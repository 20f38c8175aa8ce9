"""The command `deeplab-jax predict`."""

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
    """Predict images and videos. The exit code is 1 if any file could not be read.

    Args:
      inputs: Image files, video files, folders (including their subfolders), or patterns such as 'photos/**/*.jpg'.
      checkpoint: The folder of a run, RUN/best, RUN/checkpoints/N, or a folder that `weights import` wrote.
      out: The folder for the results. Each image gets a PNG in train_ids, color and overlay. A video gets overlay/NAME.mp4.
        The train ids and colours of its frames are written as PNGs.
      confidence: Also write the largest probability of each pixel, scaled to 0-255.
      opacity: The opacity of the colours in overlays, from 0 to 1.
      scales: The factors by which images are resized. Predictions are averaged over them. The default is that of the run.
      flip: Average over the mirror image too. The default is that of the run.
      window: The height and width of a sliding window. 0 0 processes full images. The default is that of the run.
      output_stride: The output stride of the features. The default is that of the run.
      batch_size: The number of images per batch. 0 uses as many as fit into a million pixels, from 1 to 8.
      max_pixels: Images with more pixels are processed in windows of 768x768, which limits the memory.
    """
    if any(scale < 0.01 for scale in scales or ()):
        raise ConfigError(f"`--scales` (={scales}) cannot be used. Use factors of 0.01 or more.")
    if any(side < 0 for side in window or ()):
        raise ConfigError(f"`--window` (={window}) is negative. Use a positive height and width, or 0 0 for full images.")
    from deeplab_jax.api import Segmenter, load
    from deeplab_jax.models import validate
    from deeplab_jax.predict.images import Options, run
    from deeplab_jax.predict.inputs import find_inputs

    options = Options(out, confidence, opacity, batch_size, max_pixels)
    files, others = find_inputs(inputs, out)
    if not files:
        raise ConfigError(f"`INPUT` (={' '.join(inputs)}) contains no image or video. Give files, folders or 'photos/*.jpg'.")
    segmenter = load(checkpoint)
    overrides = {"scales": scales, "flip": flip, "window": window, "output_stride": output_stride}
    protocol: dict[str, Any] = {field: value for field, value in overrides.items() if value is not None}
    if window:
        protocol["window_stride"] = (0, 0)  # the stride of the run only fits its own window
    if protocol:
        config = dataclasses.replace(segmenter.config, eval=dataclasses.replace(segmenter.config.eval, **protocol))
        segmenter = Segmenter(validate(config), segmenter.variables)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    failures: list[str] = []
    try:
        run(segmenter, files, options, console, failures.append)
        console.print(f"Predicted {len(files) - len(failures)} of {len(files)} files. The results are in {out}.")
        if others:
            names = ", ".join(str(path) for path in others[:3]) + ", ..." * (len(others) > 3)
            console.print(f"Skipped {len(others)} files that do not have the suffix of an image or video: {names}")
    finally:
        for line in failures:
            console.print(f"failed: {line}")
    sys.exit(1 if failures else 0)
