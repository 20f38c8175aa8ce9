"""The `deeplab-jax report` command."""

from typing import Annotated

import tyro

from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_page


def report(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[str, tyro.conf.arg(metavar="FILE.html")],
    split: str | None = None,
    root: str | None = None,
    images: int = 24,
) -> None:
    """Evaluate a run and write an HTML page with its curves, scores, calibration, confusions and worst images.

    Args:
      run: A run folder, RUN/best, RUN/latest, a step folder, or a folder written by `weights import`.
      out: The HTML file to write.
      split: The split to evaluate. The default is the run's eval.split.
      root: The new location of the data set or its prepared records, if they have moved since the run.
      images: The number of worst images to show.
    """
    if images < 0:
        raise ConfigError(f"`--images` (={images}) is negative. Use 0 or more.")
    require_page(out, "--out")
    from deeplab_jax.checkpoints.store import resolve, stored_config
    from deeplab_jax.commands.datasets import describe_programs, introduce, locate_data, open_evaluation_set
    from deeplab_jax.evaluation.protocol import on_one_device
    from deeplab_jax.pages.report import write_report
    from deeplab_jax.runtime.compilation import enable_compilation_cache
    from deeplab_jax.runtime.console import make_console

    enable_compilation_cache()
    checkpoint = resolve(run)
    config = on_one_device(stored_config(str(checkpoint)), split)
    console = make_console(markup=False)
    console.print(f"Checkpoint: {checkpoint}")
    config = locate_data(config, root)
    samples, batches = open_evaluation_set(config)
    introduce(config.eval.split, samples, config.labels, console.print)
    if programs := describe_programs(config, samples):
        console.print(programs)
    write_report(config, run, checkpoint, out, batches(), samples.images, images, console)
