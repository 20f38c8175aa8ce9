"""Write to Weights & Biases."""

import os
import secrets
from collections.abc import Callable
from typing import Any

from deeplab_jax.buckets import is_url
from deeplab_jax.errors import one_line
from deeplab_jax.training.writers.tracker import PROJECT, Tracker, keep_id, read_id, run_name
from deeplab_jax.training.writers.writer import Checkpoint, Outcome, Row, RunStart, Strips

_STEP = "step"  # W&B refuses to go back to an earlier step of its own counter, so the steps of the run are a metric


class WeightsAndBiases(Tracker):
    """Writes to W&B, or to files for `wandb sync` in the run folder if there is no API key or no network."""

    package = "wandb"

    def __init__(self, run: RunStart, say: Callable[[str], None]) -> None:
        tracked = read_id(run, "wandb") or secrets.token_hex(4)
        keep_id(run, "wandb", tracked, say)
        self._run = _open(run, tracked, say)
        self._run.define_metric(_STEP, hidden=True)
        for kind in ("train", "eval"):
            self._run.define_metric(f"{kind}/*", step_metric=_STEP)

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        self._run.log({_STEP: step} | {f"{kind}/{name}": value for name, value in row.items() if value is not None})

    def write_images(self, step: int, strips: Strips) -> None:
        import wandb

        self._run.log({_STEP: step, "eval/strips": [wandb.Image(strip) for strip in strips]})

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        import wandb

        metadata = {"step": checkpoint.step, "miou": checkpoint.miou}
        artifact = wandb.Artifact(f"checkpoint-{self._run.id}", type="model", metadata=metadata)
        artifact.add_dir(checkpoint.folder)  # copies the files
        self._run.log_artifact(artifact, aliases=[f"step-{checkpoint.step}", *(["best"] if checkpoint.is_best else [])])

    def close(self, outcome: Outcome) -> None:
        if outcome == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == "finished" else 1)


def _open(run: RunStart, tracked: str, say: Callable[[str], None]) -> Any:
    import wandb

    def init(mode: str) -> Any:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run_name(run)),
            id=tracked,
            resume="allow",
            dir=None if is_url(run.workdir) else run.workdir,
            config=run.config,
            allow_val_change=True,
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )

    mode, reason = os.environ.get("WANDB_MODE", "online"), ""
    if mode == "online":
        try:
            if not wandb.login(prompt=False):
                raise ValueError("There is no API key. Set WANDB_API_KEY or run `wandb login`.")
            opened = init(mode)
            say(f"this run is {opened.url}.")
            return opened
        except Exception as error:  # the key, the network or the project
            mode, reason = "offline", f"{one_line(error).rstrip('.')}. "
    opened = init(mode)
    if mode == "offline":
        say(f"{reason}This run is offline. `wandb sync {os.path.dirname(opened.dir)}` uploads it.")
    return opened
