"""Predict images and videos with Ray Data. The files are those of `deeplab-jax predict`.

    python examples/ray_predict.py /shared/photos --checkpoint /shared/runs/r50/best --out /shared/predictions --workers 8

Each row of the dataset is a shard of the work, as in `deeplab-jax predict --shard I/N`. Ray gives each shard to a worker, and
to another one if that worker dies.
"""

import argparse
import os

import ray

from deeplab_jax.buckets import is_url
from deeplab_jax.checkpoints.folders import make_absolute
from deeplab_jax.checkpoints.paths import resolve
from deeplab_jax.commands.exit import run_or_exit
from deeplab_jax.predict.inputs import find_inputs


class Predictor:
    """A worker with a network, which predicts any shard of the inputs."""

    def __init__(self, inputs: list[str], checkpoint: str, out: str, shards: int) -> None:
        import deeplab_jax as dl

        self._segmenter = dl.load(checkpoint)
        self._files, _ = find_inputs(inputs, out)
        self._out, self._shards = out, shards

    def __call__(self, row: dict) -> dict:
        """Predict one shard, and return its number of files and the reasons why some of them cannot be read."""
        from rich.console import Console

        from deeplab_jax.predict.images import Options, run
        from deeplab_jax.runtime.work_shard import WorkShard

        failures: list[str] = []
        options = Options(self._out, shard=WorkShard(row["id"] + 1, self._shards))
        share = run(self._segmenter, self._files, options, Console(quiet=True), failures.append)
        return {"files": share.count, "plan": share.plan, "failures": "\n".join(failures)}


def main() -> None:
    """Predict all shards, and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="files, folders or patterns")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=0, help="by default, four for each worker")
    parser.add_argument("--gpus-per-worker", type=int, default=0)
    flags = parser.parse_args()
    shards = flags.shards or 4 * flags.workers
    # Ray runs the workers in folders of their own.
    inputs = [os.path.abspath(each) for each in flags.inputs]
    checkpoint, out = str(make_absolute(flags.checkpoint)), flags.out if is_url(flags.out) else os.path.abspath(flags.out)
    run_or_exit(lambda: (resolve(checkpoint), find_inputs(inputs, out)))  # report wrong flags before the workers start
    dataset = ray.data.range(shards, override_num_blocks=shards).map(
        Predictor,
        fn_constructor_args=(inputs, checkpoint, out, shards),
        compute=ray.data.ActorPoolStrategy(size=flags.workers),
        **({"num_gpus": flags.gpus_per_worker} if flags.gpus_per_worker else {"num_cpus": 1}),
    )
    rows = dataset.take_all()
    if len({row["plan"] for row in rows}) > 1:
        raise SystemExit("error: The workers have different devices, or could not read all inputs. Run the command again.")
    failures = [line for row in rows for line in row["failures"].splitlines()]
    count = sum(row["files"] for row in rows)
    print(f"Segmented {count - len(failures)} of {count} files. The results are in {out}.")
    for line in failures:
        print(f"failed: {line}")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
