"""Compare our metrics with torchmetrics and with the boundaries of the Boundary IoU's authors.

Usage: python tests/parity/metrics.py --boundary-iou=FOLDER

This needs torch, torchmetrics and opencv-python-headless, and FOLDER, a checkout of github.com/bowenc0221/boundary-iou-api. The
script prints the largest difference for each metric, over images with objects, noise and ignored pixels. torchmetrics computes
in float32, so the differences include its rounding. Its calibration error is computed in float64, because its float32 sums of
this many pixels are wrong by 6e-5.
"""

import argparse
import pathlib
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchmetrics.functional.classification as reference
from torchmetrics.functional.classification.calibration_error import _ce_compute
from torchmetrics.segmentation import MeanIoU

from deeplab_jax.evaluation import counts
from deeplab_jax.evaluation.boundaries import boundary_radius, find_boundaries
from deeplab_jax.evaluation.metrics import CLASS_METRICS, OVERALL_METRICS, Totals, add_totals, empty_totals

CLASSES = 11
SIZES = ((360, 480), (97, 161), (512, 1024), (75, 100))


def make_image(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 logits and train ids of an image with smooth objects, of which some are ignored."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(6, 8, CLASSES + 1))
    smooth = np.stack([cv2.resize(x, size[::-1], interpolation=cv2.INTER_CUBIC) for x in np.moveaxis(coarse, -1, 0)], axis=-1)
    logits = 4 * smooth[..., :CLASSES] + rng.normal(size=(*size, CLASSES)) / 2
    noisy = 4 * smooth + rng.normal(size=smooth.shape) * 0.3
    labels = noisy.argmax(-1)
    return logits.astype(np.float32), np.where(labels == CLASSES, 255, labels).astype(np.uint8)


@jax.jit
def count(logits: jax.Array, labels: jax.Array) -> Totals:
    """Return our totals for a batch."""
    predictions, mask = jnp.argmax(logits, -1).astype(jnp.uint8), labels != 255
    return counts.count_images(counts.count_pixels(logits, labels, predictions, mask), labels, predictions, mask, None)


def load_mask_to_boundary(folder: pathlib.Path):
    """Return the authors' `mask_to_boundary`. Their module also imports pycocotools, which this function does not need."""
    source = (folder / "boundary_iou" / "utils" / "boundary_utils.py").read_text()
    function = re.search(r"^def mask_to_boundary.*?(?=^\S)", source, re.MULTILINE | re.DOTALL).group()
    names = {"cv2": cv2, "np": np}
    exec(function, names)
    return names["mask_to_boundary"]


def compute_references(images: list[tuple[np.ndarray, np.ndarray]], mask_to_boundary) -> dict[str, np.ndarray]:
    """Return the references' values, by the names of our metrics."""
    labels = torch.from_numpy(np.concatenate([label.ravel() for _, label in images]).astype(np.int64))
    logits = torch.from_numpy(np.concatenate([logits.reshape(-1, CLASSES) for logits, _ in images]))
    predictions = logits.argmax(-1)
    options = {"num_classes": CLASSES, "ignore_index": 255, "average": None}
    values = {
        "iou": reference.multiclass_jaccard_index(predictions, labels, **options),
        "precision": reference.multiclass_precision(predictions, labels, **options),
        "recall": reference.multiclass_recall(predictions, labels, **options),
        "f1": reference.multiclass_f1_score(predictions, labels, **options),
        "pixel_accuracy": reference.multiclass_accuracy(predictions, labels, **options | {"average": "micro"}),
        "frequency_weighted_iou": reference.multiclass_jaccard_index(predictions, labels, **options | {"average": "weighted"}),
        "ece": _ce_compute(*confidences_and_hits(logits, labels), 15),
        "loss": torch.nn.functional.cross_entropy(logits.double(), labels, ignore_index=255),
        "image_miou": np.mean([compute_mean_iou(*image) for image in images]),
    }
    boundaries = sum(count_boundaries(*image, mask_to_boundary) for image in images)
    values["boundary_iou"] = boundaries[2] / (boundaries[0] + boundaries[1] - boundaries[2])
    return {name: np.asarray(value) for name, value in values.items()}


def confidences_and_hits(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each labelled pixel's confidence in float64, and whether it is predicted correctly."""
    confidences, predictions = logits.double().softmax(-1)[labels != 255].max(-1)
    return confidences, predictions == labels[labels != 255]


def compute_mean_iou(logits: np.ndarray, label: np.ndarray) -> float:
    """Return an image's mean IoU from torchmetrics, which cannot ignore pixels, but a background class: here class 0."""
    label = torch.from_numpy(label.astype(np.int64))[None]
    prediction = torch.from_numpy(logits.argmax(-1))[None]
    classes = [torch.where(label == 255, 0, x + 1) for x in (prediction, label)]
    return MeanIoU(CLASSES + 1, include_background=False, input_format="index")(*classes).item()


def count_boundaries(logits: np.ndarray, label: np.ndarray, mask_to_boundary) -> np.ndarray:
    """Count each class's boundary pixels in the label, in the prediction and in both [3, classes], by the authors' function."""
    rows = []
    for k in range(CLASSES):
        masks = [(x == k) & (label != 255) for x in (label, logits.argmax(-1))]
        truth, guess = (mask_to_boundary(mask.astype(np.uint8)) > 0 for mask in masks)
        rows.append([truth.sum(), guess.sum(), (truth & guess).sum()])
    return np.array(rows).T


def count_different_boundary_pixels(label: np.ndarray, mask_to_boundary) -> int:
    """Return the number of pixels that are on a boundary for us but not for the authors' function, or the reverse."""
    radius = boundary_radius(*label.shape)
    ours = np.asarray(find_boundaries(jnp.asarray(label[None]), jnp.array([radius], jnp.int32), radius))[0]
    theirs = np.any([mask_to_boundary((label == k).astype(np.uint8)) > 0 for k in range(CLASSES)], axis=0)
    return int((ours != theirs).sum())


def main() -> None:
    """Print the largest difference for each metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boundary-iou", type=pathlib.Path, required=True)
    mask_to_boundary = load_mask_to_boundary(parser.parse_args().boundary_iou)
    images = [make_image(size, seed) for seed, size in enumerate(SIZES)]
    totals = empty_totals(CLASSES)
    for logits, label in images:
        totals = add_totals(totals, count(logits[None], label[None]))
    for name, expected in compute_references(images, mask_to_boundary).items():
        ours = ({**CLASS_METRICS, **OVERALL_METRICS})[name].compute(totals)
        print(f"{name:24} {np.nanmean(ours):.6f}  largest difference {np.abs(ours - expected).max():.1e}")
    different = [count_different_boundary_pixels(label, mask_to_boundary) for _, label in images]
    print(f"boundary pixels that differ, of {sum(label.size for _, label in images)}: {sum(different)}")


if __name__ == "__main__":
    main()
