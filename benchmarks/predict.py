"""Measure how close `deeplab-jax predict` comes to the network's speed despite reading and writing image files.

python benchmarks/predict.py CHECKPOINT FOLDER     # a folder of images that all have the same size

Each round first measures the network on batches in memory, then all of `predict`, which writes to a temporary folder.
Everything is compiled before the first round.
"""

import argparse
import io
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import side_by_side
from rich.console import Console

import deeplab_jax as dl
from deeplab_jax.predict.images import Options, batch_size, run
from deeplab_jax.predict.inputs import find_inputs, read_image


def main() -> None:
    """Measure both rates and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--rounds", type=side_by_side.positive, default=3)
    args = parser.parse_args()
    segmenter = dl.load(args.checkpoint)
    inputs, _ = find_inputs([str(args.folder)])
    first = read_image(inputs[0].path)
    images_per_batch = batch_size((first.shape[0], first.shape[1]), Options(""))
    batch = np.stack([read_image(each.path) for each in inputs[:images_per_batch]]).transpose(0, 3, 1, 2)
    segmenter.predict(batch)

    def network() -> None:
        for _ in range(0, len(inputs), images_per_batch):
            segmenter.predict(batch)

    def predict() -> None:
        with tempfile.TemporaryDirectory() as out:
            run(segmenter, inputs, Options(out), Console(file=io.StringIO()), sys.exit)

    rates: dict[str, list[float]] = {"network": [], "predict": []}
    for _ in range(args.rounds):
        for name, work in (("network", network), ("predict", predict)):
            start = time.perf_counter()
            work()
            rates[name].append(len(inputs) / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:8} {medians[name]:.2f} images/s ({min(values):.2f} to {max(values):.2f})")
    ratio = medians["predict"] / medians["network"]
    print(f"predict reaches {ratio:.3f} of the network's rate ({len(inputs)} images in batches of {images_per_batch})")


if __name__ == "__main__":
    main()
