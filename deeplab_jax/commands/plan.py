"""The `deeplab-jax plan` command."""

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
    """Estimate a training run's memory use and minimum duration, and check that it fits on the devices. No data set is needed.

    Args:
      config: The recipe, as FILE.py or FILE.py:ARGUMENT.
      fields: Config fields to set, for example train.micro_batches=2 model.remat='(1,2)'.
      devices: The number of devices to compile for. If this machine has fewer, CPU devices are used instead.
      spatial: Overrides mesh.spatial.
      batch_size: Overrides data.batch_size.
      images: The number of training images. Only needed if the recipe sets epochs instead of steps.
      accelerator: The device to plan for, using data-sheet figures: a100, a100-40gb, h100, h200, l4, a10g, v4, v5e, v5p or v6e.
        By default, this machine's first device is used, and its speed is measured.
      mfu: The assumed fraction of the device's peak rate. At 1, the times are lower bounds.
      compile: Compile the training step to get its memory use from XLA. Otherwise, estimates use only the network definition.
    """
    from deeplab_jax.commands.flags import load_recipe
    from deeplab_jax.plan.plan import plan as show
    from deeplab_jax.runtime.compilation import enable_compilation_cache

    enable_compilation_cache()  # a later training run can reuse the compiled step
    options = {"mesh.spatial": spatial, "data.batch_size": batch_size}
    overrides = [f"{field}={value}" for field, value in options.items() if value is not None]
    show(
        load_recipe(config, (*fields, *overrides)),
        Console(soft_wrap=True, highlight=False),
        devices=devices,
        accelerator=accelerator,
        images=images,
        mfu=mfu,
        compiles=compile,
    )
