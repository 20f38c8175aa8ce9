"""Convert what a recipe computed to the plain values that configs and label sets consist of."""

from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """Return a value with its lists, ranges and NumPy arrays as tuples, and its NumPy numbers as Python's.

    Only these can be compared, hashed and stored as JSON.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(to_plain, value)) if isinstance(value, list | tuple | range) else value
