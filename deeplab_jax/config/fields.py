"""Declare config fields with their defaults, documentation and checks, and how changing them affects stored weights."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

# How changing a field affects a network with stored weights:
#   "shapes": The stored arrays no longer fit.
#   "meaning": The stored arrays fit, but the network computes different outputs with them.
#   "run": The network is not affected.
Change = Literal["shapes", "meaning", "run"]


class Check(NamedTuple):
    """A condition on a field's value.

    Attributes:
      accepts: A function that returns whether a value is valid. It must handle every value of the field's type, and for tuple
        fields, any tuple.
      advice: One or two full sentences that tell the user what to do. They end the error message.
    """

    accepts: Callable[[Any], bool]
    advice: str


def field(
    default: Any,
    doc: str,
    check: Check | None = None,
    *,
    changes: Change = "run",
    part: str = "",
    is_used: Callable[[Any], bool] | None = None,
    needs: str = "",
) -> Any:
    """Declare a config field.

    Args:
      default: The default value.
      doc: The user documentation, including the unit.
      check: The condition on the value. None accepts every value of the field's type.
      changes: How changing the field affects a network with stored weights.
      part: The part of the network whose arrays depend on the field: "backbone", "aspp", "decoder", "aux", or "" if the field
        does not belong to a single part.
      is_used: A function that takes the config section and returns whether the section uses this field. An unused field has no
        effect. None means that the field is always used.
      needs: The setting without which the field is not used, for an error message.
    """
    metadata = {"doc": doc, "check": check, "changes": changes, "part": part, "is_used": is_used, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


def field_names(section: type, *, changes: tuple[Change, ...] = (), part: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the field names in a config section.

    Args:
      section: The section's dataclass.
      changes: If given, return only fields with one of these effects.
      part: If given, return only fields for one of these parts of the network.
    """
    return tuple(
        each.name
        for each in dataclasses.fields(section)
        if (not changes or each.metadata["changes"] in changes) and (not part or each.metadata["part"] in part)
    )


def find_unused(section: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields of a config section that are set to another value than their default, but have no effect."""
    return [
        each
        for each in dataclasses.fields(section)
        if each.metadata["is_used"] and not each.metadata["is_used"](section) and getattr(section, each.name) != each.default
    ]


def one_of(*choices: str) -> Check:
    """Return a check that accepts only the given strings.

    A `Literal` type would express the same thing, but command-line flags cannot set `Literal` fields.
    """
    return Check(lambda value: value in choices, f"Use one of: {', '.join(choices)}.")


def at_least(minimum: float, advice: str) -> Check:
    """Return a check that accepts numbers of at least `minimum`."""
    return Check(lambda value: value >= minimum, advice)


def above_zero() -> Check:
    """Return a check that accepts numbers above 0."""
    return Check(lambda value: value > 0, "Use a number above 0.")


def below_one(noun: str = "fraction") -> Check:
    """Return a check that accepts numbers in [0, 1). The error message calls the value a `noun`."""
    return Check(lambda value: 0 <= value < 1, f"Use a {noun} that is at least 0 and below 1.")


def integer_pair(minimum: int, advice: str) -> Check:
    """Return a check that accepts two integers of at least `minimum`."""
    return Check(lambda value: are_numbers(value, 2) and all(isinstance(n, int) and n >= minimum for n in value), advice)


def are_numbers(values: Any, count: int) -> bool:
    """Return whether `values` is a tuple of exactly `count` finite numbers."""
    is_tuple = isinstance(values, tuple) and len(values) == count
    return is_tuple and all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def are_one_or_more_numbers(values: Any) -> bool:
    """Return whether `values` is a tuple of one or more finite numbers."""
    return isinstance(values, tuple) and len(values) > 0 and are_numbers(values, len(values))


def are_strings(values: Any) -> bool:
    """Return whether `values` is a tuple of strings."""
    return isinstance(values, tuple) and all(isinstance(value, str) for value in values)


def are_distinct_strings(values: Any) -> bool:
    """Return whether `values` is a tuple of strings, each of which occurs once. It can be empty."""
    return are_strings(values) and len(set(values)) == len(values)


def is_pattern(text: Any) -> bool:
    """Return whether `text` is a valid regular expression."""
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return True
