"""Train the rows of a study one by one, and print the results as a table.

python benchmarks/sweep.py benchmarks/camvid_study.py --root CAMVID --out runs/camvid_study --table benchmarks/camvid_table.md

A study is a Python file that defines RECIPE, the path of a base config, and ROWS, a dict mapping row names to train.py
flags. If the sweep is interrupted, run the same command again. It skips the finished rows and resumes the unfinished one.
`--rows 'b4*'` selects rows by name, and `--seeds 0 1 2` trains each row with each seed. All rows are checked before training
starts. If a row's recipe or flags have changed, its old runs are left out of the table but not overwritten.
"""

import argparse
import dataclasses
import fnmatch
import json
import math
import pathlib
import re
import runpy
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deeplab_jax.commands.flags import load_recipe
from deeplab_jax.config import Config, digest_of, to_dict
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.metrics_log import read_log

ROOT = pathlib.Path(__file__).parent.parent
COMMAND = "command.txt"


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a finished run.

    Attributes:
      steps: The number of training steps.
      minutes: The training time in minutes, excluding evaluations, checkpoints and compilation.
      miou: The mean IoU in the last evaluation, from 0 to 1.
      pixel_accuracy: The pixel accuracy in the last evaluation, from 0 to 1.
    """

    steps: int
    minutes: float
    miou: float
    pixel_accuracy: float


def read_result(workdir: pathlib.Path) -> Result | None:
    """Read a run's result from its receipt and log. Return None if the run is unfinished.

    Raises:
      SystemExit: The last evaluation has no mIoU.
    """
    receipt = workdir / "run.json"
    if not receipt.exists():
        return None
    steps = json.loads(receipt.read_text())["starts"][-1]["steps"]
    scores = [row for row in read_log(str(workdir), "eval") if row["step"] == steps]
    if not scores:
        return None
    if scores[0]["miou"] is None:
        sys.exit(
            f"{workdir}: the last evaluation has no mIoU, because its split has no labelled pixels. "
            "Evaluate a split that has labels."
        )
    # The median is robust to steps slowed down by other work on the machine.
    seconds = [row["seconds_per_step"] for row in read_log(str(workdir), "train")]
    minutes = steps * statistics.median(seconds or [math.nan]) / 60
    return Result(steps, minutes, scores[0]["miou"], scores[0]["pixel_accuracy"])


def open_study(path: str) -> Mapping[str, Any]:
    """Return the variables defined in a study file, including RECIPE and ROWS.

    Raises:
      SystemExit: The file does not exist, or RECIPE or ROWS is missing.
    """
    if not pathlib.Path(path).is_file():
        sys.exit(f"`study` (={path!r}) is not a file. Give a study such as benchmarks/camvid_study.py.")
    study = runpy.run_path(path)
    if not isinstance(study.get("RECIPE"), str) or not isinstance(study.get("ROWS"), Mapping):
        sys.exit(
            f"{path} must define RECIPE, the path of a config, and ROWS, a dict {{name: flags}}. "
            "See benchmarks/camvid_study.py for an example."
        )
    return study


def load_row(study: Mapping[str, Any], row: str) -> Config:
    """Return a row's training config, without its data root and seed.

    Raises:
      SystemExit: The row's name cannot be used as a folder name, or its flags are rejected by train.py or the sweep.
    """
    if row in ("", ".", "..") or "/" in row:
        sys.exit(f"row {row!r} cannot be used as a folder name. Choose a name without slashes.")
    words = shlex.split(study["ROWS"][row])
    for word in words:
        if not re.match(r"--config\.[\w.]+=", word) or word.startswith(("--config.seed=", "--config.data.root=")):
            sys.exit(
                f"row {row!r}: `{word}` cannot be set by a row. Use --config.FIELD=VALUE, except for seed and data.root, "
                "which the sweep sets."
            )
    try:
        return load_recipe(_recipe_path(study["RECIPE"]), [word.removeprefix("--config.") for word in words])
    except ConfigError as error:
        sys.exit(f"row {row!r}: {error}")


def _recipe_path(recipe_and_argument: str) -> str:
    """Make a recipe path absolute by resolving it against the repository root. Any argument after ":" is kept."""
    path, colon, argument = recipe_and_argument.partition(":")
    return f"{ROOT / path}{colon}{argument}"


def build_command(study: Mapping[str, Any], row: str, root: str, seed: int) -> str:
    """Return the shell-quoted command-line arguments for training a row, except --workdir.

    A trailing comment contains a digest of the recipe's config, so the command changes whenever the recipe does.
    """
    words = ("train.py", f"--config={study['RECIPE']}", f"--config.data.root={root}", f"--config.seed={seed}")
    digest = digest_of(to_dict(load_recipe(_recipe_path(study["RECIPE"]))))[:12]
    return f"{shlex.join((*words, *shlex.split(study['ROWS'][row])))} # {digest}"


def train(command: str, workdir: pathlib.Path) -> Result:
    """Start or resume a row's training, and return its result. The output goes to `<workdir>/log.txt`.

    Args:
      command: The arguments returned by `build_command`.
      workdir: The run folder.

    Raises:
      SystemExit: The training failed or was stopped, or `workdir` contains a run started by a different command.
    """
    has_started = (workdir / "run.json").exists()
    if has_started and (stored := _read_command(workdir)) != command:
        sys.exit(f"{workdir} holds a run of `{stored}`, not of `{command}`. Rename the row, or move the folder away.")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / COMMAND).write_text(command)
    if (result := read_result(workdir)) is None:
        words = [sys.executable, *shlex.split(command, comments=True), f"--workdir={workdir}"]
        with (workdir / "log.txt").open("a") as log, subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log) as child:
            try:
                child.wait()
            except KeyboardInterrupt:  # train.py also gets the signal, finishes its step and saves
                child.wait()
        if child.returncode not in (0, 75):  # 75: a signal stopped the run
            last = (workdir / "log.txt").read_text().strip().splitlines()[-1:]
            sys.exit(
                f"train.py exited with code {child.returncode}. The last line of {workdir / 'log.txt'} is: {''.join(last)}"
            )
        result = read_result(workdir)
    if result is None:
        sys.exit(f"The run in {workdir} was stopped. Run the same command again to resume it.")
    return result


def find_results(study: Mapping[str, Any], row: str, root: str, out: pathlib.Path) -> list[Result]:
    """Return the results of a row's finished runs, one per seed.

    Runs whose row name matches but whose recipe or flags differ are skipped.
    """
    results = []
    for workdir in sorted((out / row).glob("seed*")):
        seed = workdir.name.removeprefix("seed")  # also "0_old", if the user moved a run away
        if seed.isdigit() and _read_command(workdir) == build_command(study, row, root, int(seed)):
            results.append(read_result(workdir))
    return [each for each in results if each]


def _read_command(workdir: pathlib.Path) -> str:
    file = workdir / COMMAND
    return file.read_text() if file.exists() else ""


def format_table(rows: Mapping[str, str], results: Mapping[str, Sequence[Result]]) -> str:
    """Return the results as a Markdown table.

    If there are several seeds, the table shows the mean, lowest and highest mIoU. The best mean is in bold.
    """
    best = max((_mean_miou(runs) for runs in results.values() if runs), default=0.0)
    lines = ["| row | flags | seeds | steps | minutes | val mIoU | pixel accuracy |", "| --- " * 7 + "|"]
    for name, flags in rows.items():
        if runs := results.get(name):
            miou = f"{100 * _mean_miou(runs):.1f}"
            if len(runs) > 1:
                miou += f" ({100 * min(r.miou for r in runs):.1f} to {100 * max(r.miou for r in runs):.1f})"
            miou = f"**{miou}**" if _mean_miou(runs) == best else miou
            accuracy = statistics.mean(r.pixel_accuracy for r in runs)
            minutes = statistics.median(r.minutes for r in runs)
            changed = f"`{flags.replace('--config.', '')}`" if flags else ""
            cells = (name, changed, len(runs), runs[0].steps, f"{minutes:.1f}", miou, f"{100 * accuracy:.1f}")
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_miou(runs: Sequence[Result]) -> float:
    return statistics.mean(r.miou for r in runs)


def main() -> None:
    """Train the selected rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="Python file with RECIPE and ROWS")
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the runs, <out>/<row>/seed<N>")
    parser.add_argument("--rows", nargs="*", default=["*"], help="names or patterns of the rows to train; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--table", type=pathlib.Path, help="file for the table of all finished rows, which is updated after every run"
    )
    args = parser.parse_args()
    study = open_study(args.study)
    if not pathlib.Path(args.root).is_dir():
        sys.exit(f"`--root` (={args.root!r}) is not a folder. Give the folder of the data set.")
    rows: dict[str, str] = study["ROWS"]
    root = str(pathlib.Path(args.root).resolve())
    selected = [name for name in rows if any(fnmatch.fnmatch(name, pattern) for pattern in args.rows)]
    if not selected:
        sys.exit(f"`--rows` (={' '.join(args.rows)}) matches no row. Choose from {', '.join(rows)}.")
    for name in selected:
        load_row(study, name)
    for name in selected:
        for seed in args.seeds:
            result = train(build_command(study, name, root, seed), args.out.resolve() / name / f"seed{seed}")
            scores = f"val mIoU {100 * result.miou:.1f}, pixel accuracy {100 * result.pixel_accuracy:.1f}"
            print(f"{name}, seed {seed}: {scores}, {result.steps} steps in {result.minutes:.1f} min", flush=True)
            text = format_table(rows, {name: find_results(study, name, root, args.out) for name in rows})
            if args.table:
                args.table.parent.mkdir(parents=True, exist_ok=True)
                args.table.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
