import dataclasses
import json

import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import LABEL_SETS, VOC, LabelSet
from deeplab_jax.labels.files import load_labels, read_labels, write_labels

OWN = LabelSet("own", ("Straße", 'a "b"'), ((1, 2, 3), (4, 5, 6)), ids=(3, 9), ignored_ids=(0, 255), ignored_colors=())


@pytest.mark.parametrize("labels", [*LABEL_SETS.values(), OWN], ids=lambda labels: labels.name)
def test_a_label_set_survives_a_round_trip(tmp_path, labels):
    write_labels(tmp_path / "labels.json", labels)
    assert read_labels(tmp_path / "labels.json") == labels


def test_the_file_has_one_line_per_class(tmp_path):
    write_labels(tmp_path / "labels.json", OWN)
    assert '  {"name": "Straße", "id": 3, "color": [1, 2, 3]},\n' in (tmp_path / "labels.json").read_text("utf-8")


def test_a_class_can_merge_several_ids_and_colors(tmp_path):
    vehicle = {"name": "vehicle", "id": [7, 8, 9], "color": [[1, 1, 1], [2, 2, 2]]}
    road = {"name": "road", "id": 3, "color": [[4, 4, 4]]}
    (tmp_path / "labels.json").write_text(json.dumps({"name": "x", "classes": [vehicle, road], "ignored_ids": [0]}))
    labels = read_labels(tmp_path / "labels.json")
    colors = ((1, 1, 1), (4, 4, 4))
    assert labels == LabelSet(
        "x", ("vehicle", "road"), colors, (7, 3), (0,), more_ids=((8, 9), ()), more_colors=(((2, 2, 2),), ())
    )
    write_labels(tmp_path / "written.json", labels)
    assert read_labels(tmp_path / "written.json") == labels
    lines = (tmp_path / "written.json").read_text().splitlines()
    assert '  {"name": "vehicle", "id": [7, 8, 9], "color": [[1, 1, 1], [2, 2, 2]]},' in lines
    assert '  {"name": "road", "id": 3, "color": [4, 4, 4]}' in lines


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])  # Windows writes all of these
def test_every_encoding_of_unicode_is_read(tmp_path, encoding):
    write_labels(tmp_path / "labels.json", OWN)
    text = (tmp_path / "labels.json").read_text("utf-8")
    (tmp_path / "labels.json").write_bytes(text.encode(encoding))
    assert read_labels(tmp_path / "labels.json") == OWN


def test_a_file_that_is_not_unicode_says_how_to_save_it(tmp_path):
    (tmp_path / "labels.json").write_bytes('{"name": "Straße"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"is not Unicode text \(invalid .* byte\)\. Save it as UTF-8"):
        read_labels(tmp_path / "labels.json")


def test_the_home_folder_is_expanded_also_in_python(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    write_labels("~/labels.json", OWN)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert load_labels("~/labels.json") == OWN


def test_optional_fields_have_defaults(tmp_path):
    classes = [{"name": "a", "color": [1, 1, 1]}, {"name": "b", "color": [2, 2, 2]}]
    (tmp_path / "labels.json").write_text(json.dumps({"name": "x", "classes": classes}))
    assert read_labels(tmp_path / "labels.json") == LabelSet("x", ("a", "b"), ((1, 1, 1), (2, 2, 2)))


A, B = {"name": "a", "id": 1, "color": [1, 1, 1]}, {"name": "b", "id": 2, "color": [2, 2, 2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [A, B | {"id": []}]}, r"`classes\[1\].id` .=\[\]"),
        ({"classes": [A, B | {"id": [2, 256]}]}, r"`classes\[1\].id\[1\]` .=256"),
        ({"classes": [A, B | {"id": [2, 1]}]}, "contains 1 more than once"),
        ({"classes": [A, B | {"color": [[2, 2, 2], [3, 3]]}]}, r"`classes\[1\].color\[1\]` .=\[3, 3\]"),
        ({"classes": [A, B | {"color": [[2, 2, 2], [1, 1, 1]]}]}, "more than one class"),
        ({"classes": [A, B | {"color": []}]}, r"`classes\[1\].color` .=\[\]"),
        ({"classes": None}, "`classes` .=None"),
        ({"name": ""}, "`name` .=''"),
        ({"clases": []}, "'clases'"),
        ({"classes": [A, 5]}, r"`classes\[1\]` has the type int"),
        ({"classes": [A, {"name": "b", "id": 2}]}, r"`classes\[1\]` has no field 'color'"),
        ({"classes": [A, B | {"colour": [1]}]}, r"`classes\[1\]` has a field 'colour'"),
        ({"classes": [A, B | {"color": [1, 2]}]}, r"`classes\[1\].color` .=\[1, 2\]"),
        ({"classes": [A, B | {"color": [1, 2, 300]}]}, "300"),
        ({"classes": [A, B | {"id": "2"}]}, r"`classes\[1\].id` .='2'"),
        ({"classes": [A, B | {"id": True}]}, r"`classes\[1\].id`"),
        ({"classes": [A, {"name": "b", "color": [2, 2, 2]}]}, r"`classes\[1\]` has no id"),
        ({"classes": [A]}, r"labels\.names` \(of length 1\) cannot be used"),
        ({"classes": [A, A]}, "more than once"),
        ({"ignored_ids": 255}, "`ignored_ids` .=255"),
        ({"ignored_ids": [1]}, "only once"),
        ({"ignored_ids": [-1]}, r"`ignored_ids\[0\]` .=-1"),
        ({"ignored_colors": [0]}, r"`ignored_colors\[0\]` .=0"),
    ],
)
def test_a_mistake_is_reported_with_its_file_and_field(tmp_path, changes, message):
    (tmp_path / "labels.json").write_text(json.dumps({"name": "x", "classes": [A, B]} | changes))
    with pytest.raises(ConfigError, match=message) as error:
        read_labels(tmp_path / "labels.json")
    assert "labels.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\xff", "[" * 100_000, "9" * 5000])
def test_a_file_that_is_not_a_json_object_is_reported(tmp_path, text):
    (tmp_path / "labels.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"labels\.json"):
        read_labels(tmp_path / "labels.json")


def test_a_file_with_a_similar_name_is_suggested_for_a_missing_one(tmp_path):
    with pytest.raises(ConfigError, match=r"none/lables\.json does not exist\. Run `deeplab-jax data labels ROOT`"):
        read_labels(tmp_path / "none" / "lables.json")
    (tmp_path / "labels.json").touch()
    (tmp_path / "labels.txt").touch()
    with pytest.raises(ConfigError, match=r"lables\.json does not exist\. Did you mean .*/labels\.json\?$"):
        read_labels(tmp_path / "lables.json")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"name": "x", "classes": [{"name": "a", "id": 7, "id": 8, "color": [1, 1, 1]}]}', "id"),
        ('{"name": "x", "classes": [], "ignored_ids": [0], "ignored_ids": [255]}', "ignored_ids"),
    ],
)
def test_a_field_that_is_given_twice_is_refused(tmp_path, text, field):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ConfigError, match=rf"In the label set .*labels\.json: `{field}` is given 2 times in one object\."):
        read_labels(tmp_path / "labels.json")


def test_label_sets_are_found_by_name_and_by_file(tmp_path):
    assert load_labels("voc") == VOC
    write_labels(tmp_path / "own.json", OWN)
    assert load_labels(str(tmp_path / "own.json")) == OWN
    with pytest.raises(ConfigError, match=r"no label set 'nothing'\. Use cityscapes, .*\.json"):
        load_labels("nothing")
    with pytest.raises(ConfigError, match=r"^There is no label set 'camvd'\. Did you mean camvid\?$"):
        load_labels("camvd")


def test_a_data_set_folder_is_not_a_label_set(tmp_path):
    message = rf"^The label set {tmp_path} is a folder\. Give a file, such as {tmp_path}/labels\.json, which "
    with pytest.raises(ConfigError, match=message):
        load_labels(str(tmp_path))


def test_a_label_set_keeps_its_label_kind(tmp_path):
    labels = dataclasses.replace(read(tmp_path, BINARY), label_kind="color")
    write_labels(tmp_path / "again.json", labels)
    assert read_labels(tmp_path / "again.json") == labels


BINARY = '{"name": "b", "classes": [{"name": "a", "id": 0, "color": [0, 0, 0]}, {"name": "b", "id": 255, "color": [9, 9, 9]}]}'


def read(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    return read_labels(tmp_path / "labels.json")


def test_255_is_not_ignored_by_default_if_it_is_a_class(tmp_path):
    assert read(tmp_path, BINARY).ignored_ids == ()
    assert read(tmp_path, BINARY.replace("255", "1")).ignored_ids == (255,)
