"""Compare the corruptions with imagecorruptions, the reference implementation for images of any size.

Usage: python tests/parity/corruptions.py IMAGE

Both draw the same random numbers: while the reference runs, NumPy's global functions are those of a generator. The script
prints the mean and the largest difference of the values, from 0 to 255, at severities 1 to 5. Rounding errors decide how whole
numbers are truncated, so differences of 1 are expected. The script fails if one is larger. For impulse noise, it prints the
shares of 0 and 255, ours first. Glass blur gets a small image, because the reference then runs without Numba. Frost is not
compared.

The script needs this package and imagecorruptions-imaug 1.1.5, which is imagecorruptions 1.1.2 for current versions of NumPy
and SciPy. It needs opencv-python, scikit-image and numba.
"""

import contextlib
import sys
import unittest.mock
from collections.abc import Iterator

import numpy as np
from imagecorruptions import corruptions as reference
from PIL import Image

from deeplab_jax.evaluation.corruptions import CORRUPTIONS, SEVERITIES

SMALL = (192, 144)
DRAWN = ("uniform", "normal", "poisson")


@contextlib.contextmanager
def drawing_from(rng: np.random.Generator) -> Iterator[None]:
    """Let the reference draw from a generator, in our order."""
    with contextlib.ExitStack() as stack:
        for name in DRAWN:
            stack.enter_context(unittest.mock.patch(f"numpy.random.{name}", getattr(rng, name)))
        yield


def glass_blur(image: Image.Image, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Run the reference's loop in Python. We draw the offsets of a whole round at once."""
    reach, rounds = ((1, 2), (2, 1), (2, 3), (3, 2), (4, 2))[severity - 1]
    shape = (image.height - 2 * reach, image.width - 2 * reach, 2)
    offsets = iter(np.concatenate([rng.integers(-reach, reach, shape).reshape(-1, 2) for _ in range(rounds)]))
    loop = reference._shuffle_pixels_njit_glass_blur.py_func
    with (
        unittest.mock.patch("numpy.random.randint", side_effect=offsets),
        unittest.mock.patch.object(reference, "_shuffle_pixels_njit_glass_blur", loop),
    ):
        return reference.glass_blur(image, severity, seed=0)


def impulse_noise(image: Image.Image, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Run the reference. It draws which values to replace and then by what, we draw both at once, so only shares compare."""
    return reference.impulse_noise(image, severity, seed=rng)


def compute_reference(image: Image.Image, name: str, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Return what the reference makes of an image."""
    if name in globals():
        return np.uint8(globals()[name](image, severity, rng))
    with drawing_from(rng):
        return np.uint8(getattr(reference, name)(image, severity))


def compare(path: str) -> int:
    """Print the table, and return the largest difference."""
    original, largest = Image.open(path).convert("RGB"), 0
    for name, corruption in CORRUPTIONS.items():
        if name == "frost":
            continue
        image = original.resize(SMALL) if name == "glass_blur" else original
        cells = []
        for severity in SEVERITIES:
            ours = corruption(np.asarray(image), severity, np.random.default_rng(0)).astype(int)
            theirs = compute_reference(image, name, severity, np.random.default_rng(0)).astype(int)
            if name == "impulse_noise":
                shares = [[np.mean(x == end) for end in (0, 255)] for x in (ours, theirs)]
                cells.append(" ".join(f"{a:.4f}/{b:.4f}" for a, b in zip(*shares, strict=True)))
                continue
            difference = np.abs(ours - theirs)
            largest = max(largest, int(difference.max()))
            cells.append(f"{difference.mean():.4f} {difference.max():3}")
        print(f"{name:18}", *cells, sep="  ")
    return largest


if __name__ == "__main__":
    sys.exit(compare(sys.argv[1]) > 1)
