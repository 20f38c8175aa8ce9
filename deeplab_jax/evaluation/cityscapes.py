"""Compute the official Cityscapes scores from pixel counts, as evalPixelLevelSemanticLabeling.py in cityscapesScripts does.

This module does not read any files. It scores only the 19 evaluated classes, whereas the official script also lists the
remaining labels and the category `void`, whose scores are always nan.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from deeplab_jax.evaluation import metrics
from deeplab_jax.labels import CITYSCAPES, IGNORE, LabelSet
from deeplab_jax.labels.cityscapes_categories import CATEGORIES

Scores = dict[str, float | dict[str, float]]

# The average instance size in pixels for each class, measured on the 2048x1024 training images.
AVERAGE_SIZE = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

# Maps each kind of score to the official script's name for its mean.
AVERAGES = {
    "classScores": "averageScoreClasses",
    "classInstScores": "averageScoreInstClasses",
    "categoryScores": "averageScoreCategories",
    "categoryInstScores": "averageScoreInstCategories",
}

# In instanceIds files, pixel values below this are plain label ids. They mark stuff, and groups of objects not annotated
# individually.
FIRST_INSTANCE = 1001

_TRAIN_ID = CITYSCAPES.id_table()
_AVERAGE_SIZE = np.array([AVERAGE_SIZE.get(name, np.nan) for name in CITYSCAPES.names])
_CATEGORY_OF = {name: number for number, members in enumerate(CATEGORIES.values()) for name in members}
# The category index for each train id, or -1 for unused train ids.
_CATEGORY = np.array([_CATEGORY_OF[name] for name in CITYSCAPES.names] + [-1] * (256 - CITYSCAPES.num_classes))

# Label ids that are allowed to have instance numbers in instanceIds files. Instances with ignored labels are not scored.
INSTANCE_LABELS = frozenset(
    [i for name, i in zip(CITYSCAPES.names, CITYSCAPES.class_ids, strict=True) if name in AVERAGE_SIZE]
    + [i for i in CITYSCAPES.ignored_ids if i != IGNORE]
)


def is_official(label_set: LabelSet) -> bool:
    """Return whether the label set has the Cityscapes classes and label ids. The name and colours can differ.

    It must not merge further ids into these classes, because the official score ignores the pixels with these ids.
    """
    return (label_set.names, label_set.ids_by_class) == (CITYSCAPES.names, CITYSCAPES.ids_by_class)


def instance_counts(prediction: UInt8[np.ndarray, "h w"], instances: UInt16[np.ndarray, "h w"]) -> Float[np.ndarray, "3 19"]:
    """Count an image's instances per class, and sum the share of each instance that is predicted correctly.

    Args:
      prediction: The predicted train ids.
      instances: The pixel values from an instanceIds file: 1000 * label id + instance number, or a plain label id below 1000.
        Only the label ids in `INSTANCE_LABELS` are allowed to have instance numbers.

    Returns:
      Three rows with one column per class. The first row counts the instances. The second sums each instance's share of
      pixels predicted as the right class. The third does the same for the right category.
    """
    counted = instances >= FIRST_INSTANCE
    ids, predicted = instances[counted], prediction[counted]
    truth = _TRAIN_ID[ids // 1000]
    sizes = np.bincount(ids)
    present = np.flatnonzero(sizes)
    classes = _TRAIN_ID[present // 1000]
    present, classes = present[classes != IGNORE], classes[classes != IGNORE]
    hits = (predicted == truth, _CATEGORY[predicted] == _CATEGORY[truth])
    shares = [np.bincount(ids[hit], minlength=sizes.size)[present] / sizes[present] for hit in hits]
    rows = (np.ones(present.size), *shares)
    counts = np.stack([np.bincount(classes, row, minlength=CITYSCAPES.num_classes) for row in rows])
    return counts.astype(np.float64)  # without instances, np.bincount returns integers


def scores(confusion: Int[np.ndarray, "19 19"], instances: Float[np.ndarray, "3 19"] | None = None) -> Scores:
    """Return the official scores, keyed by the official script's names. A score is nan if no pixels were counted for it.

    Args:
      confusion: The pixel count for each (label, prediction) pair.
      instances: `instance_counts`, summed over the same images, or None to omit the instance scores (iIoU).
    """
    grouped = _merge_into_categories(confusion)
    values = {"classScores": metrics.class_iou(confusion), "categoryScores": metrics.class_iou(grouped)}
    if instances is not None:
        # The official script weights each pixel of an n-pixel instance by (the class's average instance size) / n, so an
        # instance's true positives and false negatives add up to that average size.
        total, class_hits, category_hits = instances * _AVERAGE_SIZE
        category_hits, category_total = (
            np.bincount(_CATEGORY[: len(confusion)], row, minlength=len(CATEGORIES)) for row in (category_hits, total)
        )
        values["classInstScores"] = _instance_iou(class_hits, total, confusion)
        values["categoryInstScores"] = _instance_iou(category_hits, category_total, grouped)
    averages: Scores = {AVERAGES[kind]: metrics.mean_of_numbers(iou) for kind, iou in values.items()}
    names = {kind: CITYSCAPES.names if kind.startswith("class") else tuple(CATEGORIES) for kind in values}
    return averages | {kind: dict(zip(names[kind], iou.tolist(), strict=True)) for kind, iou in values.items()}


def _merge_into_categories(confusion: Int[np.ndarray, "19 19"]) -> Int[np.ndarray, "7 7"]:
    member = (_CATEGORY[: len(confusion), None] == np.arange(len(CATEGORIES))).astype(confusion.dtype)
    return member.T @ confusion @ member


def _instance_iou(
    hits: Float[np.ndarray, " k"], total: Float[np.ndarray, " k"], confusion: Int[np.ndarray, "k k"]
) -> Float[np.ndarray, " k"]:
    """Return TP / (TP + FN + FP), where TP and FN are weighted by instance size.

    False positives do not belong to an instance, so their pixels are not weighted. The result is nan for stuff, and for classes
    with neither instances nor false positives.
    """
    union = total + confusion.sum(0) - np.diagonal(confusion)
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
