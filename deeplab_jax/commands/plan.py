"""`deeplab-jax plan`."""

from typing import Annotated

import tyro
from rich.console import Console


def plan(
    config: Annotated[str, tyro.conf.arg(metavar="FILE.py")],
    fields: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FIELD=VALUE")] = (),
    devices: int | None = None,
    spatial: int | None = None,
    batch_size: int | None = None,
    images: int | None = None,
    accelerator: str = "",
    mfu: float = 1.0,
    compile: bool = True,
) -> None:
    """Estimate whether a training fits into its devices' memory, and how long it takes at least. Needs no data set.

    Args:
      config: recipe, or FILE.py:ARGUMENT.
      fields: fields of the config to set: train.micro_batches=2 model.remat='(1,2)'.
      devices: number of devices to compile for; where this machine has fewer, CPU devices stand in.
      spatial: mesh.spatial.
      batch_size: data.batch_size.
      images: number of training images, for a recipe that counts epochs.
      accelerator: device to plan for by its data sheet: a100, a100-40gb, h100, h200, l4, a10g, v4, v5e, v5p or v6e. Default:
        this machine's first device, measured.
      mfu: assumed share of the peak rate; 1 gives a bound.
      compile: ask XLA for the memory of the compiled step; without it, only the network's definition is used.
    """
    from deeplab_jax.commands.flags import load_recipe
    from deeplab_jax.plan.plan import plan as show
    from deeplab_jax.runtime.compilation import keep_programs

    keep_programs()  # the training that follows may find its own
    options = {"mesh.spatial": spatial, "data.batch_size": batch_size}
    given = [f"{field}={value}" for field, value in options.items() if value is not None]
    show(
        load_recipe(config, (*fields, *given)),
        Console(soft_wrap=True, highlight=False),
        devices=devices,
        accelerator=accelerator,
        images=images,
        mfu=mfu,
        compiles=compile,
    )
