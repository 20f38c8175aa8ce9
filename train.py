"""Train a DeepLabV3: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`.

The same command on the same workdir resumes. `--config.optim.lr=0.02` overrides a field of the recipe.
"""

from absl import flags
from ml_collections import config_flags
from rich.console import Console

from deeplab_jax.cli import checked_config, checked_folder, run_with_flags
from deeplab_jax.config import total_steps

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics.jsonl, TensorBoard events.")


def main() -> None:
    """Joins data and training; everything else is in deeplab_jax."""
    config = checked_config(CONFIG.value)
    workdir = checked_folder("--workdir", WORKDIR.value, "runs/quickstart")
    # Imported here so that a mistyped flag is answered at once.
    from deeplab_jax.data.lists import describe, find_samples
    from deeplab_jax.data.pipeline import eval_batches, train_batches
    from deeplab_jax.train.loop import train
    from deeplab_jax.weights.transfer import pretrained_variables

    console = Console(soft_wrap=True, highlight=False)
    data = config.data
    train_set = find_samples(data.root, data.train_split, data.label_kind)
    eval_set = find_samples(data.root, config.eval.split, data.label_kind)
    console.print(describe(data.train_split, train_set))
    console.print(describe(config.eval.split, eval_set))
    steps = total_steps(config, len(train_set))
    train(
        config,
        workdir,
        steps=steps,
        train_batches=lambda step: train_batches(
            train_set, config.labels, data, config.model.mean, seed=config.seed, start_step=step, steps=steps
        ),
        eval_batches=lambda: eval_batches(eval_set, config.labels, config.eval.batch_size, threads=data.threads),
        pretrained=(lambda: pretrained_variables(config, console.print)) if config.model.pretrained else None,
        console=console,
    )


if __name__ == "__main__":
    run_with_flags(main)
