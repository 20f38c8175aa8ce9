"""Evaluate a checkpoint: `python eval.py --config=configs/quickstart.py --checkpoint=runs/quickstart`.

`--config=configs/stored.py:CHECKPOINT` is the config that the checkpoint was saved with. `--config.eval.output_stride=8`
evaluates at a different output stride from the one used in training. A split without labels cannot be scored, but its
predictions can be written: use `--config.eval.split=test` with `--output=DIR` for images or with `--submission=DIR` for files
in the format of the Cityscapes server. To evaluate on several hosts, start the same command on each of them; the images are
divided among them (docs/how-to/clusters.md).
"""

from absl import flags
from ml_collections import config_flags

from deeplab_jax.commands.flags import define_host_flags, join_hosts, require_config, run_with_flags
from deeplab_jax.errors import ConfigError
from deeplab_jax.files import require_folder

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a Python file that defines get_config().")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run folder (its latest step), RUN/best, a step folder, or a folder written by `weights import`."
)
OUTPUT = flags.DEFINE_string("output", None, "The folder for scores.json and each image's train ids, colours and overlay.")
SUBMISSION = flags.DEFINE_string(
    "submission", None, "The folder for the label-id PNGs and submission.zip for the Cityscapes server."
)
define_host_flags()


def main() -> None:
    """Parse the flags and evaluate. The implementation is in deeplab_jax."""
    config = require_config(CONFIG.value)
    if not CHECKPOINT.value:
        raise ConfigError("`--checkpoint` is missing. Give a run folder, for example --checkpoint=runs/quickstart.")
    output = OUTPUT.value and require_folder(OUTPUT.value, "--output", "runs/quickstart/val")
    submission = SUBMISSION.value and require_folder(SUBMISSION.value, "--submission", "runs/quickstart/submission")
    with join_hosts(config.mesh) as console:
        # Import late, so that a mistyped flag is reported without waiting for slow imports.
        from deeplab_jax.commands.evaluate import score_checkpoint

        score_checkpoint(config, CHECKPOINT.value, output, submission, console)


if __name__ == "__main__":
    run_with_flags(main)
