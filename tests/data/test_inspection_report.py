import math
from collections import Counter

import numpy as np
import pytest

from deeplab_jax.data.inspection_report import Tally, compute_class_weights, find_rare_classes
from deeplab_jax.data.survey import Survey


def test_class_weights_match_enet_and_average_to_one_over_all_pixels():
    pixels = np.array([900, 100, 0])
    weights = compute_class_weights(pixels)
    enet = [1 / math.log(1.02 + share) for share in (0.9, 0.1, 0)]
    assert weights == pytest.approx([w / (0.9 * enet[0] + 0.1 * enet[1]) for w in enet], abs=5e-4)
    assert np.dot(pixels / 1000, weights) == pytest.approx(1, abs=1e-3)
    assert compute_class_weights(np.array([0, 0])) == ()


def test_rare_classes_have_less_than_a_tenth_of_an_even_share():
    # An even share of 1000 pixels for four classes is 250.
    assert find_rare_classes(np.array([951, 24, 0, 25])) == [1]
    assert find_rare_classes(np.zeros(3, int)) == []


def test_the_standard_deviation_of_a_band_with_one_value_is_one_that_training_accepts():
    pixels = np.array([[1, 255], [2, 255]], float)  # two bands
    sums = np.stack([pixels.sum(0), (pixels**2).sum(0)])
    tally = Tally("", 1, np.zeros(2), np.zeros(2), Survey(is_color=False), Counter({(2, 1): 1}), band_sums=sums)
    assert tally.mean_and_std() == ([1.5, 255], [0.5, 1])
