"""Split work that needs no communication over several processes, with `--shard I/N`.

All processes run the same command, except for I. Each one lists all the work and does its share. What describes the whole, for
example a list of all files, is written by the process that ends last.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from deeplab_jax.errors import ConfigError
from deeplab_jax.files import write_atomically

T = TypeVar("T")
_ARRAY = "SLURM_ARRAY_TASK_"


@dataclasses.dataclass(frozen=True, slots=True)
class WorkShard:
    """One process's share of the work.

    Attributes:
      number: The share, from 1 to `count`.
      count: The number of shares.
      origin: Where the numbers come from, if not from the user.
    """

    number: int
    count: int
    origin: str = ""

    def __str__(self) -> str:
        return f"{self.number} of {self.count}"

    def take(self, items: Sequence[T]) -> list[T]:
        """Return this share of the items. Each item belongs to one share."""
        return list(items[self.number - 1 :: self.count])

    def describe(self) -> str:
        """Return a line for the start of a command."""
        origin = f", because this is {self.origin}. Use --shard 1/1 to process everything" if self.origin else ""
        return f"Shard {self}{origin}."

    def describe_missing(self, numbers: Collection[int]) -> str:
        """Return a sentence that names unfinished shards."""
        first = ", ".join(map(str, sorted(numbers)[:20])) + ", ..." * (len(numbers) > 20)
        names, verb = (f"Shard {first}", "is") if len(numbers) == 1 else (f"Shards {first}", "are")
        return f"{names} of {self.count} {verb} not done yet."


EVERYTHING = WorkShard(1, 1)


def choose_shard(text: str, environ: Mapping[str, str]) -> WorkShard:
    """Return the share that `--shard` names or, without the flag, the one of this task of a SLURM array.

    Args:
      text: The value of the flag, I/N with I from 1 to N, or "".
      environ: The environment variables.

    Raises:
      ConfigError: The value has another form, or the numbers of the array are not evenly spaced.
    """
    if not text:
        return _find_array_task(environ)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"`--shard` (={text!r}) cannot be used. Give I/N with I from 1 to N, such as 1/4.")
    return WorkShard(int(match[1]), int(match[2]))


def _find_array_task(environ: Mapping[str, str]) -> WorkShard:
    values = {name: environ.get(f"{_ARRAY}{name}", "") for name in ("ID", "MIN", "MAX", "COUNT")}
    if not all(value.isdigit() for value in values.values()):
        return EVERYTHING
    task, low, high, count = (int(value) for value in values.values())
    if count < 2:
        return EVERYTHING
    step, rest = divmod(high - low, count - 1)
    if rest or (task - low) % step:  # such as --array=1,5,7
        raise ConfigError(
            f"`--shard` cannot be derived from SLURM's array, whose {count} tasks are not evenly spaced from {low} to {high}. "
            "Set it to I/N with I from 1 to N, or to 1/1 to process everything."
        )
    return WorkShard((task - low) // step + 1, count, f"task {task} of SLURM's array")


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """Collects the results of all shards in hidden files, so that the process that ends last has all of them.

    Attributes:
      shard: This process's share.
      folder: The folder for the files.
      work: A digest of everything that the results depend on. Files of other work are ignored.
    """

    shard: WorkShard
    folder: epath.Path
    work: str

    def withdraw(self) -> None:
        """Remove this shard's result, before its work is done again."""
        if self.shard.count > 1:
            self._file(self.shard.number).unlink(missing_ok=True)

    def finish(self, result: Any, plan: str, say: Callable[[str], None]) -> list[Any] | None:
        """Add this shard's result, once its work is done.

        Args:
          result: A JSON value.
          plan: How the work was divided. Results with another plan count as missing.
          say: Called with a line that names the missing shards, if there are any.

        Returns:
          The results of all shards in order if this is the last one, and otherwise None. If several end at the same moment,
          all of them can be the last one, and must do the same. Call `clean` afterwards.
        """
        if self.shard.count == 1:
            return [result]
        with write_atomically(self._file(self.shard.number)) as file:
            file.write(json.dumps([plan, result]).encode())
        results = {}
        for number in range(1, self.shard.count + 1):
            with contextlib.suppress(FileNotFoundError):
                other_plan, other = json.loads(self._file(number).read_text())
                if other_plan == plan:
                    results[number] = other
        if missing := set(range(1, self.shard.count + 1)) - results.keys():
            # Another process that was the last one might be removing the files.
            if self._claim.exists() or not self._file(self.shard.number).exists():
                return None
            say(self.shard.describe_missing(missing))
            return None
        return [results[number] for number in sorted(results)]

    def clean(self) -> None:
        """Remove the results of all shards, once the last process has used them."""
        if self.shard.count == 1:
            return
        with write_atomically(self._claim):
            pass
        for number in range(1, self.shard.count + 1):
            self._file(number).unlink(missing_ok=True)
        self._claim.unlink(missing_ok=True)

    @property
    def _claim(self) -> epath.Path:
        return self.folder / f".shards-{self.work}.joined"

    def _file(self, number: int) -> epath.Path:
        return self.folder / f".shards-{self.work}.{number}-of-{self.shard.count}"
