"""The same work done by several implementations, each in its process, in turn: medians, ratios, memory. Knows no network.

Each side first gives numbers that are compared with the first side's. Then, after a warm-up, rounds: in each, every side runs
once and is then timed while the others sleep, so that a machine whose speed drifts slows all of them. A ratio is the median of
the rounds' ratios.
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
    """What a process measures.

    Attributes:
      numbers: for the comparison, by name.
      run: the work, once; it has been done when this returns.
      device_peak: bytes of an accelerator's memory that were held at most; None where the process's own memory is what counts.
      versions: of the libraries.
    """

    numbers: Callable[[], dict[str, np.ndarray]]
    run: Callable[[], None]
    device_peak: Callable[[], int | None]
    versions: dict[str, str]


Make = Callable[[argparse.Namespace], Side]


class Process:
    """A side in a process of its own, which computes when it is told to."""

    def __init__(self, make: Make, args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, args, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, word: str) -> Any:
        """The answer to "versions", "numbers", "seconds" or "peak".

        Raises:
          RuntimeError: with the reason why this side cannot be measured.
        """
        try:
            self._pipe.send(word)
            kind, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            raise RuntimeError(f"the process ended (exit code {self._process.exitcode})") from None
        if kind == "error":
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.terminate()
        self._process.join()


def _serve(make: Make, args: argparse.Namespace, pipe: Connection) -> None:
    try:
        began = time.perf_counter()
        side = make(args)
        while True:
            word = pipe.recv()
            if word == "numbers":
                given = side.numbers()
                answer: Any = (given, time.perf_counter() - began, host_peak())
                forget_host_peak()
            elif word == "seconds":
                side.run()  # what the others displaced, and memory that the system took back meanwhile, is no cost of a run
                start = time.perf_counter()
                for _ in range(args.repeat):
                    side.run()
                answer = (time.perf_counter() - start) / args.repeat
            elif word == "peak":
                answer = side.device_peak() or host_peak()
            else:
                answer = side.versions
            pipe.send(("answer", answer))
    except EOFError:
        return
    except Exception as error:
        traceback.print_exc(limit=-3)
        pipe.send(("error", " ".join(f"{type(error).__name__}: {error}".split())[:300]))


def forget_host_peak() -> None:
    """Lets `host_peak` begin anew, where the system can: compiling is told apart from running."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def host_peak() -> int:
    """Bytes of memory that this process held at most, since it began or `forget_host_peak`."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Not `getrusage`, which a process starts with its parent's.
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def positive(word: str) -> int:
    """A flag's value.

    Raises:
      ValueError: it is no whole number above 0.
    """
    if int(word) < 1:
        raise ValueError
    return int(word)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that all comparisons have."""
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--warm-up", type=int, default=2, help="untimed turns of each side before the rounds")
    parser.add_argument("--repeat", type=positive, default=1, help="runs that one timing takes together; more on a GPU")
    parser.add_argument("--one-at-a-time", action="store_true", help="no two sides in memory: for the largest batch that fits")
    parser.add_argument("--json", type=pathlib.Path, help="file to write the figures to")


def measure(sides: dict[str, Make], args: argparse.Namespace, bounds: dict[str, float]) -> dict[str, Any]:
    """Figures of each side, by its name; {"failed": reason} of one that cannot run.

    Args:
      sides: the first one is what the others are compared with.
      args: `add_flags`' and the sides' own.
      bounds: largest |a - b| / |b| of each of the sides' numbers.
    """
    found: dict[str, Any] = {}
    running: dict[str, Process] = {}
    numbers: dict[str, np.ndarray] = {}

    def started(name: str) -> Process:
        process = Process(sides[name], args)
        given, seconds, start_peak = process.ask("numbers")
        numbers.update({key: given[key] for key in given.keys() - numbers.keys()})
        entry = found.setdefault(name, {"start": seconds, "start_peak": start_peak})
        entry["versions"] = process.ask("versions")
        entry["errors"] = {key: relative_error(given[key], numbers[key]) for key in bounds}
        for _ in range(args.warm_up):
            process.ask("seconds")
        return process

    def attempt(name: str, *words: str) -> None:
        if "failed" in found.get(name, {}):
            return
        try:
            if name not in running:
                running[name] = started(name)
            for word in words:
                answer = running[name].ask(word)
                found[name].setdefault(word, []).append(answer)
        except RuntimeError as error:
            found[name] = {"failed": str(error)}
        if args.one_at_a_time and name in running:
            running.pop(name).close()

    if not args.one_at_a_time:
        for name in sides:
            attempt(name)
    for _ in range(args.rounds):
        for name in sides:
            attempt(name, "seconds", "peak")
    for process in running.values():
        process.close()
    for name, entry in found.items():
        for key, error in entry.get("errors", {}).items():
            if not error <= bounds[key]:  # nan is no agreement
                found[name] = {"failed": f"{key} is off by {error:.1e}, bound {bounds[key]:.0e}: not the same work"}
    return found


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b|, both of one shape; of integers the share that differs; nan where either has one."""
    if a.shape != b.shape:
        return math.nan
    if np.issubdtype(b.dtype, np.integer):
        return float(np.mean(a != b))
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


def report(title: str, found: dict[str, Any], args: argparse.Namespace, images: int) -> None:
    """Prints a table, writes --json, and ends the program with 1 if nothing could be compared.

    "peak" is memory while it runs, an accelerator's where there is one; "start" is until the first numbers, of the process:
    imports, weights, compiling. Where a process cannot forget its peak the first includes the second.

    Args:
      title: what was measured.
      found: by `measure`.
      args: the program's.
      images: that one run takes.
    """
    first, *others = found
    measured = {name: entry for name, entry in found.items() if "failed" not in entry}
    table = Table(
        "", "s", "range", "images/s", "peak GiB", f"times {others[0]}", f"memory / {others[0]}", "start s", "start GiB"
    )
    for entry in measured.values():
        entry["peak"] = max(entry["peak"])
    for name, entry in found.items():
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
    record = {"title": title, "date": f"{datetime.date.today()}", "command": command, "machine": machine, "sides": found}
    if args.json:
        partial = args.json.with_name(args.json.name + ".partial")
        partial.write_text(json.dumps(record, indent=2) + "\n")
        partial.replace(args.json)
    for name in (first, others[0]):
        if name not in measured:
            sys.exit(1)
