"""The batches of an evaluation, in which every image of a split occurs once. See `pipeline` for their entries."""

import functools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_jax.data.augmentation import Row
from deeplab_jax.data.pipeline import AxisOrder, Batch, convert_layout, iterate, read_batches
from deeplab_jax.data.samples import Samples, diagnose, make_value_table
from deeplab_jax.errors import DataError
from deeplab_jax.labels import IGNORE, LabelSet
from deeplab_jax.runtime.canvases import Canvas, Size, choose_canvases, describe_canvases


class EvaluationPlan(NamedTuple):
    """The evaluation batches.

    Attributes:
      sizes: Each sample's height and width.
      batches: The positions in the sample list of the samples in each batch. Every sample is in exactly one batch.
      canvases: Each batch's canvas.
      summary: A sentence about the number of programs (see `describe_canvases`).
    """

    sizes: list[Size]
    batches: list[list[int]]
    canvases: list[Canvas]
    summary: str


@functools.cache
def plan_evaluation(samples: Samples, batch_size: int, compile_pixels: int = 0) -> EvaluationPlan:
    """Return the evaluation batches. No image is resized: images of different sizes share a batch on one canvas.

    The result is cached for the life of the process, because a training run evaluates many times, and opening every file to
    read its image size takes minutes on object storage.

    Args:
      samples: The split.
      batch_size: The number of samples per batch.
      compile_pixels: See `choose_canvases`.

    Raises:
      DataError: An image cannot be opened.
    """
    sizes = [samples.store.size(samples, i) for i in range(len(samples))]
    counts = Counter(sizes)
    canvases = choose_canvases(counts, compile_pixels=compile_pixels)
    by_canvas: dict[Canvas, list[int]] = {}
    for i, size in enumerate(sizes):
        by_canvas.setdefault(canvases[size], []).append(i)
    plan = EvaluationPlan(sizes, [], [], describe_canvases(counts, canvases))
    for canvas, indices in by_canvas.items():
        for i in range(0, len(indices), batch_size):
            plan.batches.append(indices[i : i + batch_size])
            plan.canvases.append(canvas)
    return plan


def eval_batches(
    samples: Samples,
    labels: LabelSet,
    batch_size: int,
    *,
    compile_pixels: int = 0,
    threads: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    layout: AxisOrder = "NHWC",
) -> Iterator[Batch]:
    """Yield this process's rows of the evaluation batches.

    The rows in a batch are full images. An incomplete batch is padded with rows in which "valid" is False.

    Args:
      samples: A split, with or without labels.
      labels: The label set, which maps the label values to train ids.
      batch_size: The total number of rows per batch across all processes.
      compile_pixels: See `choose_canvases`.
      threads: The number of host threads. 0 uses one thread per usable CPU core.
      process_index: The index of this process.
      process_count: The number of processes.
      layout: The image axis order. "NCHW" is for other frameworks.

    Raises:
      DataError: A file cannot be used. The error is raised during iteration and names the file.
    """
    plan = plan_evaluation(samples, batch_size, compile_pixels)
    dataset, positions = _build_evaluation(samples, labels, batch_size, compile_pixels, threads, process_index, process_count)
    table = make_value_table(samples.kind, labels)
    # Evaluation never skips samples, so `iterate` requests the dataset only once, starting at batch 0.
    batches = iterate(
        samples,
        lambda *_: dataset,
        positions.__getitem__,
        lambda i: _diagnose_size(samples, i, plan.sizes[i]) or diagnose(samples, table, i),
    )
    return convert_layout(map(_drop_size, batches, plan.canvases), layout)


def _diagnose_size(samples: Samples, i: int, planned: Size) -> DataError | None:
    try:
        height, width = samples.store.size(samples, i)
    except DataError:
        return None  # `diagnose` finds the reason
    if (height, width) == planned:
        return None
    return DataError(
        f"{samples.images[i]} has {width}x{height} pixels, but it had {planned[1]}x{planned[0]} before this evaluation. "
        "Do not change the files during a run. Start again."
    )


def _drop_size(batch: Batch, canvas: Canvas) -> Batch:
    return {name: x for name, x in batch.items() if name != "size"} if canvas.is_exact else batch


@functools.cache
def _build_evaluation(
    samples: Samples,
    labels: LabelSet,
    batch_size: int,
    compile_pixels: int,
    threads: int,
    process_index: int,
    process_count: int,
) -> tuple[tf.data.Dataset, list[list[int]]]:
    """Return the dataset for `eval_batches`, and the list positions of the rows in each batch.

    The result is cached for the life of the process. A training run evaluates many times, and TensorFlow never frees the lookup
    tables captured by dataset functions.
    """
    local = batch_size // process_count
    local_rows = slice(process_index * local, (process_index + 1) * local)
    plan = plan_evaluation(samples, batch_size, compile_pixels)
    valid = np.array([i < len(batch) for batch in plan.batches for i in range(batch_size)[local_rows]])
    # A padding row must fit on its batch's canvas, so it repeats the batch's first image and is masked out by "valid".
    padded = [(batch + batch[:1] * (batch_size - len(batch)))[local_rows] for batch in plan.batches]
    table = make_value_table(samples.kind, labels)

    def read(index: tf.Tensor, is_valid: tf.Tensor, size: tf.Tensor, canvas: tf.Tensor) -> Row:
        sample = samples.store.open(samples, table, index)
        tf.debugging.assert_equal(sample.size, size, "the image's size has changed")
        row = sample.read_all() | {"fingerprint": sample.fingerprint, "valid": is_valid, "index": index}
        return row if all(each.is_exact for each in plan.canvases) else _pad_to_canvas(row, size, canvas)

    indices = np.array(padded, np.int64).reshape(-1)
    sizes = np.array(plan.sizes, np.int32)[indices]
    canvases = np.repeat(np.array([canvas.size for canvas in plan.canvases], np.int32), local, 0)
    return read_batches(tf.data.Dataset.from_tensor_slices((indices, valid, sizes, canvases)), read, threads, local), padded


def _pad_to_canvas(row: Row, size: tf.Tensor, canvas: tf.Tensor) -> Row:
    margins = tf.stack([tf.zeros(2, tf.int32), canvas - size], 1)
    padded = {"image": tf.pad(row["image"], tf.concat([margins, tf.zeros((1, 2), tf.int32)], 0)), "size": size}
    if "label" in row:
        padded["label"] = tf.pad(row["label"], margins, constant_values=IGNORE)
    return row | padded
