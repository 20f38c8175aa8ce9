"""The `deeplab-jax robustness` command."""

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from etils import epath

from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_folder

if TYPE_CHECKING:
    from deeplab_jax.config import Config
    from deeplab_jax.data.samples import Samples
    from deeplab_jax.evaluation.robustness import Cell


def robustness(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    corruptions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = (),
    severities: tuple[int, ...] = (1, 3, 5),
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None,
    split: str | None = None,
    root: str | None = None,
) -> None:
    """Score a run on images with the corruptions of ImageNet-C: noise, blur, weather, and digital faults.

    It prints the mIoU by corruption and severity, and writes robustness.json and robustness.csv, which also have the scores of
    each class. `deeplab-jax report` shows those in RUN/robustness. An interrupted command continues where it stopped. A
    folder with scores of another checkpoint or split is not changed.

    Args:
      run: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      corruptions: The corruptions to evaluate. The default is all of them.
      severities: The severities to evaluate, from 1 to 5.
      out: The folder for the results. The default is RUN/robustness.
      split: The split to evaluate. The default is the run's eval.split.
      root: The new location of the data set or its prepared records, if they have moved since the run.
    """
    from deeplab_jax.evaluation.corruptions import CORRUPTIONS, SEVERITIES

    for name in corruptions:
        if name not in CORRUPTIONS:
            raise ConfigError(f"`--corruptions` (={name!r}) is not a corruption. Choose from {', '.join(CORRUPTIONS)}.")
    if not severities:
        raise ConfigError("`--severities` is empty. Use for example --severities 1 3 5.")
    for severity in severities:
        if severity not in SEVERITIES:
            raise ConfigError(f"`--severities` (={severity}) is not from 1 to 5. Use for example --severities 1 3 5.")
    import jax

    from deeplab_jax.checkpoints.folders import CHECKPOINTS
    from deeplab_jax.checkpoints.store import resolve, stored_config
    from deeplab_jax.config import MeshConfig
    from deeplab_jax.evaluation.protocol import on_one_device

    checkpoint = resolve(run)
    config = on_one_device(stored_config(str(checkpoint)), split)
    if config.model.channels != 3:
        raise ConfigError(f"`run` (={run!r}) takes images with {config.model.channels} bands. Corruptions need RGB images.")
    if checkpoint.parent.name == CHECKPOINTS:
        out = out or str(checkpoint.parent.parent / "robustness")
    # All devices that can share a batch. They do not change the scores.
    mesh = MeshConfig(data=math.gcd(config.eval.batch_size, jax.device_count()))
    cells = [(name, severity) for name in corruptions or CORRUPTIONS for severity in sorted(severities)]
    config = dataclasses.replace(config, mesh=mesh)
    _evaluate(config, run, checkpoint, epath.Path(require_folder(out, "--out", "robustness")), cells, root)


def _evaluate(
    config: "Config", run: str, checkpoint: epath.Path, folder: epath.Path, cells: Sequence["Cell"], root: str | None
) -> None:
    from deeplab_jax.checkpoints.store import restore_model
    from deeplab_jax.runtime.compilation import enable_compilation_cache
    from deeplab_jax.runtime.console import make_console

    enable_compilation_cache()
    variables = restore_model(str(checkpoint), like=config, given=run)
    from deeplab_jax.commands.datasets import describe_programs, introduce, locate_data, open_evaluation_set
    from deeplab_jax.evaluation.robustness import (
        CLEAN,
        Robustness,
        add_results,
        evaluate_corruptions,
        tables,
    )

    config, console = locate_data(config, root), make_console()
    say = functools.partial(console.print, markup=False)
    say(f"Checkpoint: {checkpoint}")
    samples, make_batches = open_evaluation_set(config)
    introduce(config.eval.split, samples, config.labels, say)
    if programs := describe_programs(config, samples):
        say(programs)
    # This reports a folder that is not writable, or has other scores, before any work.
    results = add_results(folder, Robustness(describe_settings(config, variables, checkpoint, samples)))
    if results.cells:
        say(f"Scores that {folder} already has: {len(results.cells)}")
    save = functools.partial(add_results, folder)
    results = evaluate_corruptions(results, config, variables, make_batches, samples.images, [CLEAN, *cells], save, console)
    for table in tables(results, config.labels):
        make_console(soft_wrap=False).print(table)
    say(f"Output: {folder}")


def describe_settings(
    config: "Config", variables: dict[str, Any], checkpoint: epath.Path, samples: "Samples"
) -> dict[str, Any]:
    """Return what the scores depend on, as JSON values. See `evaluation.robustness.DIFFERENCES`.

    Raises:
      DataError: A file of the split is missing or unreadable.
    """
    from deeplab_jax.config import digest_of, to_dict
    from deeplab_jax.data.samples import digest_contents
    from deeplab_jax.evaluation.robustness import SEED
    from deeplab_jax.training.state import state_digest

    values = to_dict(config)
    return {
        "step": checkpoint.name,
        "weights": state_digest(variables),
        "model": {name: value for name, value in values["model"].items() if name not in ("pretrained", "remat")},
        "labels": digest_of(values["labels"]),
        "split": values["eval"].pop("split"),
        "images": len(samples),
        "files": digest_contents(samples),
        "data": {"value_range": values["data"]["value_range"]},
        "eval": values["eval"],
        "seed": SEED,
        # NumPy may change its random numbers between versions, and Pillow its JPEG encoder.
        "versions": {name: importlib.metadata.version(name) for name in ("deeplab-jax", "numpy", "scipy", "pillow")},
    }
