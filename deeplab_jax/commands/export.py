"""The `deeplab-jax export` command."""

from typing import Annotated, Literal

import tyro

from deeplab_jax.files import require_file


def export(
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    out: Annotated[str, tyro.conf.arg(metavar="FILE")],
    format: Annotated[str, tyro.conf.arg(metavar="FORMAT")],
    output: Literal["labels", "logits"] = "labels",
    size: tuple[int, int] | None = None,
    opset: int | None = None,
) -> None:
    """Export a network with its preprocessing to a single portable file that takes uint8 [n, c, h, w] images.

    The file is only written if its output matches the checkpoint's.

    Args:
      checkpoint: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      out: The file to write.
      format: The file format, such as onnx. `deeplab_jax.load_exported` runs stablehlo files on CPUs, GPUs and TPUs.
      size: The height and width of the images, for programs that need a fixed size. The file then takes one image at a time.
      opset: The ONNX operator set, from 11 to 21. The default is 18.
      output: The network output: labels (uint8 [n, h, w]) or logits (float32 [n, classes, h, w]).
    """
    require_file(out, "--out")
    from deeplab_jax.export.export import export as write
    from deeplab_jax.runtime.compilation import enable_compilation_cache
    from deeplab_jax.runtime.console import make_console

    enable_compilation_cache()
    write(checkpoint, out, format, output, make_console(markup=False).print, size=size, opset=opset)
