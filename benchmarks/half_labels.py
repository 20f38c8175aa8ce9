"""Measure what pseudo-labels gain: train on half of a data set's labels, with and without predictions for the other images.

python benchmarks/half_labels.py --root CAMVID --out runs/half_labels

The labels of every second training image are hidden. Three networks are trained for the same number of steps: on the labels
that are left, on these and the first network's pseudo-labels for the other images, and on all labels. If the script is
interrupted, run the same command again.
"""

import argparse
import pathlib
import subprocess
import sys

import sweep

from deeplab_jax.commands.flags import load_recipe
from deeplab_jax.config import digest_of, total_steps
from deeplab_jax.data.find import find_samples

HALF, ALL = "half of the labels", "all labels"


def hide_labels(root: pathlib.Path, out: pathlib.Path) -> int:
    """Write a data set to `out` in which every second image of the training split, sorted by name, has no label.

    Files are links to those in `root`. The images without labels are in `out`/unlabelled. The validation split stays as it is.

    Returns:
      The number of training images in `root`.
    """
    for split in ("train", "val"):
        samples = find_samples(str(root), split)
        pairs = sorted(zip(samples.images, samples.labels, strict=True))
        labelled = pairs[::2] if split == "train" else pairs
        for image, label in labelled:
            _link(root / image, out / image)
            _link(root / label, out / label)
        for image, _ in pairs[1::2] if split == "train" else ():
            _link(root / image, out / "unlabelled" / image)
        listing = out / "list" / f"{split}.lst"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{image}\t{label}\n" for image, label in labelled))
    return len(find_samples(str(root), "train"))


def _link(target: pathlib.Path, link: pathlib.Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(target)


def predict(run: pathlib.Path, root: pathlib.Path, split: str, min_confidence: float) -> None:
    """Label the images in `root`/unlabelled as a new split, unless it exists.

    Raises:
      SystemExit: The prediction failed.
    """
    if (root / "list" / f"{split}.lst").exists():
        return
    words = ("predict", root / "unlabelled", "--checkpoint", run, "--out", root / split)
    flags = ("--as-labels", "--flip", "--min-confidence", min_confidence)
    code = "from deeplab_jax.commands.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *map(str, (*words, *flags))], cwd=sweep.ROOT, check=False)
    if result.returncode:
        sys.exit(f"`deeplab-jax predict` exited with code {result.returncode}.")


def main() -> None:
    """Train the three networks and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, type=pathlib.Path, help="folder of the data set, with splits train and val")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for the data and the runs, in <out>/seed<N>")
    parser.add_argument("--recipe", default="benchmarks/fine_tuning_study.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0, help="steps of each run; default: those of the recipe on all labels")
    parser.add_argument("--min-confidence", type=float, default=0.9)
    args = parser.parse_args()
    out = args.out.resolve() / f"seed{args.seed}"
    half = out / "data"
    count = hide_labels(args.root.resolve(), half)
    steps = args.steps or total_steps(load_recipe(str(sweep.ROOT / args.recipe)), count)
    both = f"{HALF} and pseudo-labels above {args.min_confidence}"
    length = f"--config.train.steps={steps} --config.train.epochs=0.0"
    rows = {HALF: length}
    study = {"RECIPE": args.recipe, "ROWS": rows}
    # Named after the network and the probability, so that labels of others are not taken for these.
    network = sweep.build_command(study, HALF, str(half), args.seed)
    split = f"pseudo_{digest_of({'network': network, 'min_confidence': args.min_confidence})[:8]}"
    rows |= {both: f"{length} --config.data.train_split=train+{split} --config.data.mix=(1,1)", ALL: length}
    results = {}
    for row in rows:
        root = args.root.resolve() if row == ALL else half
        if row == both:
            predict(out / HALF, half, split, args.min_confidence)
        results[row] = [sweep.train(sweep.build_command(study, row, str(root), args.seed), out / row)]
        print(f"{row}: val mIoU {100 * results[row][0].miou:.1f}", flush=True)
    print(sweep.format_table(rows, results))


if __name__ == "__main__":
    main()
