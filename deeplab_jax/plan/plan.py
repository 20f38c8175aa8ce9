"""What `deeplab-jax plan` prints."""

import dataclasses
import math
import re

import jax
from rich.console import Console
from rich.table import Table

from deeplab_jax.config import Config, MeshConfig, total_steps
from deeplab_jax.errors import ConfigError
from deeplab_jax.models.cost import TRAINING_OVER_FORWARD, Layer, by_part, layers, total
from deeplab_jax.plan.memory import estimate, remedies
from deeplab_jax.plan.program import Program, compile_step, find_devices
from deeplab_jax.runtime.accelerators import ACCELERATORS, GIB, Accelerator, copy_rate, matmul_rate, memory_limit
from deeplab_jax.train.begin import set_up
from deeplab_jax.train.output import duration


def plan(
    config: Config,
    console: Console,
    *,
    devices: int | None = None,
    accelerator: str = "",
    images: int | None = None,
    mfu: float = 1.0,
    compiles: bool = True,
) -> None:
    """Print parameters, FLOPs, memory, and the least time of a step and a run.

    Args:
      config: validated.
      console: where to.
      devices: how many; None for the config's mesh on this machine.
      accelerator: a key of `ACCELERATORS` to plan for; "" for devices like the first one here, measured.
      images: of the training split, for a config that counts epochs.
      mfu: share of the peak rate to reckon with.
      compiles: whether the step is compiled, for XLA's account of it.

    Raises:
      ConfigError: an argument cannot be used, or the batch or the image rows do not divide over the devices.
    """
    if accelerator and accelerator not in ACCELERATORS:
        raise ConfigError(f"`--accelerator` (={accelerator!r}) is not known: use one of {', '.join(ACCELERATORS)}")
    if not 0 < mfu <= 1:
        raise ConfigError(f"`--mfu` (={mfu}) cannot be used: use a share above 0, up to 1")
    if images is not None and images < 1:
        raise ConfigError(f"`--images` (={images}) cannot be used: use a number from 1")
    targets = find_devices(config.mesh, devices)
    if devices:
        config = dataclasses.replace(config, mesh=MeshConfig(spatial=config.mesh.spatial))
    setup = set_up(config, config.train.steps or 1, targets)
    mesh = MeshConfig(**setup.mesh.shape)
    sheet = ACCELERATORS.get(accelerator)
    network = layers(config.model, config.labels.num_classes, config.data.crop_size)
    _print_network(config, mesh, network, console)
    program = None
    if compiles:
        console.print("compiling the step: a minute or two for a ResNet-50 on a few CPU cores; --no-compile leaves it out")
        program = compile_step(setup)
    _print_memory(config, mesh, targets[0], sheet, program, console)
    _print_time(config, mesh, total(network), sheet, images, mfu, console)


def _print_network(config: Config, mesh: MeshConfig, network: list[Layer], console: Console) -> None:
    model, data = config.model, config.data
    crop = "x".join(map(str, data.crop_size))
    console.print(
        f"{model.backbone}, output stride {model.output_stride}, {model.dtype}, {config.labels.num_classes} classes; "
        f"batch {data.batch_size} of {crop} on {mesh.data} x {mesh.spatial} devices (data x spatial)"
    )
    table = Table("forward, one image", "M parameters", "GFLOPs", "GB moved", "FLOPs a byte")
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in (*by_part(network), total(network)):
        moved = layer.inputs + layer.outputs + layer.weights
        numbers = (layer.parameters / 1e6, layer.flops / 1e9, moved / 1e9)
        table.add_row(layer.name, *(f"{number:.3f}" for number in numbers), f"{layer.flops / moved:.0f}")
    console.print(table)


def _print_memory(
    config: Config, mesh: MeshConfig, device: jax.Device, sheet: Accelerator | None, program: Program | None, console: Console
) -> None:
    stands_in = _stands_in(device, mesh, sheet)
    limit = sheet.memory if sheet else None if stands_in else memory_limit(device)
    least = estimate(config, mesh)
    console.print(
        f"memory a device: {_size(least.state)} state + {_size(least.gradients)} gradients + "
        f"{_size(least.activations)} activations = {_size(least.total)} at the least"
    )
    if program:
        console.print(
            f"compiled in {program.seconds:.0f} s for {device.device_kind}: {_size(program.arguments)} arguments + "
            f"{_size(program.outputs)} outputs - {_size(program.aliased)} both + {_size(program.temporaries)} temporaries = "
            f"{_size(program.held)}{' (a CPU program: for other devices an estimate)' * stands_in}"
        )
        console.print(
            f"  it executes {_si(program.flops)}FLOPs and accesses {_si(program.accessed)}B a device, "
            f"{program.flops / program.accessed:.0f} FLOPs a byte (XLA's account; a loop counts as one pass)"
        )
    if limit is None:
        console.print("what a device has is not known here: name it with --accelerator")
        return
    decides = program is not None and not stands_in
    needed = program.held if program and decides else least.total
    if needed > limit:
        console.print(f"does not fit: {_size(needed)} of {_size(limit)} a device; what saves memory, each alone:")
        for change, saved in remedies(config, mesh):
            console.print(f"  {change:32} about {_size(saved)} a device")
    else:
        verdict = "fits" if decides else "may fit, at the least"
        console.print(f"{verdict}: {_size(needed)} of {_size(limit)} a device; evaluation not included")


def _stands_in(device: jax.Device, mesh: MeshConfig, sheet: Accelerator | None) -> bool:
    """Check whether the device stands in for those that are planned for."""
    if sheet:
        return not re.search(sheet.kinds, device.device_kind)
    return device.platform == "cpu" and mesh.data * mesh.spatial > 1


def _print_time(
    config: Config,
    mesh: MeshConfig,
    network: Layer,
    sheet: Accelerator | None,
    images: int | None,
    mfu: float,
    console: Console,
) -> None:
    count, size, dtype = mesh.data * mesh.spatial, config.data.batch_size, config.model.dtype
    rate, bandwidth = (sheet.flops, sheet.bandwidth) if sheet else (matmul_rate(dtype), copy_rate())
    source = f"data sheet, bfloat16{'; float32 is slower' * (dtype == 'float32')}" if sheet else f"measured, {dtype}"
    if not sheet and jax.default_backend() == "cpu" and count > 1:
        source += ": each device a machine like this one"
    flops = TRAINING_OVER_FORWARD * network.flops * size / count
    # The backward pass of a convolution reads and writes its three arrays twice more.
    moved = TRAINING_OVER_FORWARD * ((network.inputs + network.outputs) * size / count + network.weights)
    console.print(
        f"a device does {_si(rate)}FLOP/s and moves {_si(bandwidth)}B/s ({source}), {rate / bandwidth:.0f} FLOPs a byte"
    )
    bound = "FLOPs" if flops / rate > moved / bandwidth else "memory"
    console.print(
        f"a step by definition (3 x forward): {_si(flops * count)}FLOPs in all; {_si(flops)}FLOPs and {_si(moved)}B a device, "
        f"{flops / moved:.0f} FLOPs a byte: bound by {bound}"
    )
    seconds = max(flops / rate / mfu, moved / bandwidth)
    share = f"at {mfu:.0%} of the peak rate" if mfu < 1 else "at the peak rate, so at the least"
    console.print(f"{share}: {_si(seconds)}s a step, {size / seconds:.1f} images/s")
    if count > 1:
        _print_exchange(network, count, sheet, console)
    if config.train.epochs and not images:
        console.print(f"train.epochs={config.train.epochs:g}: give --images, how many the training split has, for a whole run")
    elif config.train.steps or config.train.epochs:
        steps = total_steps(config, images or 0)
        console.print(
            f"{steps} steps: {duration(steps * seconds)}; evaluations, checkpoints, exchange and waiting for data not included"
        )


def _print_exchange(network: Layer, count: int, sheet: Accelerator | None, console: Console) -> None:
    gradients, statistics = 4 * network.parameters, 2 * 4 * network.statistics
    sent = 2 * (count - 1) / count * (gradients + statistics)
    time = f", {_si(sent / sheet.link)}s at {_si(sheet.link)}B/s" if sheet and sheet.link else ""
    console.print(
        f"all-reduced: {_si(gradients)}B of gradients and {_si(statistics)}B of BatchNorm's sums; a ring sends {_si(sent)}B a "
        f"device and step{time}"
    )


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def _si(value: float) -> str:
    """Return three digits and a prefix, to be followed by the unit."""
    power = min(max(math.floor(math.log10(value) / 3), -3), 5) if 0 < value < math.inf else 0
    prefixes = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
    return f"{value / 1000.0**power:.3g} {prefixes[power]}"
