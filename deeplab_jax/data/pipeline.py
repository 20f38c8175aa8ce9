"""tf.data pipelines that yield NumPy batches; a training sample is a function of (seed, its number in the run) alone.

A batch: {"image": uint8 [n, h, w, 3], "label": uint8 [n, h, w] train ids (255 = ignore), "valid": bool [n] (False: a padding
row), "index": int64 [n] position in the list}. A split without labels yields no "label".
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from etils import epath
from PIL import Image

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf  # noqa: E402

from deeplab_jax.config import DataConfig  # noqa: E402
from deeplab_jax.data import augment  # noqa: E402
from deeplab_jax.data.lists import Samples, value_table  # noqa: E402
from deeplab_jax.errors import DataError  # noqa: E402
from deeplab_jax.labels import UNKNOWN, LabelSet  # noqa: E402

# Accelerators belong to JAX: a TensorFlow built for GPUs would take their memory.
tf.config.set_visible_devices([], "GPU")

Batch = dict[str, np.ndarray]
Layout = Literal["NHWC", "NCHW"]


def train_batches(
    samples: Samples,
    labels: LabelSet,
    data: DataConfig,
    fill: tuple[float, ...],
    *,
    seed: int,
    start_step: int,
    steps: int,
    process_index: int = 0,
    process_count: int = 1,
    layout: Layout = "NHWC",
) -> Iterator[Batch]:
    """Batches of steps `start_step` to `steps` - 1: this process's rows of each global batch.

    Row r of step s is sample number s * batch_size + r of the run; each pass over the list is shuffled with a key of its
    own. Starting late costs nothing, since no state is carried from sample to sample.

    Args:
      samples: a split with labels.
      labels: what the values in the label files mean.
      data: batch size, augmentation and threads.
      fill: RGB (0-255) of pixels outside the image.
      seed: of the order and the augmentation.
      start_step: first step; steps before it are not computed.
      steps: end of the run.
      process_index, process_count: which host this is, of how many.
      layout: of the images; "NCHW" for another framework.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    local = data.batch_size // process_count
    table = value_table(samples.kind, labels)
    load = _loader(samples, table)

    def number(j: tf.Tensor) -> tf.Tensor:
        """Of the run's sample that is the j-th of this process."""
        return j // local * data.batch_size + process_index * local + j % local

    def sample(j: tf.Tensor) -> dict[str, tf.Tensor]:
        k = number(j)
        index = shuffled_index(k, len(samples), seed)
        image, label = load(index)
        image, label = augment.scale_crop_flip(
            image, label, augment.uniforms(seed, k), crop_size=data.crop_size, scale=data.scale, flip=data.flip, fill=fill
        )
        return {"image": image, "label": label, "valid": tf.constant(True), "index": index}

    dataset = tf.data.Dataset.range(start_step * local, steps * local)
    dataset = _parallel(dataset, sample, data.threads, local)

    def rows(batch: int) -> list[int]:
        first = (start_step + batch) * local
        return [int(shuffled_index(number(tf.constant(j, tf.int64)), len(samples), seed)) for j in range(first, first + local)]

    return _iterate(dataset, samples, table, rows, layout)


def shuffled_index(k: tf.Tensor, num_samples: int, seed: int) -> tf.Tensor:
    """Position in the list of the run's sample number `k` (int64): every pass over the list is a permutation of its own."""
    epoch = k // num_samples
    key = tf.stack([tf.cast(seed, tf.int64), epoch, tf.constant(0, tf.int64)])
    return tf.random.experimental.index_shuffle(k % num_samples, key, num_samples - 1)


def plan_evaluation(samples: Samples, batch_size: int) -> list[list[int]]:
    """Positions in the list, batch by batch: every sample once, images of one size together so that nothing is resized.

    Raises:
      DataError: an image cannot be opened.
    """
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, name in enumerate(samples.images):
        by_size.setdefault(_image_size(epath.Path(samples.root) / name), []).append(i)
    return [same[i : i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]


def eval_batches(
    samples: Samples,
    labels: LabelSet,
    batch_size: int,
    *,
    threads: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    layout: Layout = "NHWC",
) -> Iterator[Batch]:
    """Whole images in batches of one size; a short batch is filled up with rows whose "valid" is False.

    Args:
      samples: a split, with or without labels.
      labels: what the values in the label files mean.
      batch_size: rows of a batch over all processes.
      threads: host threads; 0 lets tf.data choose.
      process_index, process_count: which host this is, of how many.
      layout: of the images; "NCHW" for another framework.

    Raises:
      DataError: while iterating, naming the file that cannot be used.
    """
    local = batch_size // process_count
    mine = slice(process_index * local, (process_index + 1) * local)
    plan = [(batch + [-1] * (batch_size - len(batch)))[mine] for batch in plan_evaluation(samples, batch_size)]
    # A padding row repeats an image of its batch, for the shape.
    first = [next((i for i in rows if i >= 0), None) for rows in plan]
    fallback = [batch[0] for batch in plan_evaluation(samples, batch_size)]
    valid = np.asarray([[i >= 0 for i in rows] for rows in plan]).reshape(-1)
    table = value_table(samples.kind, labels)
    load = _loader(samples, table)

    def sample(index: tf.Tensor, is_valid: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = load(index)
        row = {"image": image, "valid": is_valid, "index": index}
        return row if label is None else {**row, "label": label}
