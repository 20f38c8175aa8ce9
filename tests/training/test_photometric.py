import colorsys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeplab_jax.data.augmentation import NEUTRAL_FACTORS
from deeplab_jax.training.photometric import describe_limits, distort

factor_rows = st.tuples(
    st.floats(-32, 32), st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.floats(-36, 36), st.sampled_from([0.0, 1.0])
)
jitted_distort = jax.jit(distort)


def distort_pixel(pixel, brightness, contrast, saturation, hue, first):
    """Distort one pixel in mmsegmentation's order, using the standard library's HSV conversion."""
    pixel = np.clip(np.asarray(pixel, float) + brightness, 0, 255)
    if first:
        pixel = np.clip(pixel * contrast, 0, 255)
    h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
    pixel = np.array(colorsys.hsv_to_rgb((h + hue / 360) % 1, min(s * saturation, 1), v)) * 255
    return pixel if first else np.clip(pixel * contrast, 0, 255)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), factors=st.lists(factor_rows, min_size=2, max_size=2))
def test_distortion_matches_a_simple_reference(seed, factors):
    images = np.random.default_rng(seed).integers(0, 256, (2, 3, 4, 3)).astype(np.float32)
    images[0, 0] = [[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 0]]  # black, white, grey and pure red
    actual = np.asarray(jitted_distort(images, np.array(factors, np.float32)))
    expected = [
        [[distort_pixel(pixel, *row) for pixel in line] for line in image] for image, row in zip(images, factors, strict=True)
    ]
    # In float32, the hue of near-grey pixels loses precision, but their small chroma limits the effect.
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_neutral_factors_leave_images_bit_identical():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(jitted_distort(images, np.array([NEUTRAL_FACTORS] * 2, np.float32)), images)


@pytest.mark.parametrize(
    ("factors", "before", "after"),
    [
        ((20, 1, 1, 0, 0), (10, 100, 250), (30, 120, 255)),
        ((0, 0.5, 1, 0, 1), (10, 100, 250), (5, 50, 125)),
        ((0, 1, 0.5, 0, 0), (0, 100, 200), (100, 150, 200)),  # the largest channel stays, and the others move halfway to it
        ((0, 1, 1.5, 0, 0), (50, 100, 150), (0, 75, 150)),
        ((0, 1, 1, 60, 0), (200, 100, 100), (200, 200, 100)),  # red to yellow
        ((30, 0.5, 1, 0, 1), (240, 0, 0), (127.5, 15, 15)),  # brightness is clipped at 255 before contrast is applied
    ],
)
def test_each_factor_matches_hand_computed_values(factors, before, after):
    images = np.array(before, np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(jitted_distort(images, np.array([factors], np.float32)).reshape(3), after, atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_saturation_and_hue_change_only_the_first_three_channels(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, channels)).astype(np.float32)
    factors = np.array([(20, 1.2, 0.5, 30, 1), (-9, 0.7, 1.4, -20, 0)], np.float32)
    actual = np.asarray(jitted_distort(images, factors))
    # Brightness and contrast, each clipped, in the order for which saturation and hue make no difference.
    shifted = np.clip(images + factors[:, 0, None, None, None], 0, 255)
    expected = np.clip(shifted * factors[:, 1, None, None, None], 0, 255)
    if channels >= 3:
        expected[..., :3] = jitted_distort(images[..., :3], factors)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_the_limits_of_the_distortion_are_described():
    assert describe_limits(3) == ""
    assert describe_limits(1) == "data.photometric: saturation and hue are not changed, because the images have 1 channel"
    assert "only in the first three channels (R, G, B), because the images have 4 channels" in describe_limits(4)
