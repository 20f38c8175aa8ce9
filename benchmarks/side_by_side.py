"""Measure the time and memory of the same work in several implementations ("sides"), and report medians and ratios.

Each side runs in a separate process, and its results are first compared with those of the first side. After a warm-up, the
sides are measured in rounds. In each round, the sides take turns: each does one untimed run and is then timed while the others
sleep. A drift in machine speed therefore affects all sides equally. Each ratio is the median of the per-round ratios.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Side:
    """The functions used to measure one implementation.

    Attributes:
      numbers: Returns the results of the work as a dict, to be compared with the other sides' results.
      run: Does the work once and waits until it is finished.
      device_peak: Returns the accelerator's peak memory in bytes, or None if the process's peak memory should be used.
      versions: Maps library names to versions.
    """

    numbers: Callable[[], dict[str, np.ndarray]]
    run: Callable[[], None]
    device_peak: Callable[[], int | None]
    versions: dict[str, str]


Make = Callable[[argparse.Namespace], Side]  # builds a side from the flags; called in the side's own process


class Process:
    """A side that runs in a separate process and answers requests."""

    def __init__(self, make: Make, args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, args, child_pipe), daemon=True)
        self._process.start()
        child_pipe.close()

    def request(self, name: str) -> Any:
        """Request "versions", "numbers", "seconds" or "peak" from the side, and return its answer.

        Raises:
          RuntimeError: This side cannot be measured. The message gives the reason.
        """
        try:
            self._pipe.send(name)
            kind, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"The process ended (exit code {self._process.exitcode}).") from None
        if kind == "error":
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


class InProcess(Process):
    """A side that runs in the calling process. This saves the start of a process, but memory is shared between the sides."""

    def __init__(self, make: Make, args: argparse.Namespace) -> None:
        self._make, self._args = make, args
        self._side: Side | None = None

    def request(self, name: str) -> Any:
        """Do the same as `Process.request`."""
        start_time = time.perf_counter()
        try:
            self._side = self._side or self._make(self._args)
            return _answer(self._side, name, self._args, start_time)
        except Exception as error:
            raise RuntimeError(_describe(error)) from None

    def close(self) -> None:
        """Release the side."""
        self._side = None


def _serve(make: Make, args: argparse.Namespace, pipe: Connection) -> None:
    try:
        start_time = time.perf_counter()
        side = make(args)
        while True:
            pipe.send(("answer", _answer(side, pipe.recv(), args, start_time)))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc(limit=-3)
        pipe.send(("error", _describe(error)))


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _answer(side: Side, name: str, args: argparse.Namespace, start_time: float) -> Any:
    """Return the answer to a request. `start_time` is the time at which the side's construction began."""
    if name == "numbers":
        answer = (side.numbers(), time.perf_counter() - start_time, host_peak())
        reset_host_peak()
        return answer
    if name == "seconds":
        # The first run is not timed. Since this side's last turn, the other sides have replaced the cache contents, and
        # the system might have reclaimed freed memory.
        side.run()
        start = time.perf_counter()
        for _ in range(args.repeat):
            side.run()
        return (time.perf_counter() - start) / args.repeat
    if name == "peak":
        return side.device_peak() or host_peak()
    return side.versions


def reset_host_peak() -> None:
    """Reset `host_peak`, if the system supports this, so that later readings exclude the peak during compilation."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def host_peak() -> int:
    """Return this process's peak resident memory, in bytes, since it started or last called `reset_host_peak`."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # `getrusage` would be wrong on Linux, where a new process inherits its parent's peak.
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def positive(word: str) -> int:
    """Parse a flag value that must be a positive integer.

    Raises:
      ValueError: The value is not an integer, or is below 1.
    """
    if int(word) < 1:
        raise ValueError
    return int(word)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags shared by all comparisons."""
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--warm-up", type=int, default=2, help="number of untimed measurements of each side before the rounds")
    parser.add_argument("--repeat", type=positive, default=1, help="number of runs in one timing; use more on a GPU")
    parser.add_argument(
        "--one-at-a-time", action="store_true", help="keep only one side in memory, to measure the largest batch that fits"
    )
    parser.add_argument("--json", type=pathlib.Path, help="file for the measurements")


def measure(
    sides: dict[str, Make], args: argparse.Namespace, bounds: dict[str, float], make_process: type[Process] = Process
) -> dict[str, Any]:
    """Measure all sides.

    Args:
      sides: Maps each side's name to the function that builds it. The first side is the one the others are compared with.
      args: The flags from `add_flags`, plus any that the sides need. With `until`, a time by `time.monotonic()`, no round but
        the first starts later than that.
      bounds: Maps each result name to the largest allowed relative error |a - b| / |b|.
      make_process: Where each side runs: `Process` or `InProcess`.

    Returns:
      A dict mapping each side's name to its measurements, or to {"failed": reason} if the side cannot run.
    """
    results: dict[str, Any] = {}
    running: dict[str, Process] = {}
    numbers: dict[str, np.ndarray] = {}

    def start(name: str) -> Process:
        process = make_process(sides[name], args)
        values, seconds, start_peak = process.request("numbers")
        numbers.update({key: values[key] for key in values.keys() - numbers.keys()})
        entry = results.setdefault(name, {"start": seconds, "start_peak": start_peak})
        entry["versions"] = process.request("versions")
        entry["errors"] = {key: relative_error(values[key], numbers[key]) for key in bounds}
        for _ in range(args.warm_up):
            process.request("seconds")
        return process

    def attempt(name: str, *requests: str) -> None:
        if "failed" in results.get(name, {}):
            return
        try:
            if name not in running:
                running[name] = start(name)
            for request in requests:
                answer = running[name].request(request)
                results[name].setdefault(request, []).append(answer)
        except RuntimeError as error:
            results[name] = {"failed": str(error)}
        if args.one_at_a_time and name in running:
            running.pop(name).close()

    if not args.one_at_a_time:
        for name in sides:
            attempt(name)
    for i in range(args.rounds):
        if i and time.monotonic() > getattr(args, "until", math.inf):
            break
        for name in sides:
            attempt(name, "seconds", "peak")
    for process in running.values():
        process.close()
    for name, entry in results.items():
        for key, error in entry.get("errors", {}).items():
            if not error <= bounds[key]:  # written so that NaN fails
                results[name] = {
                    "failed": f"{key} differs by {error:.1e}, more than {bounds[key]:.0e}, so this is not the same work."
                }
    return results


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return |a - b| / |b| for floats, or the share of elements that differ for integers.

    Returns:
      The error, or NaN if the shapes differ or an array contains NaN.
    """
    if a.shape != b.shape:
        return math.nan
    if np.issubdtype(b.dtype, np.integer):
        return float(np.mean(a != b))
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


def report(title: str, results: dict[str, Any], args: argparse.Namespace, images: int) -> None:
    """Print a table and write the --json file. Exit with code 1 if either of the first two sides failed.

    "peak" is the peak memory during the work. It is accelerator memory, or process memory if there is no accelerator. "start"
    is the time and process memory needed to get the first results, including imports, weights and compilation. If the system
    cannot reset a process's peak memory, "peak" includes "start".

    Args:
      title: The table title.
      results: The measurements returned by `measure`.
      args: The program's flags.
      images: The number of images per run.
    """
    first, *others = results
    measured = {name: entry for name, entry in results.items() if "failed" not in entry}
    table = Table(
        "", "s", "range", "images/s", "peak GiB", f"times {others[0]}", f"memory / {others[0]}", "start s", "start GiB"
    )
    for entry in measured.values():
        entry["peak"] = max(entry["peak"])
    for name, entry in results.items():
        if name not in measured:
            table.add_row(name, f"failed: {entry['failed']}")
            continue
        entry["median"] = statistics.median(entry["seconds"])
        entry["images_per_second"] = images / entry["median"]
        entry["faster_than"] = {
            other: statistics.median(b / a for a, b in zip(entry["seconds"], measured[other]["seconds"], strict=True))
            for other in measured
        }
        entry["memory_of"] = {other: entry["peak"] / measured[other]["peak"] for other in measured}
        cells = [f"{entry[key][others[0]]:.2f}" if others[0] in measured else "-" for key in ("faster_than", "memory_of")]
        low, high = min(entry["seconds"]), max(entry["seconds"])
        table.add_row(
            name,
            f"{entry['median']:.4g}",
            f"{low:.4g} to {high:.4g}",
            f"{entry['images_per_second']:.4g}",
            f"{entry['peak'] / 2**30:.2f}",
            *cells,
            f"{entry['start']:.1f}",
            f"{entry['start_peak'] / 2**30:.2f}",
        )
    console = Console(soft_wrap=True, width=150)
    console.print(title)
    console.print(table)
    command = " ".join(["python", *(os.path.relpath(word) if os.path.isfile(word) else word for word in sys.argv)])
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    record = {"title": title, "date": f"{datetime.date.today()}", "command": command, "machine": machine, "sides": results}
    if args.json:
        partial = args.json.with_name(args.json.name + ".partial")
        partial.write_text(json.dumps(record, indent=2) + "\n")
        partial.replace(args.json)
    for name in (first, others[0]):
        if name not in measured:
            sys.exit(1)
