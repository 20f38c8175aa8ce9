"""`deeplab-jax report`."""

from typing import Annotated

import tyro
from rich.console import Console

from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_file


def report(
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[str, tyro.conf.arg(metavar="FILE.html")],
    split: str | None = None,
    root: str | None = None,
    images: int = 24,
) -> None:
    """Evaluate a run and write one HTML page about it: curves, scores, confusions, the worst images.

    Args:
      run: a run's folder, RUN/best, RUN/checkpoints/N, or what `weights import` made.
      out: file to write.
      split: name of the list to evaluate. Default: the run's eval.split.
      root: where the data set or its prepared records lie now, if not where the run read them.
      images: how many of the worst images to show.
    """
    if images < 0:
        raise ConfigError(f"`--images` (={images}) must be 0 or more")
    require_file(out, "--out")
    from deeplab_jax.commands.datasets import evaluation_set, locate_data
    from deeplab_jax.pages.report import evaluation_config, write_report
    from deeplab_jax.runtime.compilation import keep_programs

    keep_programs()
    config, checkpoint = evaluation_config(run, split)
    config = locate_data(config, root)
    samples, batches = evaluation_set(config)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    write_report(config, checkpoint, out, batches(), samples.images, images, console)
