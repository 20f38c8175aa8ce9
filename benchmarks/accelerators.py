"""Find the largest batch of every recipe that fits on accelerators which this machine does not have, and print tables.

python benchmarks/accelerators.py --out runs/accelerators

The compilers of the accelerators say what each program needs (extras `plan-gpu` and `plan-tpu`). The batch per device is a
power of two. It is estimated from the recipe's row for another kind of device or, if there is none, from a compilation with two
images per device. Then it is compiled itself. Rows for several devices use the batch of one device. The rows that are already
in OUT/rows.jsonl are kept, so the command can be interrupted, and repeated for rows that failed. A program takes about 1 minute
to compile for GPUs and 5 for TPUs on 2 CPU cores.
"""

import argparse
import dataclasses
import json
import pathlib
import runpy
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
# Every recipe but the one that needs a checkpoint
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "stored")
TARGETS = ("h100:1", "v5e:1x1", "h100:8", "v5e:4x4", "v5p:1x1x1", "v5p:2x2x4")
SINGLE = ("h100:1", "v5e:1x1", "v5p:1x1x1")  # the targets with one device
FIRST = 2  # images per device in the compilation that the largest batch is estimated from


def compile_one(recipe: str, target: str, images: int, remat: bool) -> dict[str, Any]:
    """Return what the training step needs on each device with `images` images per device."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from deeplab_jax.config import MeshConfig
    from deeplab_jax.plan.program import compile_step
    from deeplab_jax.plan.targets import describe_devices
    from deeplab_jax.plan.traffic import least_times
    from deeplab_jax.runtime.accelerators import ACCELERATORS
    from deeplab_jax.training.begin import set_up

    get_config = runpy.run_path(str(ROOT / "configs" / f"{recipe}.py"))["get_config"]
    config = get_config("cityscapes") if recipe.startswith("custom") else get_config()
    accelerator, size = target.split(":")
    devices = describe_devices(accelerator, *((None, size) if "x" in size else (int(size), "")))
    config = dataclasses.replace(
        config,
        mesh=MeshConfig(),
        model=dataclasses.replace(config.model, remat=(1, 2, 3, 4) if remat else ()),
        data=dataclasses.replace(config.data, batch_size=images * len(devices)),
        eval=dataclasses.replace(config.eval, batch_size=len(devices)),
        train=dataclasses.replace(config.train, micro_batches=1),
    )
    program = compile_step(set_up(config, 1, devices))
    sheet, traffic = ACCELERATORS[accelerator], program.traffic
    return {
        "bytes": program.peak_bytes,
        "state": program.arguments,
        "limit": sheet.memory,
        "flops": program.flops,
        "traffic": dataclasses.asdict(traffic),
        "times": least_times(traffic, program.flops, len(devices), sheet),
        "compiled_in": program.seconds,
    }


def compile_apart(recipe: str, target: str, images: int, remat: bool) -> dict[str, Any]:
    """Call `compile_one` in a process of its own, because a compiler that runs out of memory can end its process.

    The result has "bytes" infinity if the compiler says that the program does not fit.

    Raises:
      RuntimeError: The compilation failed for another reason.
    """
    words = [sys.executable, __file__, "--one", recipe, target, str(images), str(int(remat))]
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    if result.returncode == 0:
        return json.loads(result.stdout.splitlines()[-1])
    if "RESOURCE_EXHAUSTED" in result.stderr or "Ran out of memory" in result.stderr:
        return {"bytes": float("inf")}
    raise RuntimeError(f"{images} images per device failed with exit code {result.returncode}: {result.stderr[-400:]}")


def estimate_images(recipe: str, target: str, remat: bool, other: dict[str, Any] | None) -> int:
    """Return how many images, a power of two, probably fit on a device.

    The row of an `other` kind of device saves a compilation.
    """
    from deeplab_jax.runtime.accelerators import ACCELERATORS

    compiled = other or compile_apart(recipe, target, FIRST, remat) | {"images": FIRST}
    if "state" not in compiled:
        return FIRST
    limit = ACCELERATORS[target.split(":")[0]].memory
    images = compiled["images"] * (limit - compiled["state"]) / (compiled["bytes"] - compiled["state"])
    return max(FIRST, 2 ** (int(images).bit_length() - 1))


def find_largest(recipe: str, target: str, remat: bool, other: dict[str, Any] | None) -> dict[str, Any]:
    """Return the row of the largest batch per device, a power of two, that fits in the device's memory."""
    images = estimate_images(recipe, target, remat, other)
    best: dict[str, Any] = {"bytes": float("inf"), "images": 0}
    while images > best["images"]:
        row = compile_apart(recipe, target, images, remat)
        if row["bytes"] > row.get("limit", 0):
            images //= 2
            continue
        best = row | {"images": images}
        # TPU programs for few images need more memory per image than others, so the estimate can be too low.
        if 2 * row["bytes"] - row["state"] < 1.1 * row["limit"]:
            images *= 2
    return best


def find_row(recipe: str, target: str, remat: bool, done: dict[tuple[str, str, bool], dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the largest batch, or on several devices the row of the batch that is the largest on one."""
    if target in SINGLE:
        others = [done.get((recipe, single, remat), {}) for single in SINGLE if single != target]
        return find_largest(recipe, target, remat, next((row for row in others if "state" in row), None))
    single = next(each for each in SINGLE if each.split(":")[0] == target.split(":")[0])
    if (recipe, single, remat) not in done:
        raise RuntimeError("has no row for one device")
    images = done[recipe, single, remat]["images"]
    return compile_apart(recipe, target, images, remat) | {"images": images}


def print_tables(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table for single devices, and one for several devices."""
    with_remat = {(row["recipe"], row["target"]): row for row in rows if row["remat"]}
    print("| recipe | device | images, GiB | images, GiB with remat | GB moved | least time: compute, memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if row["remat"] or row["target"] not in SINGLE:
            continue
        accelerator = row["target"].split(":")[0]
        remat = with_remat.get((row["recipe"], row["target"]))
        fits = [f"{each['images']}, {each['bytes'] / 2**30:.1f}" if each else "" for each in (row, remat)]
        print(f"| `{row['recipe']}.py` | {accelerator} | {' | '.join([*fits, *_format_times(row)])} |")
    print(
        "\n| recipe | devices | images per device | GiB | collectives | GB moved | least time: compute, memory, communication |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        if row["target"] in SINGLE or "traffic" not in row:
            continue
        accelerator, size = row["target"].split(":")
        count = sum(count for count, _ in row["traffic"]["collectives"].values())
        cells = [row["images"], f"{row['bytes'] / 2**30:.1f}", count, *_format_times(row)]
        print(f"| `{row['recipe']}.py` | {size} {accelerator} | {' | '.join(map(str, cells))} |")


def _format_times(row: dict[str, Any]) -> tuple[str, str]:
    if "traffic" not in row:
        return "", ""
    times = ", ".join(f"{1000 * seconds:.3g}" for seconds in row["times"].values() if seconds)
    return f"{row['traffic']['moved'] / 1e9:.3g}", f"{times} ms"


def main() -> None:
    """Compile all rows, and write each as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/accelerators"))
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--one", nargs=4, metavar=("RECIPE", "TARGET", "IMAGES", "REMAT"), help="compile only one program")
    args = parser.parse_args()
    if args.one:
        recipe, target, images, remat = args.one
        print(json.dumps(compile_one(recipe, target, int(images), remat == "1")))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["recipe"], row["target"], row["remat"]): row for row in rows}
    for target in args.targets:
        for remat in (False, True) if target in SINGLE else (False,):
            for recipe in args.recipes:
                if (recipe, target, remat) in done:
                    continue
                try:
                    row = find_row(recipe, target, remat, done)
                except RuntimeError as error:
                    print(f"failed: {recipe} {target} {'remat' if remat else ''} {error}", flush=True)
                    continue
                row |= {"recipe": recipe, "target": target, "remat": remat}
                done[recipe, target, remat] = row
                with path.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(recipe, target, "remat" if remat else "", row["images"], row["bytes"], flush=True)
    print_tables(list(done.values()))


if __name__ == "__main__":
    main()
