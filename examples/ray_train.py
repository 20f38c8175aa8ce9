"""Train a recipe with Ray Train.

    python examples/ray_train.py configs/cityscapes_r50_os8.py /shared/runs/r50 data.root=/shared/cityscapes \
        --workers 2 --gpus-per-worker 4

Ray starts the workers, JAX connects them, and `dl.train` does the rest. If a worker dies, Ray ends the others and starts all of
them again, and the run resumes from its last checkpoint. Without --gpus-per-worker, the workers use CPUs.
"""

import argparse
import os

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxConfig, JaxTrainer

from deeplab_jax.checkpoints.folders import make_absolute
from deeplab_jax.commands.exit import run_or_exit


def load_config(recipe: str, fields: list[str]):
    """Load the config, in the script or in a worker. JAX must not be imported before Ray has set it up."""
    from deeplab_jax.commands.flags import load_recipe

    return load_recipe(recipe, fields)


def train(settings: dict) -> None:
    """Train in one worker."""
    import jax

    import deeplab_jax as dl
    from deeplab_jax.runtime.console import make_console

    config = load_config(settings["recipe"], settings["fields"])
    dl.train(config, settings["workdir"], console=make_console(quiet=jax.process_index() > 0))


def main() -> None:
    """Start the workers, and wait for the end of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("workdir", help="a folder that all hosts share")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help="config fields, such as optim.lr=0.02")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus-per-worker", type=int, default=0)
    parser.add_argument("--max-failures", type=int, default=3, help="how often Ray starts the workers again")
    flags = parser.parse_intermixed_args()
    gpus = flags.gpus_per_worker
    run_or_exit(lambda: load_config(flags.recipe, flags.fields))  # report wrong flags before the workers start
    JaxTrainer(
        train,
        train_loop_config={
            "recipe": os.path.abspath(flags.recipe),
            "workdir": str(make_absolute(flags.workdir)),
            "fields": flags.fields,
        },
        # Ray connects the workers only if it expects accelerators. JAX_PLATFORMS decides what they use.
        jax_config=JaxConfig(use_gpu=True),
        scaling_config=ScalingConfig(
            num_workers=flags.workers, use_gpu=gpus > 0, resources_per_worker={"GPU": gpus} if gpus else {"CPU": 1}
        ),
        run_config=RunConfig(
            failure_config=FailureConfig(max_failures=flags.max_failures),
            worker_runtime_env={"env_vars": {"JAX_PLATFORMS": "cuda" if gpus else "cpu"}},
        ),
    ).fit()


if __name__ == "__main__":
    main()
