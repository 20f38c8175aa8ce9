"""The interface between training and its data."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """The data that a run reads. The caller builds it, so that `deeplab_jax.training` needs neither image files nor TensorFlow.

    Attributes:
      names: Names of the training images, indexed by position in the training list.
      digest: Digest of the training list.
      eval_digest: Digest of the evaluation list, or None if the run does not evaluate.
      eval_size: Number of images in the evaluation list, or None.
      train_batches: Function that takes (first, end) and returns this process's slice of each global batch for the steps in
        [first, end).
      eval_batches: Function that makes one pass over the evaluation split and returns this process's slices of the labelled
        batches.
      epoch_size: Number of training images in an epoch: all, or those of the first split with `data.mix`.
    """

    names: Sequence[str]
    digest: str
    eval_digest: str | None
    eval_size: int | None
    train_batches: Callable[[int, int], Iterable[Batch]]
    eval_batches: Callable[[], Iterable[Batch]]
    epoch_size: int
