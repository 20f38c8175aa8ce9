"""The command `deeplab-jax plan`."""

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
    """Estimate the memory of a training, whether it fits the devices, and its minimum time. No data set is needed.

    Args:
      config: The recipe, as FILE.py or FILE.py:ARGUMENT.
      fields: Config fields to set, for example train.micro_batches=2 model.remat='(1,2)'.
      devices: The number of devices to compile for. If this machine has fewer, CPU devices are used instead.
      spatial: The value of mesh.spatial.
      batch_size: The value of data.batch_size.
      images: The number of training images, for a recipe that sets epochs instead of steps.
      accelerator: The device to plan for, by its data sheet: a100, a100-40gb, h100, h200, l4, a10g, v4, v5e, v5p or v6e.
        The default is the first device of this machine, whose speed is measured.
      mfu: The assumed share of the peak rate. With 1, the times are lower bounds.
      compile: Compile the step to get its memory from XLA. Without this, only the definition of the network is used.
    """
    from deeplab_jax.commands.flags import load_recipe
    from deeplab_jax.plan.plan import plan as show
    from deeplab_jax.runtime.compilation import enable_compilation_cache

    enable_compilation_cache()  # a later training can reuse the compiled step
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
