"""Open a config's data sets for train.py, eval.py and the commands."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from etils import epath

from deeplab_jax.config import Config, count_by_split, total_steps
from deeplab_jax.data.evaluation import eval_batches, plan_evaluation
from deeplab_jax.data.find import describe, find_split
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.data.records import is_records
from deeplab_jax.data.samples import Samples, digest
from deeplab_jax.data.suspicion import sample_notes, warn_of_palettes
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import LabelSet
from deeplab_jax.runtime.compilation import estimate_compile_pixels
from deeplab_jax.training.data import Data


def locate_data(config: Config, root: str | None) -> Config:
    """Return the config with its data location set to `root`.

    Args:
      config: A run's config.
      root: The folder with the data set or its prepared records. If None, the location stays as it is in the config.

    Raises:
      ConfigError: `root` is not a folder, or neither `root` nor the config gives a location.
    """
    if root is None and not config.data.root and not config.data.source:
        raise ConfigError("The checkpoint does not record the location of its data set. Give the folder with --root.")
    if root is None:
        return config
    if not epath.Path(root).is_dir():
        raise ConfigError(f"`--root` (={root!r}) is not a folder. Give the folder with the data set or its records.")
    # Records prepared from a TFDS data set are read directly, without TFDS.
    source = "" if is_records(root) else config.data.source
    return dataclasses.replace(config, data=dataclasses.replace(config.data, root=root, source=source))


def open_training_set(config: Config) -> Samples:
    """Return the training samples. Raises the same errors as `find_split`."""
    return find_split(config.data, config.data.train_split)


def open_evaluation_set(
    config: Config, *, need_labels: bool = True
) -> tuple[Samples, Callable[[], Iterator[dict[str, np.ndarray]]]]:
    """Return the `eval.split` samples and a function that returns this process's batches.

    Raises the same errors as `find_split`.
    """
    samples = find_split(config.data, config.eval.split, need_labels=need_labels)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    size, threads, pixels = config.eval.batch_size, config.data.threads, estimate_compile_pixels()
    return samples, lambda: eval_batches(samples, config.labels, size, compile_pixels=pixels, threads=threads, **process)


def describe_programs(config: Config, samples: Samples) -> str:
    """Return a sentence about the number of programs that an evaluation compiles, or "" if all images have one size."""
    return plan_evaluation(samples, config.eval.batch_size, estimate_compile_pixels()).summary


def list_batch_kinds(config: Config, samples: Samples) -> list[dict[str, np.ndarray]]:
    """Return an empty evaluation batch for each program, in the order of the batches.

    The list is empty if there is only one program, or several processes, which must compile at the same time.
    """
    canvases = list(dict.fromkeys(plan_evaluation(samples, config.eval.batch_size, estimate_compile_pixels()).canvases))
    if len(canvases) == 1 or jax.process_count() > 1:
        return []
    kinds, count = [], config.eval.batch_size
    for canvas in canvases:
        batch: dict[str, np.ndarray] = {"valid": np.zeros(count, bool)}
        batch["image"] = np.zeros((count, *canvas.size, config.model.channels), np.uint8)
        batch |= {"label": np.zeros((count, *canvas.size), np.uint8)} if samples.labels else {}
        batch |= {} if canvas.is_exact else {"size": np.ones((count, 2), np.int32)}
        kinds.append(batch)
    return kinds


def introduce(split: str, samples: Samples, labels: LabelSet, say: Callable[[str], None]) -> None:
    """Say how large a split is, where it comes from, and what is unusual or suspicious about its files."""
    say(describe(split, samples))
    for note in samples.notes:
        say(f"note: {note}")
    if jax.process_index() == 0:
        for line in sample_notes(samples, labels):
            say(line)


def open_training_data(config: Config, say: Callable[[str], None]) -> tuple[Data, int]:
    """Return this process's training data and the number of training steps.

    Args:
      config: A validated config.
      say: A function called with a one-line description of each split.

    Raises:
      DataError: A split is unreadable (see `find_split`).
      ConfigError: The config sets neither steps nor epochs.
    """
    train_set = open_training_set(config)
    introduce(config.data.train_split, train_set, config.labels, say)
    epoch_size = train_set.part_sizes[0] if config.data.mix else len(train_set)
    if config.data.mix:
        splits = zip(count_by_split(config.data), config.data.train_split.split("+"), train_set.part_sizes, strict=True)
        (count, split, size), *others = splits
        shares = [f"{count} sample{'s' * (count > 1)} from {split} ({size})"]
        shares += [f"{count} from {split} ({size})" for count, split, size in others]
        say(f"Each batch has {_enumerate(shares)}. An epoch is a pass over the first split.")
    process = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    eval_set, eval_batches = _open_evaluation(config, say) if config.train.evaluate else (None, lambda: iter(()))
    if eval_set and config.eval.split != config.data.train_split:
        _warn_of_shared_images(config, train_set, eval_set, say)
        if jax.process_index() == 0:
            for line in warn_of_palettes((train_set, eval_set)):
                say(line)
    data = Data(
        names=train_set.images,
        digest=digest(train_set, is_mixed=bool(config.data.mix)),
        eval_digest=None if eval_set is None else digest(eval_set),
        eval_size=None if eval_set is None else len(eval_set),
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
        eval_batches=eval_batches,
        epoch_size=epoch_size,
    )
    return data, total_steps(config, epoch_size)


def _warn_of_shared_images(config: Config, train_set: Samples, eval_set: Samples, say: Callable[[str], None]) -> None:
    trained = set(train_set.images)
    shared = [image for image in eval_set.images if image in trained]
    if shared:
        say(
            f"WARNING: {len(shared)} of the {len(eval_set)} images in {config.eval.split} are also in "
            f"{config.data.train_split}, such as {shared[0]}, so the scores are better than those on new images. Set "
            "--config.eval.split to a split without training images, or fix the lists."
        )


def _enumerate(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _open_evaluation(
    config: Config, say: Callable[[str], None]
) -> tuple[Samples, Callable[[], Iterator[dict[str, np.ndarray]]]]:
    """Open and introduce the evaluation split. The first evaluation says how many programs it compiles."""
    samples, make_batches = open_evaluation_set(config)
    introduce(config.eval.split, samples, config.labels, say)

    @functools.cache
    def introduce_programs() -> None:
        if programs := describe_programs(config, samples):
            say(programs)

    def begin_evaluation() -> Iterator[dict[str, np.ndarray]]:
        introduce_programs()
        return make_batches()

    return samples, begin_evaluation
