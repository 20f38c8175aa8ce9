"""Convert a config to JSON values and back."""

import copy
import dataclasses
import hashlib
import json
import typing
from collections.abc import Callable, Iterator
from typing import Any

from deeplab_jax.config.schema import Config
from deeplab_jax.errors import ConfigError
from deeplab_jax.labels import to_plain

# Maps (section, field) in version 0.1 to (section, field) in this version.
MOVED_FIELDS = {("optim", "aux_weight"): ("loss", "aux_weight")}
# Maps an optimizer field of version 0.1 to a function of its value and the config that returns the fields with the same effect.
REPLACED_OPTIM_FIELDS: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "aux_lr_factor": lambda factor, config: {"lr_factors": [["aux_", factor]]} if factor != 1 and _has_aux_head(config) else {},
    "decay_norm_and_bias": lambda decays, config: {} if decays else {"no_decay": [".*/(scale|bias)"]},
}
# Fields of a label set that are stored only if they are used. Label sets that do not merge values are therefore stored as in
# versions without these fields, with the same digest.
OPTIONAL_LABEL_FIELDS = ("more_ids", "more_colors", "label_kind")


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain JSON values."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    for field in OPTIONAL_LABEL_FIELDS:
        if not values["labels"][field]:
            del values["labels"][field]
    return values


def flatten(config: Config) -> dict[str, Any]:
    """Return the values of `to_dict`, keyed by dotted field name, such as "optim.lr"."""
    return dict(_walk(to_dict(config), ""))


def _walk(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def digest_of(values: dict[str, Any]) -> str:
    """Return the SHA-256 digest of the JSON values from `to_dict`. Equal configs have the same digest on every machine."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def from_dict(values: dict[str, Any]) -> Config:
    """Rebuild a config from `to_dict` output, written by this version or an earlier one.

    Raises:
      ConfigError: `values` is malformed, or contains a field that does not exist in this version.
    """
    return _build(Config, _move_fields(values), "")


def _move_fields(values: Any) -> Any:
    """Return a copy of `values`, with fields of older versions replaced by those of this version."""
    if not isinstance(values, dict) or not all(isinstance(values.get(name, {}), dict) for name in ("optim", "loss")):
        return values  # `_build` says what is wrong
    values = copy.deepcopy(values)
    for (section, name), (new_section, new_name) in MOVED_FIELDS.items():
        if name in values.get(section, {}):
            values.setdefault(new_section, {})[new_name] = values[section].pop(name)
    optim = values.get("optim", {})
    for name, replace in REPLACED_OPTIM_FIELDS.items():
        if name in optim:
            optim |= replace(optim.pop(name), values)
    return values


def _has_aux_head(values: dict[str, Any]) -> bool:
    return isinstance(model := values.get("model"), dict) and bool(model.get("aux_head"))


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        name = prefix.rstrip(".") or "config"
        raise ConfigError(f"`{name}` (={values!r}) is not a set of config fields. Use a different checkpoint or file.")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(
            f"`{prefix}{unknown[0]}` is not a config field in this version. Use the version of deeplab_jax that wrote it."
        )
    required = [each.name for each in dataclasses.fields(cls) if _is_required(each)]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"`{prefix}{missing[0]}` is missing in the config. Use a different checkpoint or file.")
    return cls(**{name: _convert(hints[name], value, prefix + name) for name, value in values.items()})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, name + ".")
    return to_plain(value)
