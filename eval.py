"""Score a checkpoint: `python eval.py --config=configs/quickstart.py --checkpoint=runs/quickstart`.

`--checkpoint` is a run (its latest step), RUN/best, or one step RUN/checkpoints/N. `--config.eval.output_stride=8` evaluates
at another output stride than training's. A list without labels gives pictures alone: `--config.eval.split=test --output=DIR`.
"""

import json

from absl import flags
from ml_collections import config_flags

from deeplab_jax.cli import checked_config, checked_folder, run_with_flags
from deeplab_jax.errors import ConfigError

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, RUN/best, or RUN/checkpoints/N.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.json and, by image, train ids, colours and overlays.")


def main() -> None:
    """Joins data and evaluation; everything else is in deeplab_jax."""
    config = checked_config(CONFIG.value)
    checkpoint = checked_folder("--checkpoint", CHECKPOINT.value, "runs/quickstart")
    output = OUTPUT.value and checked_folder("--output", OUTPUT.value, "runs/quickstart/val")
    # Imported here so that a mistyped flag is answered at once.
    from etils import epath
    from rich.console import Console

    from deeplab_jax.data.lists import describe, find_samples
    from deeplab_jax.data.pipeline import eval_batches
    from deeplab_jax.evaluation import report
    from deeplab_jax.evaluation.evaluate import evaluate
    from deeplab_jax.train.checkpoint import resolve, restore_model

    variables = restore_model(checkpoint, like=config)
    samples = find_samples(config.data.root, config.eval.split, config.data.label_kind, need_labels=False)
    if not (samples.labels or output):
        raise ConfigError(f"`eval.split` (={config.eval.split!r}) has no labels to score: give --output for the predictions")
    batches = eval_batches(samples, config.labels, config.eval.batch_size, threads=config.data.threads)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"checkpoint {resolve(checkpoint)}")
    console.print(describe(config.eval.split, samples))
    confusion = evaluate(config, variables, batches, samples.images, output, console)
    if samples.labels:
        console.print(report.table(confusion, config.labels))
        if output:
            scores = json.dumps(report.summary(confusion, config.labels), indent=2)
            (epath.Path(output) / "scores.json").write_text(scores + "\n")


if __name__ == "__main__":
    run_with_flags(main)
