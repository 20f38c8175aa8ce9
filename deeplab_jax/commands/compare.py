"""The `deeplab-jax compare` command."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import tyro

from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_page

if TYPE_CHECKING:
    from deeplab_jax.pages.comparison import Run, Split


def compare(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE.html")] = None,
    images: int = 12,
    split: str | None = None,
    root: str | None = None,
) -> None:
    """Compare runs: a table of their scores and the config fields that differ and, with --out, a page with curves and images.

    The table, and the page with --images 0, need only what the runs have stored. The images need an evaluation of each run.

    Args:
      runs: Run folders, whose best checkpoint is used, or other checkpoints: RUN/latest, a step folder, or a folder written by
        `weights import`.
      out: The HTML file to write.
      images: The number of images to show that one run predicts better than another. 0 evaluates nothing.
      split: The split to evaluate. The default is the first run's eval.split.
      root: The new location of the data set or its prepared records, if they have moved since the runs.
    """
    if images < 0:
        raise ConfigError(f"`--images` (={images}) is negative. Use 0 or more.")
    if out:
        require_page(out, "--out")
    from deeplab_jax.pages.comparison import evaluate_runs, print_table, read_runs, require_same_classes, write_page
    from deeplab_jax.runtime.compilation import enable_compilation_cache
    from deeplab_jax.runtime.console import make_console

    console = make_console()
    compared, better = read_runs(runs), None
    source = "The scores are those that the runs stored with these checkpoints."
    if out and images:
        require_same_classes(compared, images)
        enable_compilation_cache()
        split = split or compared[0].config.eval.split
        say = functools.cache(functools.partial(console.print, markup=False))  # runs on the same images have the same lines
        splits = [_open_split(run, split, root, say) for run in compared]
        compared, better = evaluate_runs(compared, splits, images, console)
        source = f"All runs were evaluated on the {len(splits[0].names)} images of {split} for this page."
    print_table(compared, make_console(soft_wrap=False))
    if out:
        write_page(compared, better or [], source, out)
        console.print(f"The page is {out}.", markup=False)


def _open_split(run: "Run", split: str, root: str | None, say: Callable[[str], None]) -> "Split":
    from deeplab_jax.commands.datasets import introduce, locate_data, open_evaluation_set
    from deeplab_jax.evaluation.protocol import on_one_device
    from deeplab_jax.pages.comparison import Split

    config = locate_data(on_one_device(run.config, split), root)
    samples, batches = open_evaluation_set(config)
    introduce(split, samples, config.labels, say)
    return Split(config, samples.images, batches)
