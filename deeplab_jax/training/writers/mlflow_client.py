"""Write to MLflow."""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping

from deeplab_jax.training.writers.tracker import PROJECT, Tracker, keep_id, read_id, run_name
from deeplab_jax.training.writers.writer import Checkpoint, Outcome, Row, RunStart, Strips

_MAX_PARAMS, _MAX_LENGTH = 100, 6000  # MLflow's limits for the parameters of a request, and for the length of each
_STATUS: Mapping[Outcome, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Mlflow(Tracker):
    """Writes to the tracking server or database in MLFLOW_TRACKING_URI, or to MLflow's default, ./mlflow.db.

    MLflow does not change a parameter that it has. If a resumed run has another value, it becomes the tag `config.FIELD`.
    """

    package = "mlflow"

    def __init__(self, run: RunStart, say: Callable[[str], None]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        self._client = MlflowClient()
        names = clean_names(run.config)
        params = {names[field]: str(value)[:_MAX_LENGTH] for field, value in run.config.items()}
        tracked = read_id(run, "mlflow")
        if tracked:
            try:
                self._client.update_run(tracked, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                say(f"there is no run {tracked} at {self._client.tracking_uri}, so this is a new one.")
                tracked = None
        if not tracked:
            tracked = self._client.create_run(self._find_experiment(), run_name=run_name(run)).info.run_id
            keep_id(run, "mlflow", tracked, say)
        self._run = tracked
        stored = self._client.get_run(tracked).data.params
        new = [Param(name, value) for name, value in params.items() if name not in stored]
        for start in range(0, len(new), _MAX_PARAMS):
            self._client.log_batch(tracked, params=new[start : start + _MAX_PARAMS], synchronous=True)
        for name, value in params.items():
            if stored.get(name, value) != value:
                self._client.set_tag(tracked, f"config.{name}", value)
        say(f"this run is {tracked} at {self._client.tracking_uri}.")

    def write_scalars(self, step: int, kind: str, row: Row) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        names = clean_names(row)  # also those without a value, so that the numbers are the same at each step
        metrics = [Metric(f"{kind}/{names[name]}", value, now, step) for name, value in row.items() if value is not None]
        self._client.log_batch(self._run, metrics=metrics, synchronous=True)

    def write_images(self, step: int, strips: Strips) -> None:
        for i, strip in enumerate(strips):
            self._client.log_image(self._run, strip, key=f"eval/strip_{i}", step=step, synchronous=True)

    def write_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._client.log_artifacts(self._run, checkpoint.folder, f"checkpoints/{checkpoint.step}")
        if checkpoint.is_best:
            self._client.set_tag(self._run, "best_checkpoint", f"checkpoints/{checkpoint.step}")

    def close(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._run, _STATUS[outcome])

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else str(self._client.create_experiment(name))


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Return each name without the characters that MLflow refuses. Names that would become the same are numbered."""
    cleaned: dict[str, str] = {}
    for name in names:
        text = unique = re.sub(r"[^\w\-./: ]", "_", name)
        number = 1
        while unique in cleaned.values():
            number += 1
            unique = f"{text}_{number}"
        cleaned[name] = unique
    return cleaned
