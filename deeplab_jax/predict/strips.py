"""Images too large for one program: windows go through the network one by one, and only a strip of logits is held."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

from deeplab_jax.evaluation.protocols import default_stride, window_origins

Logits = Callable[[UInt8[np.ndarray, "n h w 3"]], Float[np.ndarray, "n h w k"]]


def strips(
    logits: Logits, image: UInt8[np.ndarray, "h w 3"], window: tuple[int, int], batch_size: int
) -> Iterator[tuple[int, Float[np.ndarray, "rows w k"]]]:
    """Mean logits of the windows that see a pixel, as `protocols.slide` gives them, from the top down.

    Args:
      logits: of batches of `batch_size` windows.
      image: of any size.
      window: height and width; the stride is `protocols.default_stride`.
      batch_size: windows at a time.

    Yields:
      The first row of a strip, and the strip.
    """
    height, width = image.shape[:2]
    stride, window = default_stride(window), (min(window[0], height), min(window[1], width))
    rows, columns = (window_origins(*lengths) for lengths in zip((height, width), window, stride, strict=True))
    total, seen = None, np.zeros((window[0], width, 1), np.float32)
    for top, following in zip(rows, [*rows[1:], height], strict=True):
        for first in range(0, len(columns), batch_size):
            lefts = columns[first : first + batch_size]
            crops = [image[top : top + window[0], left : left + window[1]] for left in lefts]
            found = logits(np.stack(crops + crops[-1:] * (batch_size - len(crops))))
            if total is None:
                total = np.zeros((window[0], width, found.shape[3]), np.float32)
            for left, values in zip(lefts, found, strict=False):
                total[:, left : left + window[1]] += values
                seen[:, left : left + window[1]] += 1
        done = following - top  # rows that no window below sees
        assert total is not None
        yield top, total[:done] / seen[:done]
        for array in (total, seen):
            array[: window[0] - done] = array[done:]
            array[window[0] - done :] = 0
