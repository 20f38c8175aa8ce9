"""Describe how a recipe follows the published config of another library: a row for each setting, with both values."""

import dataclasses
import fnmatch
import operator
import pathlib
import runpy
from typing import Any

from deeplab_jax.config import Config

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting.

    Attributes:
      relation: `equal` (one value each, and they are the same), `same` (the same meaning in other terms), `differs`, or `no
        effect` on the trained network.
      theirs: Names in the reference's config. A pattern such as `env_cfg.*` matches several.
      ours: Our fields with their values. The fields of an `equal` row have the reference's value.
      note: Why it is the same, or how it differs.
    """

    relation: str
    theirs: tuple[str, ...]
    ours: dict[str, Any]
    note: str = ""


def equal(theirs: str, ours: str) -> Row:
    return Row("equal", (theirs,), {ours: ...})


def same(theirs: str, ours: dict[str, Any], note: str) -> Row:
    return Row("same", tuple(theirs.split()), ours, note)


def differs(theirs: str, ours: dict[str, Any], note: str) -> Row:
    return Row("differs", tuple(theirs.split()), ours, note)


def no_effect(theirs: str, ours: dict[str, Any], note: str) -> Row:
    return Row("no effect", tuple(theirs.split()), ours, note)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A recipe and the config that it follows.

    Attributes:
      recipe: The recipe's name in configs/.
      source: The reference's config and its revision.
      score: The published score, and what exactly it belongs to.
      reference: All values of the reference's config, with what it inherits. A name in parentheses is a default, or in the
        command.
      rows: What became of each of them.
      plan: What `deeplab-jax plan` estimates for 1 and for 8 H100 GPUs: memory per device, and the run's time at the peak rate
        and at 40 % of it.
    """

    recipe: str
    source: str
    score: str
    reference: dict[str, Any]
    rows: tuple[Row, ...]
    plan: dict[int, tuple[str, str, str]]


def load_config(trace: Trace) -> Config:
    return runpy.run_path(str(CONFIGS / f"{trace.recipe}.py"))["get_config"]()


def match_names(row: Row, trace: Trace) -> list[str]:
    """Return the names in the reference's config that a row is about."""
    return [name for name in trace.reference if any(fnmatch.fnmatchcase(name, pattern) for pattern in row.theirs)]


def list_ours(row: Row, trace: Trace) -> dict[str, Any]:
    """Return the fields of a row with the values that the row says they have."""
    if row.relation == "equal":
        return dict.fromkeys(row.ours, trace.reference[row.theirs[0]])
    return row.ours


def read_field(config: Config, name: str) -> Any:
    return operator.attrgetter(name)(config)
