import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import CITYSCAPES, UNKNOWN, LabelSet


def test_cityscapes_maps_ids_as_the_official_table_does():
    table = CITYSCAPES.id_table()
    assert table[7] == 0  # road
    assert table[26] == 13  # car
    assert table[33] == 18  # bicycle
    assert table[0] == table[29] == 255  # unlabeled, caravan
    assert table[34] == UNKNOWN
    assert (table < 19).sum() - (table == UNKNOWN).sum() == 19


def test_train_ids_map_to_themselves():
    table = CITYSCAPES.train_id_table()
    assert table[:19].tolist() == list(range(19))
    assert table[255] == 255
    assert set(table[19:255]) == {UNKNOWN}


def test_colors_map_by_value():
    table = CITYSCAPES.color_table()
    assert table[(128 << 16) | (64 << 8) | 128] == 0
    assert table[142] == 13  # car, and the licence plate that shares its colour
    assert table[0] == 255
    assert table[1] == UNKNOWN


def test_palette_is_black_where_there_is_no_class():
    palette = CITYSCAPES.palette()
    assert palette[13].tolist() == [0, 0, 142]
    assert palette[255].tolist() == palette[19].tolist() == [0, 0, 0]


def test_ids_default_to_train_ids():
    labels = LabelSet("pets", ("cat", "dog"), ((1, 1, 1), (2, 2, 2)), ignored_ids=(2, 255))
    assert labels.id_table()[[0, 1, 2, 3, 255]].tolist() == [0, 1, 255, UNKNOWN, 255]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("a",), "colors": ((1, 2, 3),)}, "1 classes"),
        ({"names": ("a", "a")}, "more than once"),
        ({"colors": ((1, 2, 3),)}, "1 colours for 2 classes"),
        ({"colors": ((1, 2, 3), (1, 2, 300))}, "300"),
        ({"colors": ((1, 2, 3), (1, 2, 3))}, "more than one class"),
        ({"ids": (1,)}, "1 values for 2 classes"),
        ({"ids": (1, 1)}, "must differ"),
        ({"ids": (1, 256)}, "256"),
        ({"ids": (1, 255)}, "must differ"),
    ],
)
def test_impossible_label_sets_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        LabelSet(**{"name": "x", "names": ("a", "b"), "colors": ((1, 2, 3), (4, 5, 6))} | fields)
