"""Compare every loss and its gradient with the reference implementations.

Usage: python tests/parity/losses.py

The references, computed in float64, are mmsegmentation, PyTorch, segmentation_models.pytorch, PaddleSeg and NVIDIA's
semantic-segmentation. The script prints both losses, and the relative errors of the loss and of its gradient with respect to
the logits, with ours in float64 and in float32. With hard example mining, it also prints the number of pixels that only one
of the two samplers keeps. It fails if an error in float64 is above 1e-6.

The script needs this package, checkouts of PaddlePaddle/PaddleSeg and of NVIDIA/semantic-segmentation (its branch main) on
PYTHONPATH, and the packages that references.py and paddle_live.py list.
"""

import sys
import unittest.mock
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import loss_references
import numpy as np
import paddle
import torch

from deeplab_jax.config import LossConfig
from deeplab_jax.losses import LOSSES

CLASSES, SHAPE = 19, (2, 128, 256)
WEIGHTS = tuple(0.8 + 0.4 * (7 * c % CLASSES) / CLASSES for c in range(CLASSES))
MAX_ERROR = 1e-6

WEIGHTED, SMOOTHED, OVER_ALL = {"class_weights": WEIGHTS}, {"label_smoothing": 0.1}, {"normalizer": "all"}
MINED = {"ohem_threshold": 0.7, "ohem_min_kept": 1000}
# This threshold keeps fewer than `ohem_min_kept` pixels, so the order statistic sets the limit.
MINED_BY_COUNT = {"ohem_threshold": 0.05, "ohem_min_kept": 10_000}


class Case(NamedTuple):
    """A loss with its settings, its reference and the share of ignored pixels."""

    loss: str
    reference: Callable[..., Any]
    settings: dict[str, Any]
    ignored: float = 0.1


MMSEG, TORCH, NVIDIA = (getattr(loss_references, f"cross_entropy_{name}") for name in ("mmseg", "torch", "nvidia"))
CASES = {
    "mmseg": Case("cross_entropy", MMSEG, {}),
    "mmseg, normalizer all": Case("cross_entropy", MMSEG, OVER_ALL),
    "torch, smoothed": Case("cross_entropy", TORCH, SMOOTHED),
    "torch, weighted, smoothed": Case("cross_entropy", TORCH, WEIGHTED | SMOOTHED),
    "mmseg, weighted": Case("cross_entropy", MMSEG, WEIGHTED, ignored=0),  # it has no weight for the label 255
    "mmseg, weighted, normalizer all": Case("cross_entropy", MMSEG, WEIGHTED | OVER_ALL, ignored=0),
    "mmseg, OHEM": Case("cross_entropy", MMSEG, MINED),
    "mmseg, OHEM, normalizer all": Case("cross_entropy", MMSEG, MINED | OVER_ALL),
    "mmseg, OHEM by count": Case("cross_entropy", MMSEG, MINED_BY_COUNT),
    "mmseg, OHEM by count, normalizer all": Case("cross_entropy", MMSEG, MINED_BY_COUNT | OVER_ALL),
    "mmseg, OHEM by count, weighted": Case("cross_entropy", MMSEG, MINED_BY_COUNT | WEIGHTED | OVER_ALL, ignored=0),
    "mmseg, OHEM, min_kept above pixels": Case("cross_entropy", MMSEG, {"ohem_threshold": 0.05, "ohem_min_kept": 10**6}),
    "NVIDIA, relaxed": Case("cross_entropy", NVIDIA, {"relax_border": 1}),
    "NVIDIA, relaxed, weighted": Case("cross_entropy", NVIDIA, {"relax_border": 1} | WEIGHTED),
    "NVIDIA, relaxed by 3": Case("cross_entropy", NVIDIA, {"relax_border": 3}),
    "smp": Case("dice", loss_references.dice_smp, {}),
    "PaddleSeg": Case("focal", loss_references.focal_paddleseg, {"focal_gamma": 2.0}),
    "PaddleSeg, gamma 0.5": Case("focal", loss_references.focal_paddleseg, {"focal_gamma": 0.5}),
    "smp, per image": Case("lovasz", loss_references.lovasz_smp, {}),
    "PaddleSeg's RMILoss": Case("rmi", loss_references.rmi_paddleseg, {}),
}


def make_logits_and_labels(ignored: float) -> tuple[np.ndarray, np.ndarray]:
    """Return random logits that favour the correct classes, and blocks of labels with the given share of ignored pixels."""
    rng = np.random.default_rng(0)
    n, h, w = SHAPE
    labels = rng.integers(0, CLASSES, (n, h // 8, w // 8)).repeat(8, 1).repeat(8, 2)
    logits = rng.normal(size=(*SHAPE, CLASSES)) * 2 + 3 * (labels[..., None] == np.arange(CLASSES))
    # Values that float32 can represent, so that both precisions have the same maxima and hard pixels.
    return logits.astype(np.float32), np.where(rng.random(SHAPE) < ignored, 255, labels).astype(np.uint8)


def compute_ours(logits: np.ndarray, labels: np.ndarray, case: Case) -> tuple[float, np.ndarray]:
    """Return our loss and its gradient with respect to the logits, in the precision of the logits."""

    def loss(logits: jax.Array) -> jax.Array:
        mean = LOSSES[case.loss](logits, jnp.asarray(labels), jnp.ones(labels.shape, bool), LossConfig(**case.settings))
        return mean.total / mean.count

    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    return float(value), np.asarray(gradient)


def compute_reference(logits: np.ndarray, labels: np.ndarray, case: Case) -> tuple[float, np.ndarray]:
    """Return the reference's loss and its gradient with respect to the logits, in float64."""
    arrays = np.moveaxis(logits, -1, 1).astype(np.float64), labels.astype(np.int64)
    if case.reference.__name__.endswith("_paddleseg"):
        x, y = (paddle.to_tensor(np.ascontiguousarray(array)) for array in arrays)
        x.stop_gradient = False
    else:
        x, y = (torch.from_numpy(array) for array in arrays)
        x.requires_grad_()
    # Some references convert labels to float32, which cannot be multiplied by float64.
    with unittest.mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        loss = case.reference(x, y, case.settings)
        loss.backward()
    return float(loss), np.moveaxis(x.grad.numpy(), 1, -1)


def count_differing_pixels(logits: np.ndarray, labels: np.ndarray, gradient: np.ndarray, case: Case) -> int:
    """Return the number of pixels kept by only one sampler. Our loss keeps those with a nonzero gradient."""
    x = torch.from_numpy(np.moveaxis(logits, -1, 1).astype(np.float64))
    kept = loss_references.sample_hard_pixels(x, torch.from_numpy(labels.astype(np.int64)), case.settings)
    return int(np.sum((np.abs(gradient).max(-1) > 0) != (kept.numpy() > 0)))


def compare(name: str, case: Case) -> float:
    """Print a row of the table, and return the largest error in float64."""
    logits, labels = make_logits_and_labels(case.ignored)
    expected, expected_gradient = compute_reference(logits, labels, case)
    errors = []
    for dtype in (np.float64, np.float32):
        loss, gradient = compute_ours(logits.astype(dtype), labels, case)
        distance = np.linalg.norm(gradient - expected_gradient) / np.linalg.norm(expected_gradient)
        errors.append((loss, abs(loss / expected - 1), distance))
    double, single = errors
    line = f"{case.loss:13}  {name:36}  {double[0]:11.7f} {expected:11.7f}"
    line += f"  {double[1]:8.1e} {double[2]:8.1e}  {single[1]:8.1e} {single[2]:8.1e}"
    if case.settings.get("ohem_threshold"):
        line += f"  {count_differing_pixels(logits, labels, gradient, case)} pixels differ"
    print(line)
    return max(double[1:])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # from the references
    print(f"{'loss':13}  {'reference':36}  {'ours':>11} {'reference':>11}  {'loss and gradient':17}  {'in float32':17}")
    largest = max(compare(name, case) for name, case in CASES.items())
    print(f"Largest error in float64: {largest:.1e}")
    sys.exit(largest > MAX_ERROR)
