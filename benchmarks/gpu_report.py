"""Run commands with a time limit, store the results of `gpu.py`'s stages as JSON files, and show them in one table."""

import json
import os
import pathlib
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

Result = dict[str, Any]
MEMORY_ERRORS = ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory", "bad_alloc", "MemoryError")
DETAILS = ("sides", "seconds", "goal", "met")  # entries that the table shows elsewhere, or not at all


class Report:
    """One stage's results, written to `folder`/`stage`.json after every part so that they survive if the stage is killed."""

    def __init__(self, folder: pathlib.Path, stage: str, seconds: float) -> None:
        self._path, self._start = folder / f"{stage}.json", time.monotonic()
        self.end = self._start + seconds
        self._record: Result = {"stage": stage, "status": "did not finish", "parts": {}}
        self._write()

    def time_left(self) -> float:
        """Return the number of seconds until the stage has to end."""
        return self.end - time.monotonic()

    def run(self, part: str, seconds: float, work: Callable[..., Result], *args: Any) -> Result:
        """Run one part, and store its result or the reason why there is none.

        Args:
          part: The name of the part.
          seconds: The time that the part needs. It is skipped if less is left.
          work: Returns the result. If it contains "goal" and "met", the table shows them in columns of their own.
          args: The arguments of `work`.
        """
        start = time.monotonic()
        if self.time_left() < seconds:
            result: Result = {"skipped": f"only {self.time_left():.0f} of {seconds:.0f} s were left"}
        else:
            try:
                result = work(*args)
            except Exception as error:  # the other parts do not depend on this one
                traceback.print_exc(limit=-3)
                result = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        self.update(part, result | {"seconds": round(time.monotonic() - start, 1)})
        print(f"{part}: {describe(result)}", flush=True)
        return result

    def update(self, part: str, result: Result) -> None:
        """Replace one part's result."""
        self._record["parts"][part] = result
        self._write()

    def finish(self) -> None:
        """Mark the stage as complete."""
        self._record["status"] = "complete"
        self._write()

    def _write(self) -> None:
        self._record["seconds"] = round(time.monotonic() - self._start, 1)
        write_json(self._path, self._record)


def run_command(command: list[str], seconds: float) -> str:
    """Run a command, and kill it with all its child processes when the time is over.

    Returns:
      "", or how the command ended if it did not succeed.
    """
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"ended with exit code {code}" if code else ""


def write_json(path: pathlib.Path, content: Result) -> None:
    """Replace a JSON file in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> Result:
    """Return a JSON file's content, or {} if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def is_memory_error(message: str) -> bool:
    """Return whether an error message says that memory ran out."""
    return any(text in message for text in MEMORY_ERRORS)


def describe(value: Any) -> str:
    """Return a result as short text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {describe(item)}" for name, item in value.items() if name not in DETAILS and item != {})
    if isinstance(value, list):
        return " ".join(map(describe, value))
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


def show(folder: pathlib.Path, stages: list[str]) -> None:
    """Print a table of the stages' results, and write it to `folder`/summary.txt."""
    table = Table("stage", "part", "result", "goal", "met", title="Results", show_lines=True)
    for stage in stages:
        record = read_json(folder / f"{stage}.json")
        table.add_row(stage, f"{record.get('seconds', 0):.0f} s", record.get("status", "no results"))
        for part, result in record.get("parts", {}).items():
            table.add_row("", part, describe(result), result.get("goal"), {True: "yes", False: "no"}.get(result.get("met"), ""))
    with (folder / "summary.txt").open("w") as file:
        Console(file=file, width=160).print(table)
    Console(width=160, soft_wrap=False).print(table)
