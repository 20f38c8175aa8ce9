"""Train a DeepLabV3: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`.

The same command on the same workdir resumes. `--config.optim.lr=0.02` overrides a field of the recipe. On several hosts the
same command runs on each (docs/clusters.md).
"""

from absl import flags
from ml_collections import config_flags

from deeplab_jax.commands.flags import define_host_flags, join_hosts, require_config, run_with_flags
from deeplab_jax.files import require_folder

CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe: a Python file with get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics.jsonl, TensorBoard events.")
define_host_flags()


def main() -> None:
    """Parse the flags, then train; everything else is in deeplab_jax."""
    config = require_config(CONFIG.value)
    workdir = require_folder(WORKDIR.value, "--workdir", "runs/quickstart")
    with join_hosts() as console:
        # Imported here so that a mistyped flag is answered at once.
        from deeplab_jax.commands.train import train_recipe

        train_recipe(config, workdir, console)


if __name__ == "__main__":
    run_with_flags(main)
