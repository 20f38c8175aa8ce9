import math

import numpy as np
import pytest

from deeplab_jax.evaluation.metrics import empty_totals
from deeplab_jax.evaluation.scores import summary, warn_of_infinite_logits
from deeplab_jax.labels import LabelSet

TWO = LabelSet("two", ("a", "b"), ((1, 0, 0), (0, 1, 0)))


@pytest.mark.parametrize(
    ("loss", "pixels", "warns"), [(1.5, 4, False), (math.nan, 4, True), (math.inf, 4, True), (0.0, 0, False)]
)
def test_scores_of_logits_that_are_not_finite_come_with_a_warning(loss, pixels, warns):
    totals = empty_totals(2)._replace(loss=np.float64(loss), confusion=np.array([[pixels, 0], [0, 0]]))
    scores = summary(totals, TWO)
    assert scores["loss"] == (loss / pixels if pixels and math.isfinite(loss) else None)
    assert warn_of_infinite_logits(scores).startswith("WARNING: Some logits are infinite or not a number") == warns
