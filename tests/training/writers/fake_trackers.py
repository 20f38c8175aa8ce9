"""Trackers for tests, in a file that their processes import quickly."""

import json
import os
import pathlib
import time

from deeplab_jax.training.writers.tracker import Tracker, keep_id


class Recorder(Tracker):
    """Appends every call to `calls.jsonl` in the run folder."""

    package = "json"

    def __init__(self, run, say):
        self._path = pathlib.Path(run.workdir) / "calls.jsonl"
        keep_id(run, "fake", "id", say)
        say(f"lr {run.config['optim.lr']}")

    def _record(self, *call):
        with self._path.open("a") as file:
            file.write(json.dumps(call) + "\n")

    def write_scalars(self, step, kind, row):
        self._record("scalars", step, kind, row)

    def write_images(self, step, strips):
        self._record("images", step, [strip.tolist() for strip in strips])

    def write_checkpoint(self, checkpoint):
        text = (pathlib.Path(checkpoint.folder) / "model" / "array").read_text()
        self._record("checkpoint", checkpoint.step, checkpoint.is_best, text)

    def close(self, outcome):
        self._record("close", outcome)


class Failing(Recorder):
    """Fails at step 2."""

    def write_scalars(self, step, kind, row):
        if step == 2:
            print("a library's own output")
            raise OSError(28, "No space left on device")
        super().write_scalars(step, kind, row)


class Offline(Recorder):
    """Cannot upload files."""

    def write_checkpoint(self, checkpoint):
        raise ConnectionError("no network")


class Hanging(Recorder):
    """Waits for a network forever."""

    def write_scalars(self, step, kind, row):
        time.sleep(1000)


class Dying(Recorder):
    """Crashes like a library in C."""

    def write_scalars(self, step, kind, row):
        os._exit(3)
