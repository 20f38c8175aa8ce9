"""Measure the evaluation of photos of many sizes, with an empty compilation cache, next to torchvision.

pip install torch torchvision
python benchmarks/image_sizes.py --out runs/image_sizes

Each side runs in its own process, one after the other. The measurement starts with the files on the disk and ends with the
confusion counts, and includes compiling. "programs" are compilations of more than a second. The sides are:

  canvases     eval.py's batches, which put images of different sizes on a few canvases
  torchvision  the same network in eager PyTorch, one image at a time
  exact        one program per image size; with --exact-sizes N, only N of the sizes

All sides write their predictions, which are compared at the end.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import networks
import numpy as np
import photos
from PIL import Image

SIDES = ("canvases", "torchvision", "exact")


def write_photos(root: pathlib.Path, images: int, sizes: int) -> None:
    """Write pairs of an image and a label, in sizes from 200x300 to 640x640 pixels."""
    rng = np.random.default_rng(0)
    shapes = [(int(rng.integers(200, 641)), int(rng.integers(300, 641))) for _ in range(sizes)]
    for folder in ("input", "target", "list"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    photo, label = photos.draw_photo(rng), photos.draw_label(rng)
    for i in range(images):
        height, width = shapes[i % sizes]
        top, left = int(rng.integers(photos.SIZE[0] - height)), int(rng.integers(photos.SIZE[1] - width))
        window = (slice(top, top + height), slice(left, left + width))
        Image.fromarray(photo[window]).save(root / f"input/{i:04d}.png")
        Image.fromarray(label[window]).save(root / f"target/{i:04d}.png")
    (root / "list" / "val.lst").write_text("".join(f"input/{i:04d}.png\ttarget/{i:04d}.png\n" for i in range(images)))


def iterate_files(root: pathlib.Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield each pair's name, image and label."""
    for path in sorted((root / "input").iterdir()):
        yield path.stem, np.asarray(Image.open(path)), np.asarray(Image.open(root / "target" / path.name))


def count_confusion(label: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return the confusion counts of one image."""
    cells = networks.CLASSES * label.astype(int) + prediction
    return np.bincount(cells.ravel(), minlength=networks.CLASSES**2).reshape(networks.CLASSES, -1)


def run_canvases(args: argparse.Namespace, keep: Callable[[str, np.ndarray], None]) -> dict[str, Any]:
    """Evaluate like eval.py does."""
    import dataclasses

    import jax
    from rich.console import Console

    from deeplab_jax.commands.datasets import describe_programs, list_batch_kinds, open_evaluation_set
    from deeplab_jax.config import DataConfig, EvalConfig
    from deeplab_jax.evaluation.evaluate import evaluate

    durations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: durations.append(seconds) if name.endswith("backend_compile_duration") else None
    )
    config = dataclasses.replace(
        networks.our_config(args),
        data=DataConfig(root=str(args.out / "photos"), label_kind="labelTrainIds"),
        eval=EvalConfig(split="val", batch_size=args.batch),
    )
    variables = networks.our_variables(config)
    durations.clear()
    start = time.perf_counter()
    samples, batches = open_evaluation_set(config)

    def visit(each: Any) -> None:
        keep(pathlib.Path(samples.images[each.index]).stem, each.prediction)

    kinds = list_batch_kinds(config, samples)
    totals = evaluate(config, variables, batches(), len(samples), [visit], Console(), kinds=kinds)
    seconds = time.perf_counter() - start
    large = [duration for duration in durations if duration > 1]
    return {
        "seconds": seconds,
        "programs": len(large),
        "compile_seconds": sum(large),
        "confusion": totals.confusion.tolist(),
        "summary": describe_programs(config, samples),
    }


def run_exact(args: argparse.Namespace, keep: Callable[[str, np.ndarray], None]) -> dict[str, Any]:
    """Compile one program for each size, and run it on all images of this size."""
    from deeplab_jax.evaluation import inference
    from deeplab_jax.runtime.compilation import compile_program

    config = networks.our_config(args)
    variables = networks.our_variables(config)
    by_size = collections.defaultdict(list)
    start = time.perf_counter()
    for name, image, label in iterate_files(args.out / "photos"):
        by_size[image.shape].append((name, image, label))
    chosen = list(by_size.values())[: args.exact_sizes or None]
    compile_seconds, confusion = 0.0, np.zeros((networks.CLASSES, networks.CLASSES), int)
    for group in chosen:
        before = time.perf_counter()
        program = compile_program(inference.jit_by_config(inference.predict, config), variables, group[0][1][None], None)
        compile_seconds += time.perf_counter() - before
        for name, image, label in group:
            prediction = np.asarray(program(variables, image[None], None))[0]
            keep(name, prediction)
            confusion += count_confusion(label, prediction)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "programs": len(chosen),
        "sizes": len(by_size),
        "compile_seconds": compile_seconds,
        "confusion": confusion.tolist(),
    }


def run_torchvision(args: argparse.Namespace, keep: Callable[[str, np.ndarray], None]) -> dict[str, Any]:
    """Evaluate in eager PyTorch, one image at a time."""
    import torch

    network = networks.Torch(args, train=False, compiled=False)
    confusion = np.zeros((networks.CLASSES, networks.CLASSES), int)
    start = time.perf_counter()
    with torch.inference_mode():
        for name, image, label in iterate_files(args.out / "photos"):
            prediction = network.logits(network.image(np.array(image)[None]))["out"].argmax(1)[0].numpy().astype(np.uint8)
            keep(name, prediction)
            confusion += count_confusion(label, prediction)
    return {"seconds": time.perf_counter() - start, "confusion": confusion.tolist()}


def run_side(side: str, args: argparse.Namespace) -> None:
    """Run one side in this process, and write its result and predictions."""
    predictions: dict[str, np.ndarray] = {}
    before = time.process_time()
    run = {"canvases": run_canvases, "torchvision": run_torchvision, "exact": run_exact}[side]
    result = run(args, predictions.__setitem__)
    result["cpu_seconds"] = time.process_time() - before  # includes drawing the weights
    np.savez_compressed(args.out / f"{side}.npz", **predictions)
    (args.out / f"{side}.json").write_text(json.dumps(result))


def compare_predictions(out: pathlib.Path, a: str, b: str) -> str:
    """Return how many pixels of two sides' predictions differ."""
    with np.load(out / f"{a}.npz") as first, np.load(out / f"{b}.npz") as second:
        names = sorted(set(first.files) & set(second.files))
        differing = sum(int((first[name] != second[name]).sum()) for name in names)
        pixels = sum(first[name].size for name in names)
    return f"{a} and {b}: {differing} of {pixels} pixels in {len(names)} images differ ({differing / pixels:.1e})"


def main() -> None:
    """Run the sides and print the times."""
    parser = networks.build_parser(__doc__, size=(640, 640), batch=1)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder for the photos and results")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--sizes", type=int, default=150)
    parser.add_argument("--exact-sizes", type=int, default=0, help="stop the side `exact` after this many sizes")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_side(args.side, args)
        return
    if not (args.out / "photos").exists():
        write_photos(args.out / "photos", args.images, args.sizes)
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    for side in args.sides:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], check=True, env=environment)
        result = json.loads((args.out / f"{side}.json").read_text())
        facts = {name: round(value, 1) if isinstance(value, float) else value for name, value in result.items()}
        print(side, {name: value for name, value in facts.items() if name != "confusion"}, flush=True)
    for other in args.sides[1:]:
        print(compare_predictions(args.out, args.sides[0], other))


if __name__ == "__main__":
    main()
