"""Find the boundaries of classes, for the Boundary IoU of Cheng et al. 2021 (arXiv:2103.16562).

A pixel lies on its class's boundary if a pixel of another class, or the outside of the image, is at most `radius` rows and
columns away. The authors' `mask_to_boundary` finds the same pixels by eroding each class's mask `radius` times with a 3x3
square. Here, the lowest and the highest train id in the window around a pixel are enough: one of them is not the pixel's own if
it lies on a boundary. This takes the same time for any number of classes.
"""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt8

from deeplab_jax.labels import IGNORE

RADIUS_RATIO = 0.02  # the authors' `dilation_ratio`: the radius as a share of the image diagonal


def find_boundaries(classes: UInt8[Array, "n h w"], radius: Int[Array, " n"], largest: int) -> Bool[Array, "n h w"]:
    """Return a mask of the pixels on their class's boundary.

    Args:
      classes: Train ids. Pixels of value 255 belong to no class, like the outside of the array. They have no boundary, but
        their neighbours do.
      radius: The radius for each image, in pixels.
      largest: An upper bound of `radius`.
    """
    lowest, highest = (_combine_windows(classes, radius, largest, combine) for combine in (jnp.minimum, jnp.maximum))
    return (classes != IGNORE) & ((lowest != classes) | (highest != classes))


def boundary_radius(height: int, width: int) -> int:
    """Return the radius for an image size: 2 % of the diagonal, rounded as in the authors' code, but at least 1."""
    return max(round(RADIUS_RATIO * math.sqrt(height**2 + width**2)), 1)


def boundary_radius_of_each(sizes: Int[Array, "n 2"], largest: int) -> Int[Array, " n"]:
    """Return `boundary_radius` for heights and widths on the device, which is at most `largest`.

    The squared diagonal is compared with those at which the radius grows, because float32 could round to another radius.
    """
    squared = jnp.sum(sizes.astype(jnp.int32) ** 2, axis=1, dtype=jnp.int32)
    return jnp.maximum(jnp.searchsorted(jnp.asarray(_list_growths(largest)), squared, side="right"), 1).astype(jnp.int32)


@functools.cache
def _list_growths(largest: int) -> Int[np.ndarray, " largest"]:
    """Return the smallest squared diagonal at which the radius before the lower bound of 1 is 1, 2 and so on."""
    halves = [round((radius - 0.5) / RADIUS_RATIO) ** 2 for radius in range(1, largest + 1)]  # a radius of 1/2, 3/2, 5/2 ...
    rounds_up = [round(RADIUS_RATIO * math.sqrt(squared)) == radius for radius, squared in enumerate(halves, start=1)]
    return np.array([squared + (not up) for squared, up in zip(halves, rounds_up, strict=True)], np.int32)


def _combine_windows(
    x: UInt8[Array, "n h w"], radius: Int[Array, " n"], largest: int, combine: Callable[[Array, Array], Array]
) -> UInt8[Array, "n h w"]:
    """Return the minimum or maximum over a square window around each pixel. Pixels outside the array are 255."""
    steps, is_used = _plan_steps(largest)
    used = jnp.asarray(is_used)[radius]
    for axis in (1, 2):
        for i, step in enumerate(steps):
            wider = combine(x, combine(_shift(x, step, axis), _shift(x, -step, axis)))
            # Without the barrier, XLA fuses the steps and computes each one anew for every shift of the next.
            x = lax.optimization_barrier(jnp.where(used[:, i, None, None], wider, x))
    return x


@functools.cache
def _plan_steps(largest: int) -> tuple[list[int], Bool[np.ndarray, "radii steps"]]:
    """Return steps, and which of them widen a window from radius 0 to each radius up to `largest`.

    A step of s combines three windows of radius r whose centres are s apart. They make up a window of radius r + s if s is at
    most 2 r + 1. The steps are 1, 1, 2, 2, 4, 4 and so on. A radius uses each power of two once or twice, up to the highest
    that it uses (bijective base-2 numeration).
    """
    powers = [1 << i for i in range((largest + 1).bit_length() - 1)]
    steps = [power for power in powers for _ in range(2)]
    is_used = np.zeros((largest + 1, len(steps)), bool)
    for radius in range(1, largest + 1):
        rest = radius
        for i in range(len(powers)):
            if rest:
                digit = 2 - rest % 2
                is_used[radius, 2 * i : 2 * i + digit] = True
                rest = (rest - digit) // 2
    return steps, is_used


def _shift(x: UInt8[Array, "n h w"], step: int, axis: int) -> UInt8[Array, "n h w"]:
    """Return the pixels `step` further along an axis, and 255 where they are outside the array."""
    before, after = max(-step, 0), max(step, 0)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (before, after)
    padded = jnp.pad(x, padding, constant_values=IGNORE)
    return padded[:, after : after + x.shape[1]] if axis == 1 else padded[:, :, after : after + x.shape[2]]
