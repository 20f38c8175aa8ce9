"""Compare our cross-entropy and its gradient with mmsegmentation and PyTorch.

Usage: python tests/parity/losses.py

The reference is mmsegmentation's CrossEntropyLoss, with pixel weights from its OHEMPixelSampler. mmsegmentation has no label
smoothing, so torch.nn.CrossEntropyLoss is the reference for that. The script prints the relative errors in the loss and in its
gradient with respect to the logits, and the number of pixels kept by only one of the two samplers. Everything is computed in
float32, so the errors include both implementations' rounding.
"""

import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import references
import torch

from deeplab_jax.config import LossConfig
from deeplab_jax.losses import cross_entropy

CLASSES, SHAPE = 19, (4, 128, 256)
WEIGHTS = tuple(0.8 + 0.4 * (7 * c % CLASSES) / CLASSES for c in range(CLASSES))
MINED = {"ohem_threshold": 0.7, "ohem_min_kept": 1000}
# This threshold keeps fewer than `ohem_min_kept` pixels, so the order statistic sets the limit.
MINED_BY_COUNT = {"ohem_threshold": 0.05, "ohem_min_kept": 10_000}


def make_logits_and_labels(ignored_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return random logits that favour the correct classes, and random labels with the given share of ignored pixels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SHAPE)
    logits = rng.normal(size=(*SHAPE, CLASSES)) * 2 + 3 * (labels[..., None] == np.arange(CLASSES))
    return logits.astype(np.float32), np.where(rng.random(SHAPE) < ignored_share, 255, labels).astype(np.uint8)


@jax.jit(static_argnames="settings")
def compute_ours(logits: jax.Array, labels: jax.Array, settings: tuple) -> tuple[jax.Array, jax.Array]:
    """Return our loss and its gradient with respect to the logits."""
    config = LossConfig(**dict(settings))

    def loss(logits: jax.Array) -> jax.Array:
        mean = cross_entropy(logits, labels, jnp.ones(labels.shape, bool), config)
        return mean.total / mean.count

    return jax.value_and_grad(loss)(logits)


def find_kept_pixels(logits: np.ndarray, labels: np.ndarray, settings: dict) -> np.ndarray:
    """Return a mask of the pixels kept by our loss, which are the ones with a nonzero gradient."""
    _, gradient = compute_ours(logits, labels, tuple(settings.items()))
    return np.abs(gradient).max(-1) > 0


def compute_pixel_weights(logits: torch.Tensor, labels: torch.Tensor, settings: dict) -> torch.Tensor | None:
    """Return the pixel weights from mmsegmentation's sampler, or None without hard example mining."""
    from mmseg.structures.sampler import OHEMPixelSampler

    if not settings.get("ohem_threshold"):
        return None
    context = types.SimpleNamespace(ignore_index=255)
    sampler = OHEMPixelSampler(context, settings["ohem_threshold"], settings["ohem_min_kept"])
    return sampler.sample(logits, labels[:, None])


def compute_reference(logits: np.ndarray, labels: np.ndarray, settings: dict) -> tuple[float, np.ndarray, np.ndarray | None]:
    """Return the reference loss, its gradient and the sampler's pixel weights.

    The reference is mmsegmentation, or PyTorch for label smoothing.
    """
    from mmseg.models.losses import CrossEntropyLoss

    x = torch.from_numpy(logits).permute(0, 3, 1, 2).contiguous().requires_grad_()
    y = torch.from_numpy(labels.astype(np.int64))
    weights, smoothing = settings.get("class_weights"), settings.get("label_smoothing", 0.0)
    pixel_weights = compute_pixel_weights(x, y, settings)
    if smoothing:
        weights = None if weights is None else torch.tensor(weights)
        loss = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing, ignore_index=255)(x, y)
    else:
        module = CrossEntropyLoss(class_weight=weights, avg_non_ignore=settings.get("normalizer") != "all")
        loss = module(x, y, weight=pixel_weights, ignore_index=255)
        if pixel_weights is not None and settings.get("normalizer") != "all":
            # mmsegmentation divides by the total weight of all valid pixels, whereas our loss divides by that of the hard
            # pixels.
            class_weights = torch.ones(CLASSES) if weights is None else torch.tensor(weights)
            class_weights = torch.where(y == 255, 0.0, class_weights[torch.where(y == 255, 0, y)])
            loss = loss * class_weights.sum() / (class_weights * pixel_weights).sum()
    loss.backward()
    return loss.item(), x.grad.permute(0, 2, 3, 1).numpy(), None if pixel_weights is None else pixel_weights.numpy()


def compare(name: str, settings: dict, ignored_share: float = 0.1) -> float:
    """Print the errors for one loss configuration, and return the largest one."""
    logits, labels = make_logits_and_labels(ignored_share)
    try:
        loss, gradient, pixel_weights = compute_reference(logits, labels, settings)
    except IndexError as error:
        print(f"{name:58} skipped, because mmsegmentation raises an IndexError: {error}")
        return 0.0
    our_loss, our_gradient = compute_ours(logits, labels, tuple(settings.items()))
    errors = abs(our_loss / loss - 1), np.linalg.norm(our_gradient - gradient) / np.linalg.norm(gradient)
    line = f"{name:58} loss {loss:.6f}, loss error {errors[0]:.1e}, gradient error {errors[1]:.1e}"
    if pixel_weights is not None:
        differences = np.sum(find_kept_pixels(logits, labels, settings) != (pixel_weights > 0))
        line += f"; {int(pixel_weights.sum())} of {np.sum(labels != 255)} pixels kept, {differences} kept by only one sampler"
    print(line)
    return max(errors)


if __name__ == "__main__":
    references.import_mmseg()
    warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
    weighted, smoothed, over_all = {"class_weights": WEIGHTS}, {"label_smoothing": 0.1}, {"normalizer": "all"}
    results = [
        compare("plain", {}),
        compare("normalizer all", over_all),
        compare("smoothed (torch)", smoothed),
        compare("weighted and smoothed (torch)", weighted | smoothed),
        compare("weighted, no ignored pixels", weighted, ignored_share=0),
        compare("weighted, normalizer all, no ignored pixels", weighted | over_all, ignored_share=0),
        compare("weighted", weighted),
        compare("weighted, normalizer all", weighted | over_all),
        compare("OHEM", MINED),
        compare("OHEM, normalizer all", MINED | over_all),
        compare("OHEM by count", MINED_BY_COUNT),
        compare("OHEM by count, normalizer all", MINED_BY_COUNT | over_all),
        compare(
            "OHEM by count, weighted, normalizer all, no ignored pixels", MINED_BY_COUNT | weighted | over_all, ignored_share=0
        ),
        compare("OHEM, min_kept above the number of pixels", {"ohem_threshold": 0.05, "ohem_min_kept": 10**6}),
    ]
    sys.exit(0 if max(results) < 1e-5 else 1)
