"""Print what a training run on several hosts needs from the network and the storage, and what a preemption costs."""

from rich.console import Console

from deeplab_jax.config import Config
from deeplab_jax.models.cost import Layer
from deeplab_jax.plan.traffic import format_si
from deeplab_jax.runtime.accelerators import Accelerator
from deeplab_jax.training.log import format_duration

_HIDDEN_SHARE = 0.1  # the share of a step that the exchange between hosts may take


def reduced_bytes(network: Layer) -> tuple[float, float]:
    """Return how many bytes of gradients and of BatchNorm sums all devices add up in each step.

    The network's gradients and sums are float32. A BatchNorm layer adds up a mean and a variance in each direction.
    """
    return 4 * network.parameters, 2 * 4 * network.statistics


def print_communication(network: Layer, devices: int, sheet: Accelerator | None, console: Console) -> None:
    """Print the size of the all-reduces, and how long a ring of all devices takes for them."""
    gradients, statistics = reduced_bytes(network)
    sent = _ring_bytes(gradients + statistics, devices)
    time = f", {format_si(sent / sheet.link)}s at {format_si(sheet.link)}B/s" if sheet and sheet.link else ""
    console.print(
        f"all-reduce: {format_si(gradients)}B of gradients and {format_si(statistics)}B of BatchNorm sums; "
        f"in a ring, each device sends {format_si(sent)}B per step{time}"
    )


def print_hosts(
    config: Config, network: Layer, hosts: int, devices: int, step_seconds: float, state_bytes: float, console: Console
) -> None:
    """Print what each host exchanges, reads and saves.

    Args:
      config: A validated config.
      network: The sum of the network's layers, from `models.cost.total`.
      hosts: The number of hosts, a divisor of `devices`.
      devices: The number of devices of all hosts.
      step_seconds: The least time of a step, in seconds. With a longer one, the rates are lower.
      state_bytes: The size of the training state, in bytes.
      console: The console to print to.
    """
    batch, save_every = config.data.batch_size, config.train.save_every
    rate = batch / step_seconds
    console.print(f"{hosts} hosts with {devices // hosts} devices each, which train {batch / hosts:g} images per step each:")
    if hosts > 1:
        sent = _ring_bytes(sum(reduced_bytes(network)), hosts)
        console.print(
            f"  network: each host sends {format_si(sent)}B per step to another host. For at most {_HIDDEN_SHARE:.0%} of a "
            f"step, its link needs {format_si(8 * sent / (_HIDDEN_SHARE * step_seconds))}bit/s in each direction"
        )
    console.print(f"  storage: {rate:.1f} images/s with their labels, {rate / hosts:.1f} for each host")
    console.print(f"  checkpoint: {format_si(state_bytes)}B, which every host reads to resume")
    console.print("  preemption with SIGTERM: loses no step, only the time to save and to start again")
    if save_every:
        lost = format_duration(save_every * step_seconds)
        half = format_duration(save_every * step_seconds / 2)
        console.print(
            f"  lost host: loses up to {save_every} steps (train.save_every), {lost}, and on average {half}, besides about a "
            "minute until the other hosts notice it"
        )
    else:
        console.print("  lost host: loses the steps since the last evaluation, or the whole run, because train.save_every is 0")


def _ring_bytes(reduced: float, members: int) -> float:
    """Return how many bytes each member of a ring sends for an all-reduce of `reduced` bytes."""
    return 2 * (members - 1) / members * reduced
