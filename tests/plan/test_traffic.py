import math

import pytest

from deeplab_jax.plan.traffic import format_si


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 "),
        (1.5e-3, "1.5 m"),
        (999.4, "999 "),
        (999.6, "1 k"),  # three digits round it to 1000
        (1e6, "1 M"),
        (999.9e9, "1 T"),
        (2e18, "2e+03 P"),  # there is no larger prefix
        (math.inf, "inf "),
    ],
)
def test_numbers_have_three_digits_and_a_prefix(value, text):
    assert format_si(value) == text
