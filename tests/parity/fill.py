"""Generate weights and images from names and a fixed seed, with the same values on every machine.

This module does not need PyTorch.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

SEED = 0
# The starts of the names of tensors that networks of segmentation_models.pytorch and transformers have but do not compute with.
UNUSED = ("encoder.conv_head.", "encoder.bn2.", "mobilenet_v2.conv_1x1.")


def uniform(key: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Return float32 numbers drawn uniformly between `low` and `high`, with a seed derived from `key`.

    They are computed from Philox's raw bits, which are the same in all NumPy versions, whereas NumPy's distributions can
    change.
    """
    bits = np.random.Philox(key=zlib.crc32(f"{SEED} {key}".encode())).random_raw(math.prod(shape))
    return (low + (high - low) * ((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24))).reshape(shape)


def fill(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return random values for a state dict of PyTorch or PaddlePaddle with the given shapes.

    Running statistics and scales are also random, because their initial values of 0 and 1 would hide errors in how they are
    used.
    """
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 4:
        bound = math.sqrt(6 / math.prod(shape[1:]))
        return uniform(name, shape, -bound, bound)
    if name.endswith(("running_var", "_variance")):
        return uniform(name, shape, 0.5, 1.5)
    if name.endswith(".weight"):
        return uniform(name, shape, 0.3, 0.9)
    return uniform(name, shape, -0.3, 0.3)


def image(height: int, width: int, rows: int = 1) -> np.ndarray:
    """Return random images as uint8 [rows, height, width, 3], where `rows` is the number of images."""
    return uniform(f"image {height} {width}", (rows, height, width, 3), 0, 256).astype(np.uint8)
