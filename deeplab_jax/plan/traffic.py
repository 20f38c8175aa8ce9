"""Print what a compiled training step moves, and the least time that this takes."""

import math

from rich.console import Console
from rich.table import Table

from deeplab_jax.plan.hlo import Traffic
from deeplab_jax.runtime.accelerators import Accelerator


def print_traffic(traffic: Traffic, flops: float, devices: int, sheet: Accelerator, console: Console) -> None:
    """Print a program's collectives, convolutions and copies, and the least times by the data sheet.

    Args:
      traffic: What the program moves on each device.
      flops: The floating-point operations on each device.
      devices: The number of devices.
      sheet: The device.
      console: The console to print to.
    """
    if traffic.collectives:
        table = Table("collective", "part of the step", "count", "size", show_footer=True)
        count = sum(count for count, _ in traffic.collectives.values())
        sent = sum(size for _, size in traffic.collectives.values())
        for column, footer in zip(table.columns, ("total", "", str(count), f"{format_si(sent)}B"), strict=True):
            column.footer = footer
        for name, (count, size) in traffic.collectives.items():
            table.add_row(*name.split(", "), str(count), f"{format_si(size)}B")
        console.print(table)
    for direction in ("forward", "backward"):
        kinds = {name: count for name, count in sorted(traffic.convolutions.items()) if name.startswith(direction)}
        listed = ", ".join(f"{count} {name.partition(', ')[2]}" for name, count in kinds.items() if ", " in name)
        console.print(f"convolutions, {direction}: {sum(kinds.values())}{f' ({listed})' if listed else ''}")
    console.print(f"copies and transpositions: {traffic.copies}, which write {format_si(traffic.copied)}B")
    times = least_times(traffic, flops, devices, sheet)
    parts = ", ".join(f"{name} {format_si(seconds)}s" for name, seconds in times.items() if seconds)
    console.print(f"least time at the data sheet's rates: {parts}")


def least_times(traffic: Traffic, flops: float, devices: int, sheet: Accelerator) -> dict[str, float]:
    """Return the least time in seconds for "compute", "memory" and "communication", by the data sheet. See `print_traffic`."""
    return {
        "compute": flops / sheet.flops,
        "memory": traffic.moved / sheet.bandwidth,
        "communication": _communication_seconds(traffic, devices, sheet),
    }


def _communication_seconds(traffic: Traffic, devices: int, sheet: Accelerator) -> float:
    """Return how long the devices take to exchange their sums in a ring, or 0 if the link's rate is unknown."""
    reduced = sum(size for name, (_, size) in traffic.collectives.items() if name.startswith("all-reduce"))
    return 2 * (devices - 1) / devices * reduced / sheet.link if sheet.link else 0.0


def format_si(value: float) -> str:
    """Format a number with three significant digits and an SI prefix. The caller appends the unit."""
    value = float(f"{value:.3g}")  # 999.9 becomes 1 k
    power = min(max(math.floor(math.log10(value) / 3), -3), 5) if 0 < value < math.inf else 0
    prefixes = {-3: "n", -2: "u", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T", 5: "P"}
    return f"{value / 1000.0**power:.3g} {prefixes[power]}"
