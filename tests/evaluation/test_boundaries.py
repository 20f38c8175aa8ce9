import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.evaluation.boundaries import boundary_radius, boundary_radius_of_each, find_boundaries

jitted_find_boundaries = jax.jit(find_boundaries, static_argnums=2)


def erode(mask):
    """Erode a mask with a 3x3 square. Pixels outside the array are False."""
    padded = np.pad(mask, 1)
    windows = [padded[i : i + mask.shape[0], j : j + mask.shape[1]] for i in range(3) for j in range(3)]
    return np.logical_and.reduce(windows)


def naive_boundaries(classes, radius):
    """Return the union of the classes' boundaries, as in mask_to_boundary of the paper's authors."""
    boundary = np.zeros(classes.shape, bool)
    for k in set(np.unique(classes)) - {255}:
        mask = eroded = classes == k
        for _ in range(radius):
            eroded = erode(eroded)
        boundary |= mask & ~eroded
    return boundary


def test_a_square_has_a_boundary_of_the_radius():
    classes = np.zeros((1, 9, 11), np.uint8)
    classes[0, 2:7, 3:8] = 1
    boundary = np.asarray(find_boundaries(jnp.asarray(classes), jnp.array([1]), 1))[0]
    expected = np.ones((9, 11), bool)
    expected[3:6, 4:7] = False  # the inside of the square
    expected[1:8, 1] = expected[1:8, 9] = False  # the columns between the square and the edge
    np.testing.assert_array_equal(boundary, expected)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_boundaries_equal_the_iterated_erosion_of_each_class(seed, radius):
    rng = np.random.default_rng(seed)
    classes = np.where(rng.random((2, 24, 32)) < 0.01, rng.choice([1, 254, 255], (2, 24, 32)), 0).astype(np.uint8)
    radii = np.array([radius, rng.integers(1, radius + 1)], np.int32)
    boundaries = np.asarray(jitted_find_boundaries(classes, radii, 14))
    for i in range(2):
        np.testing.assert_array_equal(boundaries[i], naive_boundaries(classes[i], radii[i]))


# 50 pixels of diagonal are a radius of 1. At 25, 75 and 125 pixels, the authors' code rounds to even.
@pytest.mark.parametrize(
    ("size", "radius"), [((1, 1), 1), ((7, 24), 1), ((45, 60), 2), ((75, 100), 2), ((360, 480), 12), ((1024, 2048), 46)]
)
def test_the_radius_is_two_percent_of_the_diagonal(size, radius):
    assert boundary_radius(*size) == radius


def test_radii_on_the_device_equal_those_of_the_authors():
    """The sizes include all diagonals at which rounding could go either way: 25 pixels times an odd number."""
    rng = np.random.default_rng(0)
    sides = np.arange(1, 2049)
    squares = sides[:, None] ** 2 + sides[None] ** 2
    rows, columns = np.nonzero(np.isin(squares, 625 * np.arange(1, 116, 2) ** 2))
    sizes = np.concatenate([sides[np.stack([rows, columns], 1)], rng.integers(1, 2049, (500, 2))]).astype(np.int32)
    expected = [max(round(0.02 * np.sqrt(h**2 + w**2)), 1) for h, w in sizes.astype(int)]
    assert len(rows) > 100
    np.testing.assert_array_equal(boundary_radius_of_each(jnp.asarray(sizes), boundary_radius(2048, 2048)), expected)
