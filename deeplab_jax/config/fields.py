"""How a config field is declared: its default, documentation, check, and what a change of it means for stored weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

# What a change does to stored arrays. "shapes": they no longer fit. "meaning": they fit, and compute something else.
# "run": neither.
Change = Literal["shapes", "meaning", "run"]


class Check(NamedTuple):
    """A condition on a field's value.

    Attributes:
      accepts: whether a value can be used; it gets any value of the field's type, and any tuple or list for a tuple.
      advice: what to do otherwise, for messages and for the reference.
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
) -> Any:
    """Declare a config field.

    Args:
      default: its default value.
      doc: what it is, with its unit.
      check: which values can be used.
      changes: what a change does to stored arrays.
      part: the part of the network whose arrays it shapes ("backbone", "aspp", "decoder", "aux"), where it shapes one alone.
      is_used: whether its section makes use of it; where not, all its values mean the same.
    """
    metadata = {"doc": doc, "check": check, "changes": changes, "part": part, "is_used": is_used}
    return dataclasses.field(default=default, metadata=metadata)


def names_of(section: type, *, changes: tuple[Change, ...] = (), part: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the names of a section's fields, those with one of `changes` and of `part` where these are given."""
    return tuple(
        each.name
        for each in dataclasses.fields(section)
        if (not changes or each.metadata["changes"] in changes) and (not part or each.metadata["part"] in part)
    )


def one_of(*choices: str) -> Check:
    """Accept some strings. (`Literal` would say it too, but flags cannot set fields of that type.)"""
    return Check(lambda value: value in choices, f"use one of {', '.join(choices)}")


def at_least(least: float, advice: str) -> Check:
    """Accept numbers from `least`."""
    return Check(lambda value: value >= least, advice)


def above_zero() -> Check:
    """Accept numbers above 0."""
    return Check(lambda value: value > 0, "use a number above 0")


def below_one(what: str = "share") -> Check:
    """Accept numbers from 0 to below 1."""
    return Check(lambda value: 0 <= value < 1, f"use a {what} from 0 to below 1")


def whole_pair(least: int, advice: str) -> Check:
    """Accept two whole numbers from `least`."""
    return Check(lambda value: are_numbers(value, 2) and all(isinstance(n, int) and n >= least for n in value), advice)


def some_numbers(advice: str) -> Check:
    """Accept a tuple of at least one number."""
    return Check(are_some_numbers, advice)


def are_numbers(values: Any, count: int) -> bool:
    """Return whether `values` is a tuple or list of `count` finite numbers."""
    is_list = isinstance(values, tuple | list) and len(values) == count
    return is_list and all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def are_some_numbers(values: Any) -> bool:
    """Return whether `values` is a tuple or list of at least one finite number."""
    return isinstance(values, tuple | list) and len(values) > 0 and are_numbers(values, len(values))
