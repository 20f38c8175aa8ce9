"""What a config names, opened: joins `data/` with training and evaluation, for `train.py` and the commands."""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from deeplab_jax.config import Config, total_steps
from deeplab_jax.data.find import describe, find_split
from deeplab_jax.data.pipeline import eval_batches, train_batches
from deeplab_jax.data.records import is_records
from deeplab_jax.data.samples import Samples, digest
from deeplab_jax.errors import ConfigError
from deeplab_jax.train.begin import Data


def locate_data(config: Config, root: str | None) -> Config:
    """The config of a run for where its data lies now: `root`, a data set or its prepared records, or where it was.

    Raises:
      ConfigError: there is nothing at `root`, or the config does not say where its data is.
    """
    if root is None and not config.data.root and not config.data.source:
        raise ConfigError("the checkpoint does not say where its images are: give --root")
    if root is None:
        return config
    if not epath.Path(root).is_dir():
        raise ConfigError(f"`--root` (={root!r}) is no folder: give that of the data set or of its prepared records")
    # Records stand in for a set of TFDS too.
    source = "" if is_records(root) else config.data.source
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=root, source=source))


def training_set(config: Config) -> Samples:
    """The training list. Errors as `find_split`."""
    return find_split(config.data, config.data.train_split)


def evaluation_set(
    config: Config, *, need_labels: bool = True
) -> tuple[Samples, Callable[[], Iterator[dict[str, np.ndarray]]]]:
    """The list of `eval.split`, and a function to its batches on this process. Errors as `find_split`."""
    samples = find_split(config.data, config.eval.split, need_labels=need_labels)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    size, threads = config.eval.batch_size, config.data.threads
    return samples, lambda: eval_batches(samples, config.labels, size, threads=threads, **process)


def training_data(config: Config, say: Callable[[str], None]) -> tuple[Data, int]:
    """What a run of `config` reads on this process, and its number of steps.

    Args:
      config: validated.
      say: called with a line about each split.

    Raises:
      DataError: see `find_split`.
      ConfigError: the config counts neither steps nor epochs.
    """
    train_set = training_set(config)
    eval_set, evaluated = evaluation_set(config)
    say(describe(config.data.train_split, train_set))
    say(describe(config.eval.split, eval_set))
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    data = Data(
        names=train_set.images,
        digest=digest(train_set),
        eval_digest=digest(eval_set),
        train_batches=lambda start, end: train_batches(
            train_set,
            config.labels,
            config.data,
            config.model.mean,
            seed=config.seed,
            start_step=start,
            steps=end,
            **process,
        ),
        eval_batches=evaluated,
    )
    return data, total_steps(config, len(train_set))
