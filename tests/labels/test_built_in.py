"""Compare the built-in label sets with values copied from the official tables, which each module names."""

import pytest

from deeplab_jax.labels import (
    ADE20K,
    CAMVID,
    CAMVID11,
    CAMVID32,
    CITYSCAPES,
    CITYSCAPES_CATEGORIES,
    COCO_STUFF,
    IDD,
    LABEL_SETS,
    MAPILLARY,
    MAPILLARY2,
    MAPILLARY_CITYSCAPES,
    UNKNOWN,
)


def test_label_sets_have_the_published_number_of_classes():
    assert {name: labels.num_classes for name, labels in LABEL_SETS.items()} == {
        "cityscapes": 19,
        "camvid": 11,
        "voc": 21,
        "ade20k": 150,
        "mapillary": 65,
        "mapillary2": 123,
        "idd": 26,
        "coco_stuff": 171,
        "camvid32": 31,
        "camvid11": 11,
        "cityscapes_categories": 7,
        "mapillary_cityscapes": 19,
    }


def class_of_id(labels, value):
    train_id = labels.train_id_of_id().get(value, UNKNOWN)
    return labels.names[train_id] if train_id in range(labels.num_classes) else train_id


def class_of_color(labels, color):
    train_id = labels.train_id_of_color().get(color, UNKNOWN)
    return labels.names[train_id] if train_id in range(labels.num_classes) else train_id


IDS = [
    (ADE20K, {0: 255, 1: "wall", 13: "person", 150: "flag", 151: UNKNOWN, 255: 255}),
    (
        MAPILLARY,
        {0: "bird", 13: "road", 24: "lane marking - general", 27: "sky", 55: "car", 64: "ego vehicle", 65: 255, 66: UNKNOWN},
    ),
    (
        MAPILLARY2,
        {
            0: "bird",
            21: "road",
            30: "person",
            61: "sky",
            90: "traffic light - general (single)",
            91: "traffic light - pedestrians",
            100: "traffic sign (front)",
            108: "car",
            122: "static",
            123: 255,
            124: UNKNOWN,
        },
    ),
    (
        IDD,
        {
            0: "road",
            2: "sidewalk",
            9: "car",
            12: "vehicle fallback",
            20: "pole",
            25: "sky, fallback background",
            26: UNKNOWN,
            255: 255,
        },
    ),
    (
        COCO_STUFF,
        {
            0: "person",
            10: "fire hydrant",
            11: UNKNOWN,  # street sign
            12: "stop sign",
            89: "toothbrush",
            90: UNKNOWN,  # hair brush
            91: "banner",
            148: "road",
            168: "tree",
            181: "wood",
            182: UNKNOWN,
            255: 255,
        },
    ),
    (CAMVID32, {0: "animal", 17: "road", 21: "sky", 29: "miscellaneous vegetation", 30: 255, 31: "wall", 32: UNKNOWN}),
    (CITYSCAPES_CATEGORIES, {7: "flat", 13: "construction", 17: "object", 22: "nature", 25: "human", 33: "vehicle", 30: 255}),
    (
        MAPILLARY_CITYSCAPES,
        {
            13: "road",
            24: "road",
            41: "road",
            2: "sidewalk",
            47: "pole",
            50: "traffic sign",
            49: 255,
            22: "rider",
            58: "train",
            65: 255,
        },
    ),
]


@pytest.mark.parametrize(("labels", "expected"), IDS, ids=lambda value: getattr(value, "name", ""))
def test_ids_have_the_classes_of_their_data_set(labels, expected):
    assert {value: class_of_id(labels, value) for value in expected} == expected


COLORS = [
    (
        MAPILLARY,
        {(128, 64, 255): "bike lane", (0, 170, 30): "water", (0, 0, 70): "truck", (32, 32, 32): "car mount", (0, 0, 0): 255},
    ),
    # Dashed and straight lines, and cars and groups of vehicles, have the same official colour.
    (
        MAPILLARY2,
        {(250, 170, 33): "road median", (20, 20, 255): "parking meter", (255, 255, 255): UNKNOWN, (0, 0, 142): UNKNOWN},
    ),
    (
        IDD,
        {
            (255, 204, 54): "autorickshaw",
            (81, 0, 81): "parking, drivable fallback",
            (0, 80, 100): "vehicle fallback",
            (0, 0, 142): "car",
            (169, 187, 214): UNKNOWN,
        },
    ),
    (
        CAMVID32,
        {(64, 128, 64): "animal", (192, 0, 64): "lane markings, not drivable", (0, 0, 192): "sidewalk", (64, 192, 0): "wall"},
    ),
    (
        CAMVID11,
        {
            (192, 0, 128): "building",
            (0, 0, 64): "pole",
            (192, 0, 64): "road",
            (128, 128, 192): "pavement",
            (0, 64, 64): "sign",
            (192, 64, 128): "car",
            (64, 128, 64): "pedestrian",
            (192, 0, 192): "bicyclist",
            (0, 0, 0): 255,
        },
    ),
]


@pytest.mark.parametrize(("labels", "expected"), COLORS, ids=lambda value: getattr(value, "name", ""))
def test_colors_have_the_classes_of_their_data_set(labels, expected):
    assert {color: class_of_color(labels, color) for color in expected} == expected


def test_mappings_between_data_sets_have_the_classes_of_the_other_data_set():
    assert MAPILLARY_CITYSCAPES.names == CITYSCAPES.names
    assert MAPILLARY_CITYSCAPES.colors == CITYSCAPES.colors
    assert CAMVID11.names == CAMVID.names
