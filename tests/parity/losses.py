"""Our loss and its gradient beside mmsegmentation's and PyTorch's: python tests/parity/losses.py

Loss and gradient by the logits of mmsegmentation's CrossEntropyLoss, weighted pixel by pixel by its OHEMPixelSampler, and of
torch.nn.CrossEntropyLoss for class weights and smoothing. Prints the relative errors, and how many pixels one sampler keeps and
the other does not. All in float32, with mmsegmentation as it is, so that the errors are those of two roundings.
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
# Where the threshold keeps fewer than that, so that the order statistic decides.
SEARCHED = {"ohem_threshold": 0.05, "ohem_min_kept": 10_000}


def logits_and_labels(ignored: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits that favour the right class, and labels with a share of ignored pixels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, SHAPE)
    logits = rng.normal(size=(*SHAPE, CLASSES)) * 2 + 3 * (labels[..., None] == np.arange(CLASSES))
    return logits.astype(np.float32), np.where(rng.random(SHAPE) < ignored, 255, labels).astype(np.uint8)


@jax.jit(static_argnames="settings")
def ours(logits: jax.Array, labels: jax.Array, settings: tuple) -> tuple[jax.Array, jax.Array]:
    config = LossConfig(**dict(settings))

    def loss(logits: jax.Array) -> jax.Array:
        mean = cross_entropy(logits, labels, jnp.ones(labels.shape, bool), config)
        return mean.total / mean.count

    return jax.value_and_grad(loss)(logits)


def kept(logits: np.ndarray, labels: np.ndarray, settings: dict) -> np.ndarray:
    """Our hard pixels: those whose logits have a gradient."""
    _, gradient = ours(logits, labels, tuple(settings.items()))
    return np.abs(gradient).max(-1) > 0


def sampler_weight(logits: torch.Tensor, labels: torch.Tensor, settings: dict) -> torch.Tensor | None:
    """What mmsegmentation's head multiplies the losses of the pixels by."""
    from mmseg.structures.sampler import OHEMPixelSampler

    if not settings.get("ohem_threshold"):
        return None
    context = types.SimpleNamespace(ignore_index=255)
    sampler = OHEMPixelSampler(context, settings["ohem_threshold"], settings["ohem_min_kept"])
    return sampler.sample(logits, labels[:, None])


def theirs(logits: np.ndarray, labels: np.ndarray, settings: dict) -> tuple[float, np.ndarray, np.ndarray | None]:
    """(loss, gradient, weight of the sampler); mmsegmentation's but for smoothing, which it has not."""
    from mmseg.models.losses import CrossEntropyLoss

    x = torch.from_numpy(logits).permute(0, 3, 1, 2).contiguous().requires_grad_()
    y = torch.from_numpy(labels.astype(np.int64))
    weights, smoothing = settings.get("class_weights"), settings.get("label_smoothing", 0.0)
    weight = sampler_weight(x, y, settings)
    if smoothing:
        weights = None if weights is None else torch.tensor(weights)
        loss = torch.nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing, ignore_index=255)(x, y)
    else:
        module = CrossEntropyLoss(class_weight=weights, avg_non_ignore=settings.get("normalizer") != "all")
        loss = module(x, y, weight=weight, ignore_index=255)
        if weight is not None and settings.get("normalizer") != "all":
            # mmsegmentation divides by all valid pixels there, ours by the hard ones.
            of_pixel = torch.ones(CLASSES) if weights is None else torch.tensor(weights)
            of_pixel = torch.where(y == 255, 0.0, of_pixel[torch.where(y == 255, 0, y)])
            loss = loss * of_pixel.sum() / (of_pixel * weight).sum()
    loss.backward()
    return loss.item(), x.grad.permute(0, 2, 3, 1).numpy(), None if weight is None else weight.numpy()


def compare(name: str, settings: dict, ignored: float = 0.1) -> float:
    logits, labels = logits_and_labels(ignored)
    try:
        loss, gradient, weight = theirs(logits, labels, settings)
    except IndexError as error:
        print(f"{name:58} mmsegmentation: IndexError: {error}")
        return 0.0
    our_loss, our_gradient = ours(logits, labels, tuple(settings.items()))
    errors = abs(our_loss / loss - 1), np.linalg.norm(our_gradient - gradient) / np.linalg.norm(gradient)
    line = f"{name:58} loss {loss:.6f}, error {errors[0]:.1e}, of the gradient {errors[1]:.1e}"
    if weight is not None:
        other = np.sum(kept(logits, labels, settings) != (weight > 0))
        line += f"; {int(weight.sum())} of {np.sum(labels != 255)} kept, {other} not by both"
    print(line)
    return max(errors)


if __name__ == "__main__":
    references.import_mmseg()
    warnings.filterwarnings("ignore", message="Default ``avg_non_ignore``")
    weighted, smoothed, over_all = {"class_weights": WEIGHTS}, {"label_smoothing": 0.1}, {"normalizer": "all"}
    results = [
        compare("plain", {}),
        compare("all", over_all),
        compare("smoothed (torch)", smoothed),
        compare("weighted and smoothed (torch)", weighted | smoothed),
        compare("weighted, none ignored", weighted, ignored=0),
        compare("weighted, all, none ignored", weighted | over_all, ignored=0),
        compare("weighted", weighted),
        compare("weighted, all", weighted | over_all),
        compare("mined", MINED),
        compare("mined, all", MINED | over_all),
        compare("mined, searched", SEARCHED),
        compare("mined, searched, all", SEARCHED | over_all),
        compare("mined, searched, weighted, all, none ignored", SEARCHED | weighted | over_all, ignored=0),
        compare("mined, more to keep than there are", {"ohem_threshold": 0.05, "ohem_min_kept": 10**6}),
    ]
    sys.exit(0 if max(results) < 1e-5 else 1)
