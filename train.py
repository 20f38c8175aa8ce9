"""Train a DeepLabV3 model: `python train.py --config=configs/quickstart.py --workdir=runs/quickstart`.

Running the same command again resumes the run in that workdir. A flag such as `--config.optim.lr=0.02` overrides a
recipe field. To train on several hosts, start the same command on each of them (docs/how-to/clusters.md).
"""

import sys

from absl import flags
from ml_collections import config_flags

from deeplab_jax.buckets import CHECKPOINT_SCHEMES
from deeplab_jax.commands.flags import define_host_flags, join_hosts, require_config, require_workdir, run_with_flags
from deeplab_jax.files import require_folder

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a Python file that defines get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder for checkpoints, metrics.jsonl and TensorBoard events.")
define_host_flags()
STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL: a signal stopped the run, which was saved. Schedulers then start it again.


def main() -> None:
    """Parse the flags and train. The implementation is in deeplab_jax."""
    config = require_config(CONFIG.value)
    workdir = require_workdir(require_folder(WORKDIR.value, "--workdir", "runs/quickstart", CHECKPOINT_SCHEMES))
    with join_hosts(config.mesh) as console:
        # Import late, so that a mistyped flag is reported without waiting for slow imports.
        from deeplab_jax.commands.train import train

        is_finished = train(config, workdir, console=console)["is_finished"]
    # After the block, in which JAX would skip its shutdown, so that all processes of the run end at the same moment.
    if not is_finished:
        sys.exit(STOPPED_EXIT_CODE)


if __name__ == "__main__":
    run_with_flags(main)
