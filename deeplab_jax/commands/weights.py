"""`deeplab-jax weights import` and `deeplab-jax weights export`."""

from typing import Annotated

import tyro

from deeplab_jax.commands.data import choose_labels
from deeplab_jax.files import require_folder


def import_weights(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    out: Annotated[str, tyro.conf.arg(metavar="DIR")],
    from_: Annotated[str, tyro.conf.arg(name="from")] = "auto",
    labels: str | None = None,
    output_stride: int | None = None,
    multi_grid: tuple[float, ...] | None = None,
    stage3_first_rate: int | None = None,
    atrous_rates: tuple[int, ...] | None = None,
    align_corners: bool = False,
    ignore_head: bool = False,
    ema: bool = False,
) -> None:
    """Make a checkpoint from a DeepLabV3, or its backbone, of torchvision, timm or mmsegmentation.

    What the tensors do not determine comes from the file's own configuration or its published name, or is assumed; either is
    printed.

    Args:
      source: .safetensors, .pth, .pt or .bin file, or hf:OWNER/NAME[@REVISION].
      out: folder to make.
      from_: library whose names the tensors have, such as torchvision, timm or mmseg; auto recognises it.
      labels: cityscapes, camvid, voc, ade20k, a label-set file (.json), or a recipe, for its label set.
      output_stride: 8, 16 or 32.
      multi_grid: rates of the last stage's blocks in units of its own rate; mmsegmentation's D16-MG124 is 0.5 1 2.
      stage3_first_rate: rate of the third stage's first block; segmentation_models.pytorch has 2 at output stride 8.
      atrous_rates: rates of the ASPP at output stride 16.
      align_corners: resize logits with aligned corners, as in mmsegmentation's 769x769 networks.
      ignore_head: leave the classifiers out, to train from the rest with other classes.
      ema: take the moving average of the weights that the file keeps beside them.
    """
    from deeplab_jax.weights import transfer

    asked = {
        "output_stride": output_stride,
        "multi_grid": multi_grid,
        "stage3_first_rate": stage3_first_rate,
        "atrous_rates": atrous_rates,
        "align_corners": align_corners or None,
    }
    transfer.import_weights(
        source,
        require_folder(out, "--out", "weights/mmseg_r50"),
        fmt=from_,
        labels=choose_labels(labels) if labels else None,
        model={field: value for field, value in asked.items() if value is not None},
        ignore_head=ignore_head,
        ema=ema,
    )


def export_weights(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    to: str,
    out: Annotated[str, tyro.conf.arg(metavar="FILE")],
) -> None:
    """Write a checkpoint as a state dict that torchvision or mmsegmentation loads with strict=True.

    Args:
      checkpoint: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      to: library whose names the tensors get, such as torchvision or mmseg.
      out: .safetensors, .pth or .pt file to write.
    """
    from deeplab_jax.weights import transfer

    transfer.export_weights(checkpoint, out, fmt=to)
