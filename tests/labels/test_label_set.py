import dataclasses
import json

import numpy as np
import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, UNKNOWN, LabelSet, distinct_colors


def test_cityscapes_ids_are_mapped_as_in_the_official_table():
    table = CITYSCAPES.id_table()
    assert table[7] == 0  # road
    assert table[26] == 13  # car
    assert table[33] == 18  # bicycle
    assert table[0] == table[29] == 255  # unlabeled, caravan
    assert table[34] == UNKNOWN
    assert (table < 19).sum() - (table == UNKNOWN).sum() == 19


def test_train_ids_are_mapped_to_themselves():
    table = CITYSCAPES.train_id_table()
    assert table[:19].tolist() == list(range(19))
    assert table[255] == 255
    assert set(table[19:255]) == {UNKNOWN}


def test_colors_are_mapped_to_train_ids():
    table = CITYSCAPES.color_table()
    assert table[(128 << 16) | (64 << 8) | 128] == 0
    assert table[142] == 13  # "car" and "license plate" have the same colour
    assert table[0] == 255
    assert table[1] == UNKNOWN


def test_the_palette_is_black_for_values_without_a_class():
    palette = CITYSCAPES.palette()
    assert palette[13].tolist() == [0, 0, 142]
    assert palette[255].tolist() == palette[19].tolist() == [0, 0, 0]


def test_ids_default_to_train_ids():
    labels = LabelSet("pets", ("cat", "dog"), ((1, 1, 1), (2, 2, 2)), ignored_ids=(2, 255))
    assert labels.id_table()[[0, 1, 2, 3, 255]].tolist() == [0, 1, 255, UNKNOWN, 255]


def test_a_class_can_have_several_ids_and_colors():
    labels = LabelSet(
        "x",
        ("road", "vehicle"),
        ((1, 1, 1), (2, 2, 2)),
        ids=(4, 7),
        ignored_ids=(0,),
        more_ids=((), (8, 9)),
        more_colors=(((1, 1, 2), (1, 1, 3)), ()),
    )
    assert labels.class_ids == (4, 7)
    assert labels.id_table()[[0, 4, 7, 8, 9, 5]].tolist() == [255, 0, 1, 1, 1, UNKNOWN]
    assert labels.color_table()[[0x010101, 0x010102, 0x010103, 0x020202, 0, 1]].tolist() == [0, 0, 0, 1, 255, UNKNOWN]
    assert labels.train_id_table()[[0, 1, 2, 255]].tolist() == [0, 1, UNKNOWN, 255]
    assert labels.palette()[:3].tolist() == [[1, 1, 1], [2, 2, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("a",), "colors": ((1, 2, 3),)}, r"labels\.names` \(of length 1\) cannot be used"),
        ({"names": ("a", "a")}, "more than once"),
        ({"colors": ((1, 2, 3),)}, "1 colours for 2 classes"),
        ({"colors": ((1, 2, 3), (1, 2, 300))}, "300"),
        ({"colors": ((1, 2, 3), (1, 2, 3))}, "more than one class"),
        ({"ids": (1,)}, "1 values for 2 classes"),
        ({"ids": (1, 1)}, "only once"),
        ({"ids": (1, 256)}, "256"),
        ({"ids": (1, 255)}, "only once"),
        ({"more_ids": ((5,),)}, "`labels.more_ids` has 1 groups for 2 classes"),
        ({"more_colors": ((), (), ())}, "`labels.more_colors` has 3 groups for 2 classes"),
        ({"more_ids": ((5,), (5,))}, "contains 5 more than once"),
        ({"more_ids": ((1,), ())}, "contains 1 more than once"),
        ({"more_ids": ((255,), ())}, "ignored_ids"),
        ({"more_ids": ((-1,), ())}, "-1"),
        ({"more_colors": ((), ((1, 2, 3),))}, "more than one class"),
        ({"more_colors": ((), ((1, 2),))}, r"\(1, 2\)"),
        ({"name": ""}, r"`labels.name` \(=''\)"),
        ({"names": "ab"}, r"`labels.names` \(='ab'\) cannot be used. Use a tuple."),
        ({"names": ("a", 3)}, "`labels.names` contains 3. Give each class a name in quotes"),
        ({"names": ("a", "")}, "`labels.names` contains ''"),
        ({"ids": 3}, r"`labels.ids` \(=3\)"),
        ({"ids": (1.5, 2)}, "contains 1.5. Use integers"),
        ({"ids": ("1", "2")}, "contains '1'"),
        ({"ids": (True, False)}, "contains True"),
        ({"ignored_ids": 255}, r"`labels.ignored_ids` \(=255\)"),
        ({"ignored_colors": (0, 0, 0)}, "contains 0. Use three integers"),
        ({"colors": ((1.5, 2, 3), (4, 5, 6))}, r"contains \(1.5, 2, 3\)"),
        ({"more_ids": (5, 6)}, r"`labels.more_ids` \(=\(5, 6\)\).* tuple of tuples"),
    ],
)
def test_invalid_label_sets_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LabelSet(**{"name": "x", "names": ("a", "b"), "colors": ((1, 2, 3), (4, 5, 6))} | fields)


def test_lists_and_numpy_values_become_tuples():
    labels = LabelSet(
        "pets", ["cat", "dog"], np.array([[1, 1, 1], [2, 2, 2]], np.uint8), ids=[np.int64(3), 7], ignored_ids=range(2)
    )
    assert labels == LabelSet("pets", ("cat", "dog"), ((1, 1, 1), (2, 2, 2)), ids=(3, 7), ignored_ids=(0, 1))
    assert labels.color_table()[0x020202] == 1
    assert json.dumps(dataclasses.asdict(labels))


def test_default_colors_are_easy_to_tell_apart():
    colors = np.array(distinct_colors(19))
    pairs = [(a, b) for i, a in enumerate(colors) for b in colors[:i]]
    # The closest two of the first 19 colours in VOC's palette are 64 apart.
    assert min(np.linalg.norm(a - b) for a, b in pairs) > 64


def test_default_colors_are_unique_and_never_black():
    assert len({*distinct_colors(255), (0, 0, 0)}) == 256
