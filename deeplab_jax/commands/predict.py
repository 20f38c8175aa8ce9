"""The commands that use a trained network."""

import dataclasses
import sys
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from deeplab_jax.config.validation import validate
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_file

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def predict(
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT")],
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    out: Annotated[str, tyro.conf.arg(metavar="DIR")],
    confidence: Switch = False,
    opacity: float = 0.5,
    scales: tuple[float, ...] | None = None,
    flip: Switch = False,
    window: tuple[int, int] | None = None,
    output_stride: Literal[8, 16, 32] | None = None,
    batch_size: int = 0,
    max_pixels: int = 2**22,
) -> None:
    """Predict images, folders, patterns and videos; exit code 1 if any of them could not be read.

    Args:
      inputs: image or video files, folders with all that is below, or patterns such as 'photos/**/*.jpg'.
      checkpoint: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      out: folder for train_ids, color and overlay, a PNG for each image; of a video overlay/NAME.mp4 and a PNG for each frame.
      confidence: write the largest probability too, 0 to 255.
      opacity: of the colours in overlays, 0 to 1.
      scales: factors by which images are resized; predictions are averaged over them. Left out: as the run evaluates.
      flip: average over the mirrored image as well; left out, as the run evaluates.
      window: height and width of a sliding window; 0 0 takes images whole. Left out: as the run evaluates.
      output_stride: of the features; left out, as the run evaluates.
      batch_size: images at a time; 0 takes what makes a million pixels, 8 at most.
      max_pixels: larger images go through the network in windows of 768x768, so that memory is bounded.
    """
    _require_range("--opacity", opacity, 0, 1)
    _require_range("--batch-size", batch_size, 0)
    _require_range("--max-pixels", max_pixels, 1)
    for flag, values, least in (("--scales", scales or (), 0.01), ("--window", window or (), 0)):
        for value in values:
            _require_range(flag, value, least)
    from deeplab_jax.api import Segmenter, load
    from deeplab_jax.predict.images import Options, run
    from deeplab_jax.predict.inputs import find

    console = Console(soft_wrap=True, highlight=False, markup=False)
    found, others = find(inputs, out)
    if not found:
        raise ConfigError(f"`INPUT` (={' '.join(inputs)}) holds no image or video: give files, folders or 'photos/*.jpg'")
    segmenter = load(checkpoint)
    asked = {"scales": scales, "flip": flip or None, "window": window, "output_stride": output_stride}
    protocol: dict[str, Any] = {field: value for field, value in asked.items() if value is not None}
    if window:
        protocol["window_stride"] = (0, 0)  # the run's belongs to the run's window
    config = dataclasses.replace(segmenter.config, eval=dataclasses.replace(segmenter.config.eval, **protocol))
    options = Options(out, confidence, opacity, batch_size, max_pixels)
    failures: list[str] = []
    try:
        run(Segmenter(validate(config), segmenter.variables), found, options, console, failures.append)
        console.print(f"{len(found) - len(failures)} of {len(found)} predicted into {out}")
        if others:
            names = ", ".join(str(path) for path in others[:3]) + ", ..." * (len(others) > 3)
            console.print(f"{len(others)} passed over, by their names no images or videos: {names}")
    finally:
        for line in failures:
            console.print(f"failed: {line}")
    sys.exit(1 if failures else 0)


def report(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[str, tyro.conf.arg(metavar="FILE.html")],
    split: str | None = None,
    root: str | None = None,
    images: int = 24,
) -> None:
    """Evaluate a run and write what there is to see of it as one HTML page: curves, scores, confusions, the worst images.

    Args:
      run: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      out: file to write.
      split: name of the list to evaluate. Left out: the run's eval.split.
      root: where the data set or its prepared records lie now, if not where the run found it.
      images: how many of the worst images to show.
    """
    _require_range("--images", images, 0)
    require_file(out, "--out")
    from deeplab_jax.commands.datasets import evaluation_set, moved
    from deeplab_jax.pages.report import opened, write
    from deeplab_jax.runtime.compilation import keep_programs

    keep_programs()
    config, checkpoint = opened(run, split)
    config = moved(config, root)
    samples, batches = evaluation_set(config)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    write(config, checkpoint, out, batches(), samples.images, images, console)


def demo(
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    host: str = "127.0.0.1",
    port: int | None = None,
    max_mib: int = 20,
    max_pixels: int = 2**21,
) -> None:
    """Serve a page to drop images on: overlay, legend, shares of the classes. Needs pip install 'deeplab-jax[demo]'.

    Args:
      checkpoint: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      host: address to listen on; 0.0.0.0 lets other machines in, without a password.
      port: left out: the first free one from 7860 on.
      max_mib: largest upload in MiB.
      max_pixels: larger images are reduced to so many.
    """
    _require_range("--max-mib", max_mib, 1)
    _require_range("--max-pixels", max_pixels, 1)
    _require_range("--port", port or 1, 1, 65535)
    from deeplab_jax.api import load

    try:
        from deeplab_jax.pages.demo import blocks, serve, uploads
    except ModuleNotFoundError as error:
        raise ConfigError(f"`deeplab-jax demo` needs {error.name}: pip install 'deeplab-jax[demo]'") from None
    segmenter = load(checkpoint)
    with uploads():
        serve(blocks(segmenter, checkpoint, max_pixels), host=host, port=port, max_mib=max_mib)


def export(
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    out: Annotated[str, tyro.conf.arg(metavar="FILE")],
    format: Literal["stablehlo", "onnx"],
    output: Literal["labels", "logits"] = "labels",
) -> None:
    """Write a network as one file that runs elsewhere: uint8 [n, 3, h, w] in, preprocessing inside; checked before it is kept.

    Args:
      checkpoint: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      out: file to write.
      format: stablehlo, which `deeplab_jax.load_exported` runs on CPUs, GPUs and TPUs, or onnx.
      output: labels, uint8 [n, h, w], or logits, float32 [n, classes, h, w].
    """
    require_file(out, "--out")
    from deeplab_jax.export import export as run
    from deeplab_jax.runtime.compilation import keep_programs

    keep_programs()
    run.export(checkpoint, out, format, output)


def _require_range(flag: str, value: float, least: float, most: float = float("inf")) -> None:
    if not least <= value <= most:
        wanted = f"{least} to {most}" if most < float("inf") else f"{least} or more"
        raise ConfigError(f"`{flag}` (={value:g}) must be {wanted}")
