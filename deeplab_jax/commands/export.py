"""The command `deeplab-jax export`."""

from typing import Annotated, Literal

import tyro

from deeplab_jax.files import require_file


def export(
    checkpoint: Annotated[str, tyro.conf.arg(metavar="DIR")],
    out: Annotated[str, tyro.conf.arg(metavar="FILE")],
    format: Literal["stablehlo", "onnx"],
    output: Literal["labels", "logits"] = "labels",
) -> None:
    """Export a network to a single portable file that includes the preprocessing. Its input is uint8 [n, 3, h, w].

    The output of the file is compared with that of the checkpoint before the file is kept.

    Args:
      checkpoint: The folder of a run, RUN/best, RUN/checkpoints/N, or a folder that `weights import` wrote.
      out: The file to write.
      format: The file format: onnx, or stablehlo, which `deeplab_jax.load_exported` runs on CPUs, GPUs and TPUs.
      output: The output of the network: labels (uint8 [n, h, w]) or logits (float32 [n, classes, h, w]).
    """
    require_file(out, "--out")
    from deeplab_jax.export.export import export as write
    from deeplab_jax.runtime.compilation import enable_compilation_cache

    enable_compilation_cache()
    write(checkpoint, out, format, output)
