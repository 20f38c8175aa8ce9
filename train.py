"""Train a DeepLabV3: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`.

The same command on the same workdir resumes. `--config.optim.lr=0.02` overrides a field of the recipe.
"""

import functools

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from deeplab_jax.cli import checked_config, run_with_flags
from deeplab_jax.config import total_steps
from deeplab_jax.errors import ConfigError

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics.jsonl, TensorBoard events.")


def main() -> None:
    """Joins data and training; everything else is in deeplab_jax."""
    config = checked_config(CONFIG.value)
    if not WORKDIR.value:
        raise ConfigError("`--workdir` is missing: give the run's folder, such as --workdir=runs/quickstart")
    # Imported here so that a mistyped flag is answered at once.
    import jax

    from deeplab_jax.data.lists import find_samples
    from deeplab_jax.data.pipeline import eval_batches, train_batches
    from deeplab_jax.train.loop import train

    console = Console()
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    train_set = find_samples(config.data.root, config.data.train_split, config.data.label_kind)
    eval_set = find_samples(config.data.root, config.eval.split, config.data.label_kind)
    for split, samples in ((config.data.train_split, train_set), (config.eval.split, eval_set)):
        console.print(
            f"{split}: {len(samples)} samples from {samples.source}, labels of kind {samples.kind}",
            highlight=False,
            soft_wrap=True,
        )
    steps = total_steps(config, len(train_set))
    batches = functools.partial(
        train_batches, train_set, config.labels, config.data, config.model.mean, seed=config.seed, steps=steps, **hosts
    )
    train(
        config,
        WORKDIR.value,
        steps=steps,
        train_batches=lambda step: batches(start_step=step),
        eval_batches=lambda: eval_batches(
            eval_set, config.labels, config.eval.batch_size, threads=config.data.threads, **hosts
        ),
        console=console,
    )


if __name__ == "__main__":
    run_with_flags(main)
