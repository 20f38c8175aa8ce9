"""Compare two ways to sum the gradients of a bfloat16 network over devices: in bfloat16, as XLA does, and in float32.

python benchmarks/gradient_sum.py --checkpoint RUN --root ROOT

Each device has one image of ROOT's training split. The relative error of the sum is that of all parameters together, against
the same network in float32. The network predicts as in evaluation, so that each gradient depends on a single image.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.checkpoints.store import restore_model, stored_config
from deeplab_jax.config import Config
from deeplab_jax.data.find import find_split
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.losses import LOSSES
from deeplab_jax.models import DeepLabV3, normalize
from deeplab_jax.models.resize import resize_like


def make_gradient(config: Config, dtype: str, batch_stats: Any) -> Any:
    """Return a function that computes the gradient of one image's loss in `dtype`."""
    model = DeepLabV3(dataclasses.replace(config.model, dtype=dtype), config.labels.num_classes)

    def compute_loss(params: Any, image: jax.Array, label: jax.Array) -> jax.Array:
        images, labels = normalize(image[None], config.model.mean, config.model.std), label[None]
        outputs = model.apply({"params": params, "batch_stats": batch_stats}, images, False)
        logits = resize_like(outputs.logits, like=images, align_corners=config.model.align_corners)
        return LOSSES["cross_entropy"](logits, labels, jnp.ones(labels.shape, bool), config.loss).total / labels.size

    return jax.jit(jax.grad(compute_loss))


def flatten(tree: Any) -> np.ndarray:
    """Return all values of the tree's arrays in one float32 array."""
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])


def relative_error(x: np.ndarray, expected: np.ndarray) -> float:
    """Return the norm of the difference, divided by the norm of `expected`."""
    return float(np.linalg.norm(x.astype(np.float64) - expected) / np.linalg.norm(expected))


def main() -> None:
    """Print the errors for 1, 2, 4, ... devices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--devices", type=int, default=256, help="the largest number of devices")
    args = parser.parse_args()
    config, variables = stored_config(args.checkpoint), restore_model(args.checkpoint)
    data = dataclasses.replace(config.data, root=args.root, batch_size=1)
    batches = train_batches(
        find_split(data, "train"), config.labels, data, config.model.mean, seed=0, start_step=0, steps=args.devices
    )
    gradient = {dtype: make_gradient(config, dtype, variables["batch_stats"]) for dtype in ("float32", "bfloat16")}
    expected = in_float32 = in_bfloat16 = np.float32(0)
    print("devices, error of the sum in float32, in bfloat16, difference of the two sums")
    for number, batch in enumerate(batches, 1):
        exact, rounded = (
            flatten(compute(variables["params"], batch["image"][0], batch["label"][0])) for compute in gradient.values()
        )
        expected, in_float32 = expected + exact, in_float32 + rounded
        in_bfloat16 = (in_bfloat16 + rounded).astype(jnp.bfloat16).astype(np.float32)
        if number & (number - 1) == 0:
            errors = relative_error(in_float32, expected), relative_error(in_bfloat16, expected)
            print(number, *(f"{error:.2%}" for error in (*errors, relative_error(in_bfloat16, in_float32))), flush=True)


if __name__ == "__main__":
    main()
