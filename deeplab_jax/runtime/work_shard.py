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
from deeplab_jax.files import report_write_errors, write_atomically

T = TypeVar("T")
_ARRAY = "SLURM_ARRAY_TASK_"
_RESULT = ".shards-"  # how the names of files with results start


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


class MixedWorkError(ConfigError):
    """Two commands have written different results to the same folder at the same time."""


@dataclasses.dataclass(frozen=True, slots=True)
class Join:
    """Collects the results of all shards in hidden files, so that the process that ends last has all of them.

    The files stay, so a shard can be done again later.

    Attributes:
      shard: This process's share.
      folder: The folder for the files.
      work: A digest of everything that the results depend on.
      is_exclusive: Whether other work must not write to the same folder at the same time.
    """

    shard: WorkShard
    folder: epath.Path
    work: str
    is_exclusive: bool = True

    def withdraw(self) -> None:
        """Remove this shard's result, before its work is done again, and the results of other work if it is excluded."""
        with report_write_errors(self.folder):
            for path in [*self._list_other_work(), self._file(self.shard.number)]:
                path.unlink(missing_ok=True)

    def finish(self, result: Any, plan: str, say: Callable[[str], None]) -> list[Any] | None:
        """Add this shard's result, once its work is done.

        Args:
          result: A JSON value.
          plan: How the work was divided. Results with another plan count as missing.
          say: Called with a line that names the missing shards, if there are any.

        Returns:
          The results of all shards in order if this is the last one, and otherwise None. If several end at the same moment,
          all of them can be the last one, and must do the same.

        Raises:
          MixedWorkError: Other work has ended in the same folder meanwhile.
        """
        if self.shard.count == 1:
            return [result]
        with write_atomically(self._file(self.shard.number)) as file:
            file.write(json.dumps([plan, result]).encode())
        if self._list_other_work():
            for number in range(1, self.shard.count + 1):
                self._file(number).unlink(missing_ok=True)
            raise MixedWorkError(
                f"Another command with other inputs or settings has written to {self.folder} at the same time, so the files in "
                "it are mixed. Stop it, and run this command again for all shards."
            )
        results, differing = {}, []
        for number in range(1, self.shard.count + 1):
            with contextlib.suppress(FileNotFoundError):
                other_plan, other = json.loads(self._file(number).read_text())
                if other_plan == plan:
                    results[number] = other
                else:
                    differing.append(number)
        if missing := set(range(1, self.shard.count + 1)) - results.keys():
            hint = f" Shard {differing[0]} was done with other devices, or could not read the same inputs." if differing else ""
            say(self.shard.describe_missing(missing) + hint)
            return None
        return [results[number] for number in sorted(results)]

    def _file(self, number: int) -> epath.Path:
        return self.folder / f"{_RESULT}{self.work}.{number}-of-{self.shard.count}"

    def _list_other_work(self) -> list[epath.Path]:
        own = {self._file(number).name for number in range(1, self.shard.count + 1)}
        paths = self.folder.iterdir() if self.is_exclusive and self.folder.exists() else ()
        return [path for path in paths if path.name.startswith(_RESULT) and path.name not in own]
