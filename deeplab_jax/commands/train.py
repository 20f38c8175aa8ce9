"""Train a config. This is the implementation of train.py and `dl.train`."""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from rich.console import Console

from deeplab_jax.buckets import CHECKPOINT_SCHEMES
from deeplab_jax.checkpoints.folders import CHECKPOINTS, DamagedError, make_absolute, read_scores, require_plain_path
from deeplab_jax.config import Config
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_folder
from deeplab_jax.models import validate
from deeplab_jax.runtime.compilation import enable_compilation_cache
from deeplab_jax.runtime.console import make_console
from deeplab_jax.runtime.shared_errors import failing_together
from deeplab_jax.training import loop
from deeplab_jax.training.begin import set_up
from deeplab_jax.training.photometric import describe_limits
from deeplab_jax.training.writers import check_writers
from deeplab_jax.weights.transfer import pretrained_variables


def train(
    config: Config,
    workdir: str | os.PathLike[str],
    *,
    on_evaluation: Callable[[int, dict[str, Any]], None] = lambda step, scores: None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a config to completion, or resume the run in `workdir`. Every process in the run must call this function.

    In the main thread, SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU end the run after its current step, and
    save it. In other threads, signals keep their effect.

    Args:
      config: The config, for example from a recipe's get_config().
      workdir: The run folder. `~` is expanded.
      on_evaluation: Function that is called after each evaluation with the step and its scores. If it raises an error, the run
        stops and can be resumed, because the step has been saved. This is how to prune a trial of a hyperparameter search.
      console: The console for progress messages. If None, print them on standard output.

    Returns:
      The last step as "step", and as "is_finished" whether the run is finished, at its end or because of `train.patience`. It
      is False if a signal, such as Ctrl-C, ended the run before its last step or during the last evaluation. If the last step
      was evaluated, also its scores, as in scores.json: "miou", "loss" and so on and, by class, "iou".

    Raises:
      ConfigError: The config is invalid, or the workdir is not a folder, used by another run, or has a path that cannot hold
        checkpoints.
      CheckpointError: The workdir holds a run with a different network, or its checkpoints or the pretrained weights cannot be
        read.
      DataError: A split is unreadable.
      OutOfMemoryError: A device or this machine has too little memory.
      TrainingError: The loss is not finite, or no batch has a labelled pixel.
    """
    from deeplab_jax.commands.datasets import open_training_data  # imports TensorFlow

    config, console = validate(config), console or make_console()
    if not isinstance(workdir, str | os.PathLike):
        raise ConfigError(f"`workdir` (={workdir!r}) is not a path. Give a folder, for example workdir=runs/quickstart.")
    workdir = require_folder(os.path.expanduser(workdir), "workdir", "runs/quickstart", CHECKPOINT_SCHEMES)
    require_plain_path(workdir, "workdir")
    enable_compilation_cache()
    # Report an invalid config before reading the data, which can take minutes.
    set_up(config, 1)
    with failing_together():
        if jax.process_index() == 0:  # the other processes write nothing
            check_writers(config.train)
    say = functools.partial(console.print, markup=False)
    if config.data.photometric and (limits := describe_limits(config.data.channels)):
        say(limits)
    data, steps = open_training_data(config, say)
    pretrained = (lambda: pretrained_variables(config, say)) if config.model.pretrained else None
    state, is_finished = loop.train(
        config, workdir, steps=steps, data=data, console=console, pretrained=pretrained, on_evaluation=on_evaluation
    )
    step = int(state.step)
    scores = _read_intact_scores(make_absolute(workdir) / CHECKPOINTS / str(step)) if step else {}
    return {"step": step, "is_finished": is_finished} | scores


def _read_intact_scores(step: epath.Path) -> dict[str, Any]:
    try:
        return read_scores(step) or {}
    except DamagedError:  # a signal ended the run before these scores were replaced
        return {}
