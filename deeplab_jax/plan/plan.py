"""Print the `deeplab-jax plan` report."""

import dataclasses
import re

import jax
from rich.console import Console
from rich.table import Table

from deeplab_jax.config import Config, MeshConfig, total_steps
from deeplab_jax.errors import ConfigError, choose
from deeplab_jax.models.cost import TRAINING_OVER_FORWARD, Layer, by_part, layers, total
from deeplab_jax.plan.hosts import print_communication, print_hosts
from deeplab_jax.plan.memory import estimate, suggest_savings
from deeplab_jax.plan.program import Program, compile_evaluation, compile_step, find_devices
from deeplab_jax.plan.targets import count_chips, describe_devices
from deeplab_jax.plan.traffic import format_si, print_traffic
from deeplab_jax.runtime.accelerators import ACCELERATORS, GIB, Accelerator, copy_rate, matmul_rate
from deeplab_jax.runtime.memory import memory_limit
from deeplab_jax.training.begin import set_up
from deeplab_jax.training.log import format_duration


def plan(
    config: Config,
    console: Console,
    *,
    devices: int | None = None,
    accelerator: str = "",
    topology: str = "",
    hosts: int | None = None,
    images: int | None = None,
    image_size: tuple[int, int] | None = None,
    mfu: float = 1.0,
    compiles: bool = True,
) -> None:
    """Print a training run's parameter count, FLOPs, memory needs, minimum step time and minimum total time.

    Args:
      config: A validated config.
      console: The console to print to.
      devices: The number of devices. If None, it follows from `topology` or else from the config's mesh.
      accelerator: The device to plan for, as a key in `ACCELERATORS`. If "", measure the speed of this machine's first device
        and plan for devices like it.
      topology: The arrangement of TPU chips, such as "4x4". If "", it follows from `devices`.
      hosts: The number of hosts that have the devices, to also print what each host exchanges, reads and saves.
      images: The number of training images in an epoch. Needed to compute the total time if the config sets `train.epochs`.
      image_size: The (height, width) of evaluation images, to also compile the evaluation step.
      mfu: The fraction of the peak rate to assume (model FLOPs utilization), above 0 and at most 1.
      compiles: Whether to compile the step and print what its program needs.

    Raises:
      ConfigError: An argument is invalid, the accelerator's compiler is not installed, or the batch or the image rows cannot be
        split evenly over the devices.
    """
    _check_arguments(accelerator, mfu, images, devices, hosts, image_size)
    if accelerator and compiles:
        count = devices or (None if topology else max(config.mesh.data, 1) * config.mesh.spatial)
        targets = describe_devices(accelerator, count, topology)
    else:
        targets = find_devices(config.mesh, count_chips(accelerator, topology) if topology else devices)
    if devices or accelerator:
        config = dataclasses.replace(config, mesh=MeshConfig(spatial=config.mesh.spatial))
    setup = set_up(config, config.train.steps or 1, targets)
    mesh = MeshConfig(**setup.mesh.shape)
    _require_hosts_fit(hosts, mesh)
    sheet = ACCELERATORS.get(accelerator)
    network = layers(config.model, config.labels.num_classes, config.data.crop_size)
    _print_network(config, mesh, network, console)
    program = None
    if compiles:
        console.print(_announce_compilation(targets[0].platform))
        with console.status("compiling the training step"):
            program = compile_step(setup)
    _print_memory(config, mesh, targets[0], sheet, program, console)
    if program and sheet:
        print_traffic(program.traffic, program.flops, mesh.data * mesh.spatial, sheet, console)
    if compiles and image_size:
        with console.status("compiling the evaluation step"):
            evaluation = compile_evaluation(setup, image_size)
        size = "x".join(map(str, image_size))
        _print_program(f"evaluation of {config.eval.batch_size} images ({size})", evaluation, targets[0], console)
    seconds = _print_time(config, mesh, total(network), sheet, images, mfu, console)
    if hosts:
        state_bytes = estimate(config, mesh).state
        print_hosts(config, total(network), hosts, mesh.data * mesh.spatial, seconds, state_bytes, console)


def _check_arguments(
    accelerator: str,
    mfu: float,
    images: int | None,
    devices: int | None,
    hosts: int | None,
    image_size: tuple[int, int] | None,
) -> None:
    if accelerator:
        choose(accelerator, ACCELERATORS, "--accelerator")
    if not 0 < mfu <= 1:
        raise ConfigError(f"`--mfu` (={mfu}) cannot be used. Use a number above 0 and at most 1.")
    if images is not None and images < 1:
        raise ConfigError(f"`--images` (={images}) cannot be used. Use 1 or more.")
    if devices is not None and devices < 1:
        raise ConfigError(f"`--devices` (={devices}) cannot be used. Use 1 or more.")
    if hosts is not None and hosts < 1:
        raise ConfigError(f"`--hosts` (={hosts}) cannot be used. Use 1 or more.")
    if image_size and min(image_size) < 1:
        raise ConfigError(f"`--image-size` (={image_size}) cannot be used. Use a height and width of at least 1.")


def _require_hosts_fit(hosts: int | None, mesh: MeshConfig) -> None:
    devices = mesh.data * mesh.spatial
    if hosts and (devices % hosts or devices // hosts % mesh.spatial):
        raise ConfigError(
            f"`--hosts` (={hosts}) cannot be used with {devices} devices and mesh.spatial={mesh.spatial}. Every host must have "
            "the same number of devices, and mesh.spatial must be a divisor of it."
        )


def _announce_compilation(platform: str) -> str:
    duration = {"tpu": "about 5 minutes for a ResNet-50", "gpu": "about a minute for a ResNet-50"}
    expected = duration.get(platform, "a minute or two for a ResNet-50")
    return f"Compiling takes {expected} on 2 CPU cores, unless the result is cached. --no-compile skips it."


def _print_network(config: Config, mesh: MeshConfig, network: list[Layer], console: Console) -> None:
    model, data = config.model, config.data
    crop = "x".join(map(str, data.crop_size))
    console.print(
        f"{model.backbone}, output stride {model.output_stride}, {model.dtype}, {config.labels.num_classes} classes; "
        f"batch of {data.batch_size} crops ({crop}) on {mesh.data} x {mesh.spatial} devices (data x spatial)"
    )
    table = Table("forward, one image", "M parameters", "GFLOPs", "GB moved", "FLOPs per byte")
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
    is_stand_in = _is_stand_in(device, mesh, sheet)
    limit = sheet.memory if sheet else None if is_stand_in else memory_limit(device)
    expected = estimate(config, mesh)
    console.print(
        f"memory per device: {_format_bytes(expected.state)} state + {_format_bytes(expected.gradients)} gradients + "
        f"{_format_bytes(expected.activations)} activations = {_format_bytes(expected.total)} (estimate)"
    )
    if program:
        note = "a CPU program, so only an estimate for other devices" if is_stand_in else ""
        _print_program("training step", program, device, console, note)
    if limit is None:
        console.print("The device memory size is unknown. Select the device with --accelerator.")
        return
    is_exact = program is not None and not is_stand_in
    needed = program.peak_bytes if program and is_exact else expected.total
    if needed > limit:
        console.print(
            f"does not fit: needs {_format_bytes(needed)} of {_format_bytes(limit)} per device; "
            "each of these changes saves memory by itself:"
        )
        for change, saved in suggest_savings(config, mesh):
            console.print(f"  {change:32} saves about {_format_bytes(saved)} per device")
    else:
        verdict = "fits: needs" if is_exact else "may fit: needs about"
        console.print(f"{verdict} {_format_bytes(needed)} of {_format_bytes(limit)} per device, without evaluation")


def _print_program(name: str, program: Program, device: jax.Device, console: Console, note: str = "") -> None:
    console.print(
        f"{name}, compiled in {program.seconds:.0f} s for {device.device_kind}: {_format_bytes(program.arguments)} arguments + "
        f"{_format_bytes(program.outputs)} outputs - {_format_bytes(program.aliased)} aliased + "
        f"{_format_bytes(program.temporaries)} temporaries = {_format_bytes(program.peak_bytes)}{f' ({note})' if note else ''}"
    )
    moved = program.traffic.moved
    console.print(
        f"  each device executes {format_si(program.flops)}FLOPs and moves at most {format_si(moved)}B to and from its memory, "
        f"{program.flops / moved:.0f} FLOPs per byte (loop bodies count once)"
    )


def _is_stand_in(device: jax.Device, mesh: MeshConfig, sheet: Accelerator | None) -> bool:
    """Return whether `device` is only a stand-in for hardware that this machine lacks."""
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
) -> float:
    """Print how long a step and the run take at least. Return the time of a step in seconds."""
    count, size, dtype = mesh.data * mesh.spatial, config.data.batch_size, config.model.dtype
    rate, bandwidth = (sheet.flops, sheet.bandwidth) if sheet else (matmul_rate(dtype), copy_rate())
    source = f"data sheet, bfloat16{'; float32 is slower' * (dtype == 'float32')}" if sheet else f"measured, {dtype}"
    if not sheet and jax.default_backend() == "cpu" and count > 1:
        source += "; each device is assumed to be a machine like this one"
    flops = TRAINING_OVER_FORWARD * network.flops * size / count
    # A convolution's backward pass moves its input, output and weights two more times.
    moved = TRAINING_OVER_FORWARD * ((network.inputs + network.outputs) * size / count + network.weights)
    console.print(
        f"each device reaches {format_si(rate)}FLOP/s and {format_si(bandwidth)}B/s ({source}), a ratio of "
        f"{rate / bandwidth:.0f} FLOPs per byte"
    )
    bound = "compute" if flops / rate > moved / bandwidth else "memory"
    console.print(
        f"a step (3 x forward) needs at least {format_si(flops * count)}FLOPs in total; "
        f"per device {format_si(flops)}FLOPs and {format_si(moved)}B, {flops / moved:.0f} FLOPs per byte, {bound}-bound"
    )
    seconds = max(flops / rate / mfu, moved / bandwidth)
    share = f"at {mfu:.0%} of the peak rate" if mfu < 1 else "at the peak rate (lower bound)"
    console.print(f"{share}: {format_si(seconds)}s per step, {size / seconds:.1f} images/s")
    if count > 1:
        print_communication(network, count, sheet, console)
    if config.train.epochs and not images:
        console.print(
            f"train.epochs={config.train.epochs:g}: how long the full run takes depends on the number of training images. "
            "Pass that number with --images."
        )
    elif config.train.steps or config.train.epochs:
        steps = total_steps(config, images or 0)
        console.print(
            f"{steps} steps: {format_duration(steps * seconds)}, "
            "excluding evaluations, checkpoints, communication and waiting for data"
        )
    return seconds


def _format_bytes(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"
