"""Score a checkpoint: `python eval.py --config=configs/quickstart.py --checkpoint=runs/quickstart`.

`--checkpoint` is a run (its latest step), RUN/best, or one step RUN/checkpoints/N. `--config.eval.output_stride=8` evaluates
at another output stride than training's. A list without labels gives files alone: `--config.eval.split=test` with
`--output=DIR` for pictures, or `--submission=DIR` for what the Cityscapes server takes. On several hosts the same command
runs on each, and each takes its share of the images (docs/clusters.md).
"""

from absl import flags
from ml_collections import config_flags

from deeplab_jax.commands.flags import define_host_flags, join_hosts, require_config, run_with_flags
from deeplab_jax.files import require_folder

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, RUN/best, or RUN/checkpoints/N.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for scores.json and, by image, train ids, colours and overlays.")
SUBMISSION = flags.DEFINE_string("submission", None, "Folder for label-id PNGs and submission.zip for the Cityscapes server.")
define_host_flags()


def main() -> None:
    """Parse the flags, then evaluate; everything else is in deeplab_jax."""
    config = require_config(CONFIG.value)
    checkpoint = require_folder(CHECKPOINT.value, "--checkpoint", "runs/quickstart")
    output = OUTPUT.value and require_folder(OUTPUT.value, "--output", "runs/quickstart/val")
    submission = SUBMISSION.value and require_folder(SUBMISSION.value, "--submission", "runs/quickstart/submission")
    with join_hosts() as console:
        # Imported here so that a mistyped flag is answered at once.
        from deeplab_jax.commands.evaluate import score_checkpoint

        score_checkpoint(config, checkpoint, output, submission, console)


if __name__ == "__main__":
    run_with_flags(main)
