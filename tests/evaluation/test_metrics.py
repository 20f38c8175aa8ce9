import numpy as np
import pytest

from deeplab_jax.evaluation.metrics import CLASS_METRICS, OVERALL_METRICS, Calibration, add_totals, empty_totals

# Class 0 has 1 hit and 1 missed pixel. Class 1 has 2 hits and 2 false positives. Class 2 is never predicted. Class 3 is absent
# from labels and predictions.
CONFUSION = np.array([[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
TOTALS = empty_totals(4)._replace(confusion=CONFUSION)


def bins(**values):
    """Return calibration sums that are zero except in the given bins."""
    sums = np.zeros((3, 15))
    for name, value in values.items():
        sums[:, int(name[3:])] = value
    return Calibration(sums[0].astype(np.int64), sums[1].astype(np.int64), sums[2])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("iou", [1 / 2, 2 / 4, 0, np.nan]),
        ("precision", [1, 2 / 4, np.nan, np.nan]),
        ("recall", [1 / 2, 1, 0, np.nan]),
        ("f1", [2 / 3, 4 / 6, 0, np.nan]),
    ],
)
def test_class_metrics_equal_values_computed_by_hand(name, expected):
    np.testing.assert_allclose(CLASS_METRICS[name].compute(TOTALS), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("miou", 1 / 3),
        ("pixel_accuracy", 3 / 5),
        ("frequency_weighted_iou", 2 / 5 * 1 / 2 + 2 / 5 * 1 / 2 + 1 / 5 * 0),
        ("mean_precision", 3 / 4),
        ("mean_recall", 1 / 2),
        ("mean_f1", 4 / 9),
    ],
)
def test_overall_metrics_equal_values_computed_by_hand(name, expected):
    assert OVERALL_METRICS[name].compute(TOTALS) == pytest.approx(expected, rel=1e-15)


def test_pixels_on_no_boundary_are_not_part_of_the_boundary_iou():
    boundary = np.array([[3, 1, 2], [0, 0, 0], [4, 0, 100]])  # the last row and column are for pixels on no boundary
    totals = empty_totals(2)._replace(boundary=boundary)
    np.testing.assert_array_equal(CLASS_METRICS["boundary_iou"].compute(totals), [3 / 10, 0])
    assert OVERALL_METRICS["boundary_miou"].compute(totals) == 3 / 20


def test_the_calibration_error_is_the_mean_difference_between_confidence_and_accuracy():
    # Bin 14 has 4 pixels with a mean confidence of 0.95 and an accuracy of 3/4. Bin 8 has 1 hit with a confidence of 0.6.
    totals = empty_totals(2)._replace(calibration=bins(bin14=(4, 3, 3.8), bin8=(1, 1, 0.6)))
    assert OVERALL_METRICS["ece"].compute(totals) == pytest.approx((4 * 0.2 + 1 * 0.4) / 5, rel=1e-15)


def test_the_loss_and_the_miou_per_image_are_means():
    totals = TOTALS._replace(loss=np.float64(2.5), images=np.int64(4), image_iou=np.float64(3))
    assert OVERALL_METRICS["loss"].compute(totals) == 0.5
    assert OVERALL_METRICS["image_miou"].compute(totals) == 0.75


def test_metrics_are_nan_if_nothing_was_counted():
    for metric in (*CLASS_METRICS.values(), *OVERALL_METRICS.values()):
        assert np.isnan(metric.compute(empty_totals(3))).all()


def test_only_errors_and_losses_are_better_if_lower():
    assert {name for name, metric in OVERALL_METRICS.items() if metric.lower_is_better} == {"loss", "ece"}


def test_totals_of_batches_are_added_in_64_bits():
    batch = empty_totals(2)._replace(confusion=np.full((2, 2), 2**31 - 1, np.int32), loss=np.float32(2**24))
    totals = add_totals(add_totals(empty_totals(2), batch), batch._replace(loss=np.float32(1)))
    np.testing.assert_array_equal(totals.confusion, np.full((2, 2), 2**32 - 2))
    assert totals.loss == 2**24 + 1
    assert {leaf.dtype.itemsize for leaf in (*totals[:5], *totals.calibration)} == {8}
