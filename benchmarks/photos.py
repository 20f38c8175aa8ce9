"""A set of synthetic photos of Cityscapes' size, whose PNG files are as large and as slow to decode as real ones (2.2 MB)."""

import pathlib

import numpy as np
from PIL import Image

SIZE = (1024, 2048)
CLASSES = 19


def photo(rng: np.random.Generator) -> np.ndarray:
    """uint8 [1024, 2048, 3]: structure at every scale, and a sensor's noise, which is what makes the file large."""
    height, width = SIZE
    picture = np.full((height, width, 3), 110, np.float32)
    for octave in range(2, 9):
        coarse = rng.normal(size=(2 ** (octave - 1) + 1, 2**octave + 1, 3)).astype(np.float32)
        fine = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BILINEAR) for c in range(3)]
        picture += np.stack([np.asarray(channel) for channel in fine], -1) * 60 / 2 ** (octave * 0.6)
    return np.clip(picture + rng.normal(size=(height, width, 1)) * 1.2, 0, 255).astype(np.uint8)


def label(rng: np.random.Generator) -> np.ndarray:
    """uint8 [1024, 2048]: smooth regions of 19 classes."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 24)).astype(np.uint8))
    fine = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC))
    return (fine.astype(int) * CLASSES // 256).astype(np.uint8)


def write(root: pathlib.Path, count: int) -> None:
    """A set of `count` pairs in the layout input/ target/ list/, unless it is there."""
    listing = root / "list" / "train.lst"
    names = [f"input/{i:04d}.png\ttarget/{i:04d}.png" for i in range(count)]
    if listing.exists() and listing.read_text().splitlines() == names:
        return
    for folder in ("input", "target", "list"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        Image.fromarray(photo(rng)).save(root / f"input/{i:04d}.png")
        Image.fromarray(label(rng)).save(root / f"target/{i:04d}.png")
    listing.write_text("".join(f"{name}\n" for name in names))
