"""The `deeplab-jax plan` command."""

from typing import Annotated

import tyro


def plan(
    config: Annotated[str, tyro.conf.arg(metavar="FILE.py")],
    fields: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FIELD=VALUE")] = (),
    devices: int | None = None,
    topology: str = "",
    hosts: int | None = None,
    spatial: int | None = None,
    batch_size: int | None = None,
    width: int | None = None,
    images: int | None = None,
    image_size: tuple[int, int] | None = None,
    accelerator: str = "",
    mfu: float = 1.0,
    compile: bool = True,
) -> None:
    """Estimate a training run's memory use and minimum duration, and check that it fits on the devices. No data set is needed.

    Args:
      config: The recipe, as FILE.py or FILE.py:ARGUMENT.
      fields: Config fields to set, for example train.micro_batches=2 model.remat='(1,2)'.
      devices: The number of devices to compile for. Without --accelerator, CPU devices take the place of those that this
        machine lacks.
      topology: The arrangement of TPU chips, such as 4x4 for v5e and v6e or 2x2x4 for v5p. The default follows from --devices.
      hosts: The number of hosts that share these devices. Also print what each host sends and reads, and what losing one costs.
      spatial: Overrides mesh.spatial.
      batch_size: Overrides data.batch_size. With --accelerator, also overrides eval.batch_size.
      width: Overrides model.width. A narrow network compiles faster on GPUs, and has the same collectives.
      images: The number of training images, or of those in the first split if the recipe sets data.mix. Only needed if the
        recipe sets epochs instead of steps.
      image_size: The height and width of evaluation images, to also compile the evaluation step.
      accelerator: The device to plan for, using data-sheet figures: a100, a100-40gb, h100, h200, b200, l4, a10g, v4, v5e, v5p
        or v6e. The step is compiled for a100, h100, h200 and b200 if the extra plan-gpu is installed, and for v5e, v5p and v6e
        if plan-tpu is. By default, this machine's first device is used, and its speed is measured.
      mfu: The assumed fraction of the device's peak rate. At 1, the times are lower bounds.
      compile: Compile the training step to get its memory use from XLA. Otherwise, estimates use only the network definition.
    """
    import jax

    from deeplab_jax.commands.flags import load_recipe
    from deeplab_jax.plan.plan import plan as show
    from deeplab_jax.runtime.compilation import enable_compilation_cache
    from deeplab_jax.runtime.console import make_console

    options = {"mesh.spatial": spatial, "data.batch_size": batch_size, "model.width": width}
    if accelerator:
        options["eval.batch_size"] = batch_size
        jax.config.update("jax_platforms", "cpu")  # planning for other devices must not occupy those of this machine
    else:
        # A later training run can reuse the compiled step. Programs for devices that are not there cannot be read again.
        enable_compilation_cache()
    overrides = [f"{field}={value}" for field, value in options.items() if value is not None]
    show(
        load_recipe(config, (*fields, *overrides)),
        make_console(),
        devices=devices,
        accelerator=accelerator,
        topology=topology,
        hosts=hosts,
        image_size=image_size,
        images=images,
        mfu=mfu,
        compiles=compile,
    )
