"""Write a data set of synthetic photos with the same resolution as Cityscapes images.

Their PNG files are as large (2.2 MB) and as slow to decode as those of real photos.
"""

import pathlib

import numpy as np
from PIL import Image

SIZE = (1024, 2048)
CLASSES = 19


def draw_photo(rng: np.random.Generator) -> np.ndarray:
    """Return a photo with structure at every scale, plus sensor noise that makes the PNG file large.

    Returns:
      uint8 [1024, 2048, 3].
    """
    height, width = SIZE
    picture = np.full((height, width, 3), 110, np.float32)
    for octave in range(2, 9):
        coarse = rng.normal(size=(2 ** (octave - 1) + 1, 2**octave + 1, 3)).astype(np.float32)
        fine = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BILINEAR) for c in range(3)]
        picture += np.stack([np.asarray(channel) for channel in fine], -1) * 60 / 2 ** (octave * 0.6)
    return np.clip(picture + rng.normal(size=(height, width, 1)) * 1.2, 0, 255).astype(np.uint8)


def draw_label(rng: np.random.Generator) -> np.ndarray:
    """Return a uint8 label map [1024, 2048] with smooth regions of 19 classes."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 24)).astype(np.uint8))
    fine = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC))
    return (fine.astype(int) * CLASSES // 256).astype(np.uint8)


def write(root: pathlib.Path, count: int) -> None:
    """Write `count` pairs of an image and a label to input/, target/ and list/, unless they already exist."""
    listing = root / "list" / "train.lst"
    names = [f"input/{i:04d}.png\ttarget/{i:04d}.png" for i in range(count)]
    if listing.exists() and listing.read_text().splitlines() == names:
        return
    for folder in ("input", "target", "list"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        Image.fromarray(draw_photo(rng)).save(root / f"input/{i:04d}.png")
        Image.fromarray(draw_label(rng)).save(root / f"target/{i:04d}.png")
    listing.write_text("".join(f"{name}\n" for name in names))
