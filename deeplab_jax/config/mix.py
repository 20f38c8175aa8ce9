"""How many samples of a training batch come from each of the joined splits."""

import math
from fractions import Fraction

from deeplab_jax.config.data import DataConfig


def count_by_split(data: DataConfig) -> tuple[int, ...]:
    """Return how many samples of each batch come from each split in `data.train_split`.

    Without `data.mix`, the result is `(data.batch_size,)`, because joined splits are then one list. The config must be valid.
    """
    return tuple(int(data.batch_size * share) for share in _shares(data))


def smallest_batch(data: DataConfig) -> int:
    """Return the smallest batch size that `data.mix` divides into whole samples. All others are its multiples."""
    return math.lcm(*(share.denominator for share in _shares(data)))


def _shares(data: DataConfig) -> list[Fraction]:
    weights = [Fraction(str(weight)) for weight in data.mix or (1,)]  # the decimal number that the user wrote
    return [weight / sum(weights) for weight in weights]
