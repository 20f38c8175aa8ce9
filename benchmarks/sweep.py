"""Trains the rows of a study one after the other, and prints them as a table.

python benchmarks/sweep.py benchmarks/camvid_study.py --root CAMVID --out runs/camvid_study --table benchmarks/camvid_table.md

A study is a Python file with RECIPE, a config to start from, and ROWS, {name: flags of train.py}. The same command goes on
where it was stopped: a row that is done is not trained again, one that is not resumes. `--rows 'b4*'` takes some,
`--seeds 0 1 2` trains each so often.
"""

import argparse
import dataclasses
import fnmatch
import json
import pathlib
import runpy
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

from deeplab_jax.train.metrics_log import logged

ROOT = pathlib.Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Result:
    """One trained run.

    Attributes:
      steps: that it took.
      minutes: of training; evaluations, checkpoints and the compilation left out.
      miou, pixel_accuracy: of the last evaluation, 0 to 1.
    """

    steps: int
    minutes: float
    miou: float
    pixel_accuracy: float


def result(workdir: pathlib.Path) -> Result | None:
    """What the run's receipt and log say of it; None for one that has not come to its end."""
    receipt = workdir / "run.json"
    if not receipt.exists():
        return None
    steps = json.loads(receipt.read_text())["starts"][-1]["steps"]
    scores = [row for row in logged(str(workdir), "eval") if row["step"] == steps]
    if not scores:
        return None
    # The median, so that what else the machine did for a while does not count.
    minutes = steps * statistics.median(row["seconds_per_step"] for row in logged(str(workdir), "train")) / 60
    return Result(steps, minutes, scores[0]["miou"], scores[0]["pixel_accuracy"])


def train(recipe: str, flags: str, root: str, seed: int, workdir: pathlib.Path) -> Result:
    """Trains, or goes on with, a run; its output goes to `<workdir>/log.txt`.

    Raises:
      SystemExit: the training failed, or the workdir holds a run with other flags.
    """
    command = ["train.py", f"--config={recipe}", f"--config.data.root={root}", f"--config.seed={seed}", *shlex.split(flags)]
    workdir.mkdir(parents=True, exist_ok=True)
    stored = workdir / "command.txt"
    if stored.exists() and stored.read_text() != shlex.join(command):
        sys.exit(
            f"{workdir} holds `{stored.read_text()}`, not `{shlex.join(command)}`: name the row otherwise, or move it away"
        )
    stored.write_text(shlex.join(command))
    if (found := result(workdir)) is None:
        with (workdir / "log.txt").open("a") as log:
            done = subprocess.run(
                [sys.executable, *command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=log, check=False
            )
        if done.returncode:
            sys.exit(f"{workdir}: train.py ended with {done.returncode}, see its log.txt")
        found = result(workdir)
    if found is None:
        sys.exit(f"{workdir} was stopped: the same command goes on")
    return found


def table(rows: Mapping[str, str], results: Mapping[str, Sequence[Result]]) -> str:
    """Markdown; the best mIoU is bold. Of several seeds the mean, and the lowest and highest."""
    best = max(map(_mean, results.values()), default=0.0)
    lines = ["| row | flags | seeds | steps | minutes | val mIoU | pixel accuracy |", "| --- " * 7 + "|"]
    for name, flags in rows.items():
        if found := results.get(name):
            miou = f"{100 * _mean(found):.1f}"
            if len(found) > 1:
                miou += f" ({100 * min(r.miou for r in found):.1f} to {100 * max(r.miou for r in found):.1f})"
            miou = f"**{miou}**" if _mean(found) == best else miou
            accuracy = statistics.mean(r.pixel_accuracy for r in found)
            minutes = statistics.median(r.minutes for r in found)
            changed = f"`{flags.replace('--config.', '')}`" if flags else ""
            cells = (name, changed, len(found), found[0].steps, f"{minutes:.1f}", miou, f"{100 * accuracy:.1f}")
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _mean(found: Sequence[Result]) -> float:
    return statistics.mean(r.miou for r in found)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="Python file with RECIPE and ROWS")
    parser.add_argument("--root", required=True, help="of the data set")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs, <out>/<row>/seed<N>")
    parser.add_argument(
        "--rows", nargs="*", default=["*"], help="names or patterns; all are left out of a table that have no run"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", type=pathlib.Path, help="file to write the table to, after every run")
    args = parser.parse_args()
    study = runpy.run_path(args.study)
    rows: dict[str, str] = study["ROWS"]
    root = str(pathlib.Path(args.root).resolve())
    wanted = [name for name in rows if any(fnmatch.fnmatch(name, pattern) for pattern in args.rows)]
    if not wanted:
        sys.exit(f"`--rows` (={' '.join(args.rows)}) names none of: {', '.join(rows)}")
    for name in wanted:
        for seed in args.seeds:
            workdir = args.out.resolve() / name / f"seed{seed}"
            print(f"{name}, seed {seed}: {train(study['RECIPE'], rows[name], root, seed, workdir)}", flush=True)
            text = table(rows, {name: found for name in rows if (found := _finished(args.out / name))})
            if args.table:
                args.table.parent.mkdir(parents=True, exist_ok=True)
                args.table.write_text(text)
    print(text)


def _finished(folder: pathlib.Path) -> list[Result]:
    return [found for workdir in sorted(folder.glob("seed*")) if (found := result(workdir))]


if __name__ == "__main__":
    main()
