"""Weights and images that follow from names and a seed alone: the same on every machine, with or without PyTorch."""

import math
import zlib
from collections.abc import Mapping

import numpy as np

SEED = 0


def uniform(key: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """float32. From Philox's raw bits, which NumPy keeps stable; its distributions may change from version to version."""
    bits = np.random.Philox(key=zlib.crc32(f"{SEED} {key}".encode())).random_raw(math.prod(shape))
    return (low + (high - low) * ((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24))).reshape(shape)


def fill(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A PyTorch state dict whose every tensor matters: no statistic is 0 or 1, no scale is 1."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 4:
        bound = math.sqrt(6 / math.prod(shape[1:]))
        return uniform(name, shape, -bound, bound)
    if name.endswith("running_var"):
        return uniform(name, shape, 0.5, 1.5)
    if name.endswith(".weight"):
        return uniform(name, shape, 0.3, 0.9)
    return uniform(name, shape, -0.3, 0.3)


def image(height: int, width: int, rows: int = 1) -> np.ndarray:
    """uint8 [rows, height, width, 3]."""
    return uniform(f"image {height} {width}", (rows, height, width, 3), 0, 256).astype(np.uint8)
