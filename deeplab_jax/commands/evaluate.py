"""Evaluate a checkpoint. This is the implementation of eval.py."""

import functools
import json
import os
from typing import TYPE_CHECKING

import jax
import numpy as np
from etils import epath
from jaxtyping import Float
from rich.console import Console

from deeplab_jax.buckets import is_url
from deeplab_jax.checkpoints.store import resolve, restore_model, stored_config
from deeplab_jax.config import Config, to_dict
from deeplab_jax.errors import ConfigError
from deeplab_jax.evaluation import cityscapes, scores
from deeplab_jax.evaluation.evaluate import EvaluatedImage, Visitor, evaluate
from deeplab_jax.evaluation.metrics import Totals
from deeplab_jax.evaluation.pictures import name_results, write_pictures
from deeplab_jax.evaluation.protocol import describe_differences, keep_output_stride
from deeplab_jax.evaluation.submission import file_names, write_archive, write_prediction
from deeplab_jax.files import write_atomically
from deeplab_jax.runtime import hosts
from deeplab_jax.runtime.compilation import enable_compilation_cache

if TYPE_CHECKING:
    from deeplab_jax.data.samples import Samples

Instances = Float[np.ndarray, "3 19"]


def score_checkpoint(config: Config, checkpoint: str, output: str | None, submission: str | None, console: Console) -> None:
    """Evaluate a checkpoint, print the scores, and write the requested files.

    Every process in the evaluation must call this function. Each one evaluates its share of the images, and the first process
    prints the scores.

    Args:
      config: A config with the checkpoint's network. Its `data` and `eval` sections select the data set and the protocol.
      checkpoint: The checkpoint, in any form that `resolve` accepts.
      output: The folder for scores.json and the predicted images, or None.
      submission: The folder for the files to submit to the Cityscapes server, or None.
      console: The console for progress and scores.

    Raises:
      CheckpointError: The checkpoint is unreadable, or belongs to a different network.
      ConfigError: There is nothing to score or write, or a folder is not writable.
      DataError: The split is unreadable.
    """
    if output and submission and _is_inside(output, submission):
        raise ConfigError(
            f"`--output` (={output!r}) is inside the --submission folder, where every PNG is submitted. "
            "Choose a folder outside it."
        )
    enable_compilation_cache()
    step = resolve(checkpoint)
    variables = restore_model(str(step), like=config, given=checkpoint)
    stored = stored_config(str(step))
    differences = describe_differences(config, stored)
    config = keep_output_stride(config, stored)
    # These modules import TensorFlow, which takes seconds, so an invalid checkpoint is reported first.
    from deeplab_jax.commands.datasets import describe_programs, introduce, list_batch_kinds, open_evaluation_set
    from deeplab_jax.data.samples import digest

    samples, batches = open_evaluation_set(config, need_labels=False)
    if not (samples.labels or output or submission):
        raise ConfigError(
            f"`eval.split` (={config.eval.split!r}) has no labels to score. Use --output or --submission to get predictions."
        )
    hosts.require_same(config=to_dict(config), checkpoint=str(step), data=digest(samples))
    names = file_names(samples.images, config.labels) if submission else ()
    say = functools.partial(console.print, markup=False)
    say("\n".join([f"Checkpoint: {step}", *differences]))
    introduce(config.eval.split, samples, config.labels, say)
    instances, visitors = _make_instance_counters(config, samples, console)
    visitors += _make_writers(config, samples, names, output, submission)
    if output and not jax.process_index():
        # The scores of an earlier evaluation do not belong to the pictures that this one writes.
        (epath.Path(output) / "scores.json").unlink(missing_ok=True)
    if programs := describe_programs(config, samples):
        say(programs)
    console.print("Compiling the network. On a CPU, this can take a minute.")
    kinds = list_batch_kinds(config, samples)
    totals = evaluate(config, variables, batches(), len(samples), visitors, console, samples.images, kinds)
    if instances is not None:
        instances = hosts.gather(instances).sum(0)  # each process only counted its own images
    hosts.barrier("images written")
    if jax.process_index():
        return
    if submission:
        say(f"Submission: {write_archive(submission, names)}")
    if samples.labels:
        _report(config, totals, instances, output, console)
    if output:
        say(f"Output: {output}")


def _is_inside(path: str, folder: str) -> bool:
    whole, top = (each if is_url(each) else os.path.realpath(each) for each in (path, folder))
    return epath.Path(whole).is_relative_to(top)


def _make_instance_counters(config: Config, samples: "Samples", console: Console) -> tuple[Instances | None, list[Visitor]]:
    """Return an array of instance counts for the official iIoU, and the visitors that update it during evaluation.

    If instances cannot be counted, return None and an empty list.
    """
    from deeplab_jax.data.instances import explain_missing_instances, read_instances

    if not (samples.labels and cityscapes.is_official(config.labels)):
        return None, []
    if reason := explain_missing_instances(samples):
        console.print(f"iIoU is not computed: {reason}", markup=False)
        return None, []
    sums = np.zeros((3, config.labels.num_classes))

    def add(each: EvaluatedImage) -> None:
        size = (each.prediction.shape[0], each.prediction.shape[1])
        instances = read_instances(samples, cityscapes.INSTANCE_LABELS, each.index, size)
        np.add(sums, cityscapes.instance_counts(each.prediction, instances), out=sums)

    return sums, [add]


def _make_writers(
    config: Config, samples: "Samples", names: tuple[str, ...], output: str | None, submission: str | None
) -> list[Visitor]:
    """Return the visitors that write each image's pictures, and its submission file with one of the `names`, if asked to."""
    results = name_results(samples.images)
    writers: list[Visitor] = []
    if output:
        writers.append(
            lambda each: write_pictures(output, results[each.index], config.labels, each.prediction, image=each.image)
        )
    if submission:
        writers.append(lambda each: write_prediction(submission, names[each.index], each.prediction))
    return writers


def _report(config: Config, totals: Totals, instances: Instances | None, output: str | None, console: Console) -> None:
    official = cityscapes.scores(totals.confusion, instances) if cityscapes.is_official(config.labels) else None
    summary = scores.summary(totals, config.labels, official)
    if output:
        with write_atomically(epath.Path(output) / "scores.json") as file:
            file.write((json.dumps(summary, indent=2) + "\n").encode())
    for table in scores.tables(totals, config.labels, official):
        console.print(table)
    if warning := scores.warn_of_infinite_logits(summary):
        console.print(warning)
