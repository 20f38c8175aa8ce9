"""The official scores: what cityscapesScripts' evalPixelLevelSemanticLabeling.py computes, from counts. No file is opened here.

Only classes that are evaluated have a row; the script's other labels, and its category `void`, are nan there always.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from deeplab_jax.evaluation import metrics
from deeplab_jax.labels import CITYSCAPES, IGNORE, LabelSet

Scores = dict[str, float | dict[str, float]]

CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}

# Pixels of the average instance, over the training set at 2048x1024.
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

AVERAGES = {  # the script's name for the mean of each kind of scores
    "classScores": "averageScoreClasses",
    "classInstScores": "averageScoreInstClasses",
    "categoryScores": "averageScoreCategories",
    "categoryInstScores": "averageScoreInstCategories",
}

FIRST_INSTANCE = 1001  # lower values of instanceIds files are label ids: stuff, and groups that are not told apart

_TRAIN_ID = CITYSCAPES.id_table()
_AVERAGE_SIZE = np.array([AVERAGE_SIZE.get(name, np.nan) for name in CITYSCAPES.names])
_CATEGORY_OF = {name: number for number, members in enumerate(CATEGORIES.values()) for name in members}
_CATEGORY = np.array([_CATEGORY_OF[name] for name in CITYSCAPES.names] + [-1] * (256 - CITYSCAPES.num_classes))  # by train id

# Label ids below which an instanceIds file may number instances; those of ignored labels are left out of the scores.
INSTANCE_LABELS = frozenset(
    [i for name, i in zip(CITYSCAPES.names, CITYSCAPES.class_ids, strict=True) if name in AVERAGE_SIZE]
    + [i for i in CITYSCAPES.ignored_ids if i != IGNORE]
)


def is_official(label_set: LabelSet) -> bool:
    """Check whether train ids mean what Cityscapes' do; colours and names of sets may differ."""
    return (label_set.names, label_set.class_ids) == (CITYSCAPES.names, CITYSCAPES.class_ids)


def instance_counts(prediction: UInt8[np.ndarray, "h w"], instances: UInt16[np.ndarray, "h w"]) -> Float[np.ndarray, "3 19"]:
    """Count how well one image's instances are met, by their class.

    Args:
      prediction: train ids.
      instances: 1000 x label id + number, or below 1000 the label id, as instanceIds files have it; see `INSTANCE_LABELS`.

    Returns:
      Number of instances; sum of each one's share of pixels with the right class; the same with the right category.
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
    return counts.astype(np.float64)  # of nothing, NumPy counts integers


def scores(confusion: Int[np.ndarray, "19 19"], instances: Float[np.ndarray, "3 19"] | None = None) -> Scores:
    """Return the script's scores under the script's names; nan where nothing was counted.

    Args:
      confusion: pixels by (label, prediction).
      instances: the sum of `instance_counts` over the same images; None leaves out the scores of instances (iIoU).
    """
    grouped = _by_category(confusion)
    values = {"classScores": metrics.class_iou(confusion), "categoryScores": metrics.class_iou(grouped)}
    if instances is not None:
        # An instance of n pixels weighs average / n a pixel: its true positives and false negatives add up to the average.
        total, class_hits, category_hits = instances * _AVERAGE_SIZE
        category_hits, category_total = (
            np.bincount(_CATEGORY[: len(confusion)], row, minlength=len(CATEGORIES)) for row in (category_hits, total)
        )
        values["classInstScores"] = _instance_iou(class_hits, total, confusion)
        values["categoryInstScores"] = _instance_iou(category_hits, category_total, grouped)
    averages: Scores = {AVERAGES[kind]: metrics.mean_of_numbers(iou) for kind, iou in values.items()}
    names = {kind: CITYSCAPES.names if kind.startswith("class") else tuple(CATEGORIES) for kind in values}
    return averages | {kind: dict(zip(names[kind], iou.tolist(), strict=True)) for kind, iou in values.items()}


def _by_category(confusion: Int[np.ndarray, "19 19"]) -> Int[np.ndarray, "7 7"]:
    member = (_CATEGORY[: len(confusion), None] == np.arange(len(CATEGORIES))).astype(confusion.dtype)
    return member.T @ confusion @ member


def _instance_iou(
    hits: Float[np.ndarray, " k"], total: Float[np.ndarray, " k"], confusion: Int[np.ndarray, "k k"]
) -> Float[np.ndarray, " k"]:
    """Return weighted TP / (TP + FN + FP). False positives belong to no instance, and are pixels; nan stays nan."""
    union = total + confusion.sum(0) - np.diagonal(confusion)
    return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
