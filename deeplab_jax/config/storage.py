"""A config as JSON values and back."""

import copy
import dataclasses
import hashlib
import json
import typing
from typing import Any

from deeplab_jax.config.schema import Config
from deeplab_jax.errors import ConfigError

# Fields of 0.1, and where they are in this version.
MOVED = {("optim", "aux_weight"): ("loss", "aux_weight")}


def to_dict(config: Config) -> dict[str, Any]:
    """Return the config as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest_of(values: dict[str, Any]) -> str:
    """Return the SHA-256 of a config as `to_dict` gives it: equal for equal configs, whatever machine they are on."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def from_dict(values: dict[str, Any]) -> Config:
    """Return the config that `to_dict` gave, in this version or an earlier one.

    Raises:
      ConfigError: a field is unknown to this version.
    """
    return _build(Config, _move(values), "")


def _move(values: Any) -> Any:
    """Return the values with each field in the place that it has in this version."""
    values = copy.deepcopy(values)
    for (section, name), (new_section, new_name) in MOVED.items():
        if isinstance(values, dict) and name in values.get(section, ()):
            values.setdefault(new_section, {})[new_name] = values[section].pop(name)
    return values


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"`{prefix.rstrip('.') or 'config'}` (={values!r}) is no set of fields")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"`{prefix}{unknown[0]}` is no field of this version's config: it was written by another version")
    return cls(**{name: _convert(hints[name], value, prefix + name) for name, value in values.items()})


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, name + ".")
    return _tuples(value) if isinstance(value, list) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
