"""`deeplab-jax export`."""

from typing import Annotated, Literal

import tyro

from deeplab_jax.files import require_file


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
    from deeplab_jax.export.export import export as write
    from deeplab_jax.runtime.compilation import keep_programs

    keep_programs()
    write(checkpoint, out, format, output)
