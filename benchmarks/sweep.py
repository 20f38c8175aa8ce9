"""Trains the rows of a study one after the other, and prints them as a table.

python benchmarks/sweep.py benchmarks/camvid_study.py --root CAMVID --out runs/camvid_study --table benchmarks/camvid_table.md

A study is a Python file with RECIPE, a config to start from, and ROWS, {name: flags of train.py}. The same command goes on
where it was stopped: a row that is done is not trained again, one that is not resumes. `--rows 'b4*'` takes some,
`--seeds 0 1 2` trains each so often. All rows are checked before the first is trained. A run whose recipe or flags have changed
since is neither mixed in nor overwritten.
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
from deeplab_jax.train.metrics_log import read_log

ROOT = pathlib.Path(__file__).parent.parent
COMMAND = "command.txt"


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
    scores = [row for row in read_log(str(workdir), "eval") if row["step"] == steps]
    if not scores:
        return None
    if scores[0]["miou"] is None:
        sys.exit(f"{workdir}: the last evaluation has no mIoU: its split has no labelled pixel")
    # The median, so that what else the machine did for a while does not count.
    seconds = [row["seconds_per_step"] for row in read_log(str(workdir), "train")]
    minutes = steps * statistics.median(seconds or [math.nan]) / 60
    return Result(steps, minutes, scores[0]["miou"], scores[0]["pixel_accuracy"])


def opened(path: str) -> Mapping[str, Any]:
    """RECIPE and ROWS of a study.

    Raises:
      SystemExit: it has none.
    """
    if not pathlib.Path(path).is_file():
        sys.exit(f"`study` (={path!r}) is no file: give one such as benchmarks/camvid_study.py")
    study = runpy.run_path(path)
    if not isinstance(study.get("RECIPE"), str) or not isinstance(study.get("ROWS"), Mapping):
        sys.exit(f"{path} lacks RECIPE, a config's file, or ROWS, {{name: flags}}: see benchmarks/camvid_study.py")
    return study


def config_of(study: Mapping[str, Any], row: str) -> Config:
    """What a row trains, but for its data and seed.

    Raises:
      SystemExit: the row's name is no folder's, or its flags are none that train.py takes and a row may set.
    """
    if row in ("", ".", "..") or "/" in row:
        sys.exit(f"row {row!r} names a folder: leave out slashes")
    words = shlex.split(study["ROWS"][row])
    for word in words:
        if not re.match(r"--config\.[\w.]+=", word) or word.startswith(("--config.seed=", "--config.data.root=")):
            sys.exit(f"row {row!r}: `{word}` is no --config.FIELD=VALUE that a row may set: the sweep sets seed and root")
    try:
        return load_recipe(_path(study["RECIPE"]), [word.removeprefix("--config.") for word in words])
    except ConfigError as error:
        sys.exit(f"row {row!r}: {error}")


def _path(recipe_and_argument: str) -> str:
    """Of a recipe wherever the sweep is started from."""
    path, colon, argument = recipe_and_argument.partition(":")
    return f"{ROOT / path}{colon}{argument}"


def command(study: Mapping[str, Any], row: str, root: str, seed: int) -> str:
    """What trains a row, in a shell's words but for the workdir; a comment tells the recipe by its config."""
    words = ("train.py", f"--config={study['RECIPE']}", f"--config.data.root={root}", f"--config.seed={seed}")
    digest = digest_of(to_dict(load_recipe(_path(study["RECIPE"]))))[:12]
    return f"{shlex.join((*words, *shlex.split(study['ROWS'][row])))} # {digest}"


def train(wanted: str, workdir: pathlib.Path) -> Result:
    """Trains what `command` gave, or goes on with it; the output goes to `<workdir>/log.txt`.

    Raises:
      SystemExit: the training failed or was stopped, or the workdir holds another.
    """
    begun = (workdir / "run.json").exists()
    if begun and (stored := _stored(workdir)) != wanted:
        sys.exit(f"{workdir} holds `{stored}`, not `{wanted}`: name the row otherwise, or move it away")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / COMMAND).write_text(wanted)
    if (found := result(workdir)) is None:
        words = [sys.executable, *shlex.split(wanted, comments=True), f"--workdir={workdir}"]
        with (workdir / "log.txt").open("a") as log, subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log) as child:
            try:
                child.wait()
            except KeyboardInterrupt:  # train.py was interrupted too: it ends its step and saves
                child.wait()
        if child.returncode:
            last = (workdir / "log.txt").read_text().strip().splitlines()[-1:]
            sys.exit(f"{workdir / 'log.txt'}: train.py ended with {child.returncode}: {''.join(last)}")
        found = result(workdir)
    if found is None:
        sys.exit(f"{workdir} was stopped: the same command goes on")
    return found


def finished(study: Mapping[str, Any], row: str, root: str, out: pathlib.Path) -> list[Result]:
    """Of a row, with whatever seeds; not of what had its name before with another recipe or other flags."""
    found = []
    for workdir in sorted((out / row).glob("seed*")):
        if _stored(workdir) == command(study, row, root, int(workdir.name.removeprefix("seed"))):
            found.append(result(workdir))
    return [each for each in found if each]


def _stored(workdir: pathlib.Path) -> str:
    file = workdir / COMMAND
    return file.read_text() if file.exists() else ""


def table(rows: Mapping[str, str], results: Mapping[str, Sequence[Result]]) -> str:
    """Markdown; the best mIoU is bold. Of several seeds the mean, and the lowest and highest."""
    best = max((_mean(found) for found in results.values() if found), default=0.0)
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
    study = opened(args.study)
    if not pathlib.Path(args.root).is_dir():
        sys.exit(f"`--root` (={args.root!r}) is no folder: give the data set's")
    rows: dict[str, str] = study["ROWS"]
    root = str(pathlib.Path(args.root).resolve())
    wanted = [name for name in rows if any(fnmatch.fnmatch(name, pattern) for pattern in args.rows)]
    if not wanted:
        sys.exit(f"`--rows` (={' '.join(args.rows)}) names none of: {', '.join(rows)}")
    for name in wanted:
        config_of(study, name)
    for name in wanted:
        for seed in args.seeds:
            found = train(command(study, name, root, seed), args.out.resolve() / name / f"seed{seed}")
            scores = f"val mIoU {100 * found.miou:.1f}, pixel accuracy {100 * found.pixel_accuracy:.1f}"
            print(f"{name}, seed {seed}: {scores}, {found.steps} steps in {found.minutes:.1f} min", flush=True)
            text = table(rows, {name: finished(study, name, root, args.out) for name in rows})
            if args.table:
                args.table.parent.mkdir(parents=True, exist_ok=True)
                args.table.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
