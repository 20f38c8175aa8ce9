"""Write to trackio."""

import os
import secrets
from collections.abc import Callable

from deeplab_jax.training.writers.tracker import PROJECT, Tracker, keep_id, read_id, run_name
from deeplab_jax.training.writers.writer import Checkpoint, Outcome, Row, RunStart, Strips


class Trackio(Tracker):
    """Writes to trackio's database on this machine, or to the Space or server that its environment variables name.

    A run's name is its id in trackio, so it ends with random digits. Trackio does not record how a run ended.
    """

    package = "trackio"

    def __init__(self, run: RunStart, say: Callable[[str], None]) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = read_id(run, "trackio") or f"{run_name(run)}-{secrets.token_hex(4)}"
        keep_id(run, "trackio", name, say)
        self._run = trackio.init(project=project, name=name, config=run.config, resume="allow", embed=False)
        say(f"this run is {name}. `trackio show --project {project}` shows it.")

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in row.items() if value is not None}, step=step)

    def write_images(self, step: int, strips: Strips) -> None:
        import trackio

        self._run.log({f"eval/strip_{i}": trackio.Image(strip) for i, strip in enumerate(strips)}, step=step)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        import trackio

        metadata = {"step": checkpoint.step, "miou": checkpoint.miou}
        artifact = trackio.Artifact(f"checkpoint-{self._run.name}", type="model", metadata=metadata)
        artifact.add_dir(checkpoint.folder)
        self._run.log_artifact(artifact, aliases=[f"step-{checkpoint.step}", *(["best"] if checkpoint.is_best else [])])

    def close(self, outcome: Outcome) -> None:
        self._run.finish()
