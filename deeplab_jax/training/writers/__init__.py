"""Writers for a run's scalars, images and checkpoints. To add one, write a file and add its class to `WRITERS`."""

from collections.abc import Callable, Sequence

from deeplab_jax.config import TrainConfig
from deeplab_jax.errors import ConfigError, choose
from deeplab_jax.training.writers.json_lines import JsonLines, read_rows
from deeplab_jax.training.writers.mlflow_client import Mlflow
from deeplab_jax.training.writers.process import TrackerProcess
from deeplab_jax.training.writers.tensorboard import TensorBoard
from deeplab_jax.training.writers.tracker import Tracker, require_package
from deeplab_jax.training.writers.trackio_run import Trackio
from deeplab_jax.training.writers.weights_and_biases import WeightsAndBiases
from deeplab_jax.training.writers.writer import Checkpoint, Outcome, Row, RunStart, RunWriter, Strips

# The writers for `train.writers`. `JsonLines` is always used.
WRITERS: dict[str, type[RunWriter]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def check_writers(config: TrainConfig) -> None:
    """Check that the config's writers exist, that their packages are installed and that one takes checkpoints if it must.

    Raises:
      ConfigError: One of these is not the case.
    """
    kinds = {name: choose(name, WRITERS, "train.writers") for name in config.writers}
    for name, kind in kinds.items():
        if issubclass(kind, Tracker):
            require_package(name, kind.package)
    if config.upload_checkpoints != "none" and not any(kind.takes_checkpoints for kind in kinds.values()):
        able = ", ".join(name for name, kind in WRITERS.items() if kind.takes_checkpoints)
        raise ConfigError(
            f"`train.upload_checkpoints` (={config.upload_checkpoints!r}) needs a writer that takes checkpoints. Add one of "
            f"{able} to train.writers, or use none."
        )


def open_writers(names: Sequence[str], run: RunStart, say: Callable[[str], None]) -> list[RunWriter]:
    """Open the log and the writers with the given names.

    Args:
      names: Names in WRITERS.
      run: The start of the run.
      say: Function that prints a line in the run's log. Threads of the writers call it.

    Raises:
      ConfigError: The log cannot be written.
    """
    rows = read_rows(run)
    writers: list[RunWriter] = [JsonLines(run)]
    for name in names:
        kind = WRITERS[name]
        if issubclass(kind, Tracker):
            writers.append(TrackerProcess(kind, name, run, say, rows))
        else:
            writers.append(kind(run))
    return writers
