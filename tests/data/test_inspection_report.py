import math

import numpy as np
import pytest

from deeplab_jax.data.inspection_report import compute_class_weights, find_rare_classes


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
