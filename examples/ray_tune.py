"""Search for a learning rate with Ray Tune, and print a table of the trials.

    python examples/ray_tune.py configs/quickstart.py /shared/runs/sweep --lr 0.01 0.03 0.1 --gpus-per-trial 1

Each trial is a run in a folder of its own, so all commands work with it, and the same command continues an interrupted search.
"""

import argparse
import os

from ray import tune

from deeplab_jax.checkpoints.folders import make_absolute
from deeplab_jax.commands.exit import run_or_exit


def load_config(recipe: str, fields: list[str]):
    """Load the config, in the script or in a trial."""
    from deeplab_jax.commands.flags import load_recipe

    return load_recipe(recipe, fields)


def train(settings: dict) -> None:
    """Train one trial, and report its scores after each evaluation."""
    import deeplab_jax as dl

    config = load_config(settings["recipe"], [*settings["fields"], f"optim.lr={settings['lr']}"])
    workdir = os.path.join(settings["workdir"], f"lr_{settings['lr']}")
    scores = dl.train(config, workdir, on_evaluation=lambda step, scores: tune.report({"step": step, "miou": scores["miou"]}))
    if "miou" in scores:  # the run may have been complete before, and then has no evaluation
        tune.report({"step": scores["step"], "miou": scores["miou"]})


def main() -> None:
    """Run all trials, as many at a time as the machines hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("workdir", help="a folder that all hosts share")
    parser.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help="config fields, such as data.root=/shared/cityscapes")
    parser.add_argument("--lr", type=float, nargs="+", required=True)
    parser.add_argument("--gpus-per-trial", type=int, default=0)
    flags = parser.parse_intermixed_args()
    gpus, workdir = flags.gpus_per_trial, str(make_absolute(flags.workdir))
    run_or_exit(lambda: load_config(flags.recipe, flags.fields))  # report wrong flags before the trials start
    space = {
        "recipe": os.path.abspath(flags.recipe),
        "workdir": workdir,
        "fields": flags.fields,
        "lr": tune.grid_search(flags.lr),
    }
    results = tune.Tuner(
        tune.with_resources(train, {"gpu": gpus} if gpus else {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(metric="miou", mode="max"),
    ).fit()
    print(f"{'lr':>8}  {'step':>6}  {'mIoU':>6}  run")
    for result in sorted(results, key=lambda result: result.config["lr"]):
        lr, row = result.config["lr"], result.metrics or {}
        if result.error or "miou" not in row:
            print(f"{lr:8g}  failed: {str(result.error or 'no evaluation').splitlines()[-1]}")
        else:
            print(f"{lr:8g}  {row['step']:6d}  {row['miou']:6.2%}  {workdir}/lr_{lr}")


if __name__ == "__main__":
    main()
