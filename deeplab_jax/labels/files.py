"""Find label sets by name, and read and write them as user-editable JSON files.

A label-set file has this format:

    {"name": ..., "classes": [{"name": ..., "id": ..., "color": [r, g, b]}, ...], "ignored_ids": [...],
     "ignored_colors": [[r, g, b], ...], "label_kind": "color"}

The classes are in train id order. "id" is the class value in label files. Either all classes have an "id", or none do.
A class can merge several values: "id": [7, 8, 9], "color": [[r, g, b], [r, g, b]]. Submissions and overlays use the first.
"ignored_ids" and "ignored_colors" are optional. Their defaults are 255, unless a
class has this id, and black. "label_kind" is also optional: it says how the label files encode classes (see `data.label_kind`).
"""

import contextlib
import difflib
import json
import os
from typing import Any

from etils import epath

from deeplab_jax.errors import BucketError, ConfigError, one_line
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import IGNORE, LABEL_SETS, Color, LabelSet, group_values
from deeplab_jax.labels.label_set import is_byte


def load_labels(spec: str) -> LabelSet:
    """Return a label set, looked up by name or read from a file.

    Args:
      spec: A key of `LABEL_SETS`, or the path of a label-set file (.json).

    Raises:
      ConfigError: The name is unknown, or the file does not exist or does not contain a valid label set.
    """
    if spec in LABEL_SETS:
        return LABEL_SETS[spec]
    if spec.endswith(".json"):
        return read_labels(spec)
    if os.path.isdir(os.path.expanduser(spec)):
        file = os.path.join(spec, "labels.json")
        raise ConfigError(
            f"The label set {spec} is a folder. Give a file, such as {file}, which `deeplab-jax data labels ROOT` writes."
        )
    near = difflib.get_close_matches(spec, LABEL_SETS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Use {', '.join(LABEL_SETS)}, or a .json file."
    raise ConfigError(f"There is no label set {spec!r}. {hint}")


def read_labels(path: str | epath.Path) -> LabelSet:
    """Read a label set from a label-set file in any encoding of Unicode.

    Raises:
      ConfigError: The file cannot be read, or one of its fields is invalid. The message names the field.
    """
    try:
        data = epath.Path(os.path.expanduser(path)).read_bytes()
        text = data.decode(json.detect_encoding(data))
    except FileNotFoundError:
        raise ConfigError(f"The label set {path} does not exist. {_suggest_file(epath.Path(path))}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"The label set {path} is not Unicode text ({error.reason}). Save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The label set {path} cannot be read ({one_line(error)}). Run `deeplab-jax data labels ROOT` to create one."
        ) from None
    try:
        return _build_label_set(json.loads(text, object_pairs_hook=_make_object))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"The label set {path} is not valid JSON ({one_line(error)}). Look for a missing or extra comma or bracket there."
        ) from None
    except ConfigError as error:
        raise ConfigError(f"In the label set {path}: {error}") from None


def write_labels(path: str | epath.Path, labels: LabelSet) -> None:
    """Write a label set to a file that `read_labels` can read, with one line per class.

    Raises:
      ConfigError: The file cannot be written.
    """
    rows = zip(labels.names, labels.ids_by_class, labels.colors_by_class, strict=True)
    classes = [
        json.dumps({"name": name, "id": _unwrap(ids), "color": _unwrap(colors)}, ensure_ascii=False)
        for name, ids, colors in rows
    ]
    text = f'{{\n"name": {json.dumps(labels.name, ensure_ascii=False)},\n"classes": [\n  ' + ",\n  ".join(classes) + "\n],\n"
    text += f'"ignored_ids": {json.dumps(labels.ignored_ids)},\n"ignored_colors": {json.dumps(labels.ignored_colors)}'
    text += f',\n"label_kind": {json.dumps(labels.label_kind)}\n}}\n' if labels.label_kind else "\n}\n"
    with write_atomically(epath.Path(os.path.expanduser(path))) as file:
        file.write(text.encode())


def _make_object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object, and refuse a repeated field, of which Python would keep only the last."""
    names = [name for name, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"`{name}` is given {names.count(name)} times in one object. Give several values as a list.")
    return dict(fields)


def _unwrap(values: tuple[Any, ...]) -> Any:
    return values if len(values) > 1 else values[0]


def _suggest_file(missing: epath.Path) -> str:
    """Return a sentence that names a file beside a missing one with a similar name, or says how to write a label set."""
    with contextlib.suppress(OSError, BucketError):
        names = [path.name for path in missing.expanduser().parent.iterdir() if path.suffix == ".json"]
        for name in difflib.get_close_matches(missing.name, names, n=1):
            return f"Did you mean {missing.parent / name}?"
    return "Run `deeplab-jax data labels ROOT` to create one."


def _build_label_set(values: Any) -> LabelSet:
    _require_fields(values, "The file", {"name", "classes"}, {"ignored_ids", "ignored_colors", "label_kind"})
    classes = values["classes"]
    _require(isinstance(values["name"], str) and values["name"], "name", values["name"], "Give a name in quotes.")
    _require(isinstance(classes, list), "classes", classes, 'Give a list of {"name", "id", "color"}.')
    for i, each in enumerate(classes):
        _require_fields(each, f"`classes[{i}]`", {"name", "color"}, {"id"})
        _require(isinstance(each["name"], str) and each["name"], f"classes[{i}].name", each["name"], "Give a name in quotes.")
    numbered = [i for i, each in enumerate(classes) if "id" in each]
    if numbered and len(numbered) < len(classes):
        missing = next(i for i in range(len(classes)) if i not in numbered)
        raise ConfigError(f"`classes[{missing}]` has no id, but other classes have one. Give an id to every class, or to none.")
    colors = [_read_colors(f"classes[{i}].color", each["color"]) for i, each in enumerate(classes)]
    ids = [_read_ids(f"classes[{i}].id", each["id"]) for i, each in enumerate(classes) if numbered]
    for field in ("ignored_ids", "ignored_colors"):
        _require(isinstance(values.get(field, []), list), field, values.get(field), "Give a list, which may be empty: [].")
        for i, value in enumerate(values.get(field, [])):
            (_require_byte if field == "ignored_ids" else _require_color)(f"{field}[{i}]", value)
    ignored: dict[str, Any] = {"label_kind": values.get("label_kind", "")}
    if "ignored_ids" in values:
        ignored["ignored_ids"] = tuple(values["ignored_ids"])
    elif any(IGNORE in each for each in ids):
        ignored["ignored_ids"] = ()  # the default cannot be meant
    if "ignored_colors" in values:
        ignored["ignored_colors"] = tuple(tuple(color) for color in values["ignored_colors"])
    return group_values(values["name"], tuple(each["name"] for each in classes), ids, colors, **ignored)


def _read_ids(field: str, value: Any) -> tuple[int, ...]:
    """Return the ids of one class, which the file gives as a number or as a list of numbers."""
    if not isinstance(value, list):
        _require_byte(field, value)
        return (value,)
    _require(value, field, value, "Give at least one integer from 0 to 255.")
    for i, each in enumerate(value):
        _require_byte(f"{field}[{i}]", each)
    return tuple(value)


def _read_colors(field: str, value: Any) -> tuple[Color, ...]:
    """Return the colours of one class, which the file gives as [r, g, b] or as a list of these."""
    if not (isinstance(value, list) and value and isinstance(value[0], list)):
        _require_color(field, value)
        return (tuple(value),)
    for i, each in enumerate(value):
        _require_color(f"{field}[{i}]", each)
    return tuple(tuple(each) for each in value)


def _require_fields(values: Any, where: str, required: set[str], optional: set[str]) -> None:
    fields = ", ".join(sorted(required | optional))
    if not isinstance(values, dict):
        raise ConfigError(f"{where} has the type {type(values).__name__}. Use an object with the fields {fields}.")
    for field in sorted(required - set(values)):
        raise ConfigError(f"{where} has no field {field!r}. Add it.")
    for field in sorted(set(values) - required - optional):
        raise ConfigError(f"{where} has a field {field!r}, which is not one of {fields}. Rename or remove it.")


def _require_color(field: str, value: Any) -> None:
    is_color = isinstance(value, list) and len(value) == 3 and all(is_byte(v) for v in value)
    _require(is_color, field, value, "Give three integers from 0 to 255, as [red, green, blue].")


def _require_byte(field: str, value: Any) -> None:
    _require(is_byte(value), field, value, "Give an integer from 0 to 255.")


def _require(is_valid: Any, field: str, value: Any, advice: str) -> None:
    if not is_valid:
        raise ConfigError(f"`{field}` (={value!r}) cannot be used. {advice}")
