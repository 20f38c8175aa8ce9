"""The `deeplab-jax warm` command."""

from typing import Annotated

import tyro

from deeplab_jax.errors import ConfigError


def warm(
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    max_pixels: int = 2**20,
    confidence: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Compile the programs for photos of all usual sizes, so that `predict` and `demo` start within seconds.

    The programs are kept in the compilation cache (docs/reference/compilation-cache.md). A program that is already there is not
    compiled again. If a folder has many images of one size, `predict` still compiles a program for this size, which saves time.

    Args:
      checkpoint: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      max_pixels: The largest photos, in pixels. The longer side can be up to twice as long as the shorter one.
      confidence: Compile the programs for `predict --confidence` instead.
    """
    if max_pixels < 1:
        raise ConfigError(f"`--max-pixels` (={max_pixels}) cannot be used. Use 1 or more.")
    from deeplab_jax.api import load
    from deeplab_jax.evaluation import inference
    from deeplab_jax.predict.images import WINDOW, Options, batch_size
    from deeplab_jax.runtime.canvases import Canvas, list_standard_canvases
    from deeplab_jax.runtime.compilation import require_compilation_cache
    from deeplab_jax.runtime.console import make_console

    segmenter = load(checkpoint)
    folder = require_compilation_cache()
    function = inference.predict_with_confidence if confidence else inference.predict
    console = make_console(markup=False)
    canvases = list_standard_canvases(max_pixels)
    for number, canvas in enumerate(canvases, start=1):
        height, width = canvas.size
        console.print(f"{number} of {len(canvases)}: {width}x{height} pixels")
        for count in {1, batch_size(canvas.size, Options(""))}:  # the demo has one image at a time
            segmenter.compile(function, count, canvas)
    console.print(f"Windows of larger images: {WINDOW[1]}x{WINDOW[0]} pixels")
    for is_exact in (True, False):
        segmenter.compile(inference.logits, 1, Canvas(WINDOW, is_exact))
    console.print(f"The programs are in {folder}.")
