"""Label sets by name, or from a JSON file that a person edits.

Such a file: {"name": ..., "classes": [{"name": ..., "id": ..., "color": [r, g, b]}, ...], "ignored_ids": [...],
"ignored_colors": [[r, g, b], ...]}. The classes stand in the order of their train ids; "id" is the value in label files, given
for every class or for none; what is ignored may be left out, and is then 255 and black.
"""

import json
from typing import Any

from etils import epath

from deeplab_jax.errors import ConfigError, one_line
from deeplab_jax.files import replacing
from deeplab_jax.labels import LABEL_SETS, LabelSet


def load_labels(spec: str) -> LabelSet:
    """Return a label set by the name it has in `LABEL_SETS`, or that of a label-set file (.json).

    Raises:
      ConfigError: there is no such file, or it holds no label set.
    """
    if spec in LABEL_SETS:
        return LABEL_SETS[spec]
    if spec.endswith(".json"):
        return read_labels(spec)
    raise ConfigError(f"there is no label set {spec!r}: give {', '.join(LABEL_SETS)} or a .json file")


def read_labels(path: str | epath.Path) -> LabelSet:
    """Return the label set that a file describes.

    Raises:
      ConfigError: it cannot be read, or a field, which is named, cannot be used.
    """
    try:
        values = json.loads(epath.Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"label set {path} is no JSON ({one_line(error)}): look there for a comma or a bracket too many or too few"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"label set {path} cannot be read ({one_line(error)}): `deeplab-jax data labels ROOT` writes one"
        ) from None
    try:
        return _label_set(values)
    except ConfigError as error:
        raise ConfigError(f"label set {path}: {error}") from None


def write_labels(path: str | epath.Path, labels: LabelSet) -> None:
    """Write what `read_labels` reads, a class a line.

    Raises:
      ConfigError: `path` cannot be written.
    """
    rows = zip(labels.names, labels.class_ids, labels.colors, strict=True)
    classes = [json.dumps({"name": name, "id": i, "color": color}, ensure_ascii=False) for name, i, color in rows]
    text = f'{{\n"name": {json.dumps(labels.name, ensure_ascii=False)},\n"classes": [\n  ' + ",\n  ".join(classes) + "\n],\n"
    text += f'"ignored_ids": {json.dumps(labels.ignored_ids)},\n"ignored_colors": {json.dumps(labels.ignored_colors)}\n}}\n'
    with replacing(epath.Path(path)) as file:
        file.write(text.encode())


def _label_set(values: Any) -> LabelSet:
    _require_fields(values, "the file", {"name", "classes"}, {"ignored_ids", "ignored_colors"})
    classes = values["classes"]
    _require(isinstance(values["name"], str) and values["name"], "name", values["name"], "give a name in quotes")
    _require(isinstance(classes, list), "classes", classes, 'give a list of {"name", "id", "color"}')
    for i, each in enumerate(classes):
        _require_fields(each, f"classes[{i}]", {"name", "color"}, {"id"})
        _require(isinstance(each["name"], str) and each["name"], f"classes[{i}].name", each["name"], "give a name in quotes")
        _require_color(f"classes[{i}].color", each["color"])
    numbered = [i for i, each in enumerate(classes) if "id" in each]
    if numbered and len(numbered) < len(classes):
        missing = next(i for i in range(len(classes)) if i not in numbered)
        raise ConfigError(f"classes[{missing}] has no id, as others have: give one to every class, or to none")
    for i in numbered:
        _require_byte(f"classes[{i}].id", classes[i]["id"])
    for field in ("ignored_ids", "ignored_colors"):
        _require(isinstance(values.get(field, []), list), field, values.get(field), "give a list, [] for none")
        for i, value in enumerate(values.get(field, [])):
            (_require_byte if field == "ignored_ids" else _require_color)(f"{field}[{i}]", value)
    ids = tuple(each["id"] for each in classes if "id" in each)
    ignored: dict[str, Any] = {}
    if "ignored_ids" in values:
        ignored["ignored_ids"] = tuple(values["ignored_ids"])
    if "ignored_colors" in values:
        ignored["ignored_colors"] = tuple(tuple(color) for color in values["ignored_colors"])
    return LabelSet(
        name=values["name"],
        names=tuple(each["name"] for each in classes),
        colors=tuple(tuple(each["color"]) for each in classes),
        ids=() if ids == tuple(range(len(ids))) else ids,  # which is the same, and how the known sets say it
        **ignored,
    )


def _require_fields(values: Any, where: str, required: set[str], optional: set[str]) -> None:
    fields = ", ".join(sorted(required | optional))
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is a {type(values).__name__}: it must be an object with {fields}")
    for field in sorted(required - set(values)):
        raise ConfigError(f"{where} has no field {field!r}: add it")
    for field in sorted(set(values) - required - optional):
        raise ConfigError(f"{where} has a field {field!r}, which is none of {fields}: rename or remove it")


def _require_color(field: str, value: Any) -> None:
    whole = isinstance(value, list) and len(value) == 3 and all(_is_byte(v) for v in value)
    _require(whole, field, value, "give three whole numbers from 0 to 255, [red, green, blue]")


def _require_byte(field: str, value: Any) -> None:
    _require(_is_byte(value), field, value, "give a whole number from 0 to 255")


def _is_byte(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 255


def _require(ok: Any, field: str, value: Any, advice: str) -> None:
    if not ok:
        raise ConfigError(f"`{field}` (={value!r}) cannot be used: {advice}")
