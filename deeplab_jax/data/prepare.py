"""Write prepared records: decode every sample once, in parallel, and store the samples in shards.

The manifest is written last, and the records are not valid without it. An interrupted run leaves its complete shards behind,
each with a JSON sidecar file describing the shard. The next run reuses the shards that still match the source.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from etils import epath
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from deeplab_jax.buckets import is_url
from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import describe
from deeplab_jax.data.freshness import is_unchanged, read_stamp
from deeplab_jax.data.inspection import require_splits
from deeplab_jax.data.masks import Mask, find_distinct
from deeplab_jax.data.pipeline import iterate, map_in_parallel
from deeplab_jax.data.ranges import stat_file
from deeplab_jax.data.records import (
    FORMAT,
    MANIFEST,
    MOST_VALUES,
    Record,
    RecordLocation,
    Shard,
    Split,
    is_records,
    read_values,
    shard_from_json,
    shard_to_json,
)
from deeplab_jax.data.records_folder import (
    list_shard_files,
    read_other_splits,
    remove_file,
    remove_outdated,
    remove_temporary_files,
    require_records_folder,
    require_space,
    write_manifest,
)
from deeplab_jax.data.samples import Samples, read_sample
from deeplab_jax.data.survey import Survey
from deeplab_jax.data.suspicion import compare_palettes, describe_sample_mask, find_suspicions, sample_notes
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import advise_on_write_error, write_atomically
from deeplab_jax.runtime.machine import usable_cores
from deeplab_jax.runtime.work_shard import EVERYTHING, WorkShard

SHARD_SAMPLES = 64  # samples per shard; about half a gigabyte for Cityscapes


def prepare(data: DataConfig, out: str, splits: Sequence[str], console: Console, share: WorkShard = EVERYTHING) -> None:
    """Write records for `splits` to the folder `out`, which can then be used as `data.root`.

    If the work is split over several processes, each one writes whole record shards, and the last one writes the manifest.

    Args:
      data: A config's data section. Only the root, the source, the channels, the value range, the label kind and the thread
        count are used.
      out: A new folder, or the output folder from an earlier run. Existing shards are reused if their samples are unchanged.
      splits: The split names. "train+val" counts as two splits.
      console: The console for progress output.
      share: This process's share of the record shards.

    Raises:
      DataError: A split cannot be found (see `find.find_split`), a sample cannot be read, or the masks are suspicious.
      ConfigError: `out` contains other files, cannot be written, or has too little free space.
    """
    if not data.source and is_records(data.root):
        raise DataError(f"`root` (={data.root!r}) already holds prepared records. Pass the original data set folder instead.")
    splits = list(dict.fromkeys(part for split in splits for part in split.split("+")))
    folder = epath.Path(out)
    root = data.root if is_url(data.root) or not data.root else str(epath.Path(data.root).resolve())
    source, data_dir = (data.source, root) if data.source else (root, "")
    sets = require_splits(data, splits)
    for split, samples in sets.items():
        for line in (describe(split, samples), *(f"note: {note}" for note in samples.notes)):
            console.print(line, markup=False)
    require_records_folder(folder)
    output = _Output(folder, source, data, console)
    read_other_splits(folder, source, splits)  # reject a different source before changing any files
    surveys = {split: Survey(is_color=samples.kind == "color") for split, samples in sets.items()}
    plan = {split: _plan_shards(split, len(samples), surveys[split]) for split, samples in sets.items()}
    jobs = [(planned, sets[split]) for split, each in plan.items() for planned in each]
    own = share.take(jobs)
    remove_temporary_files(folder, splits, {planned.name for planned, _ in own} if share.count > 1 else None)
    _reuse_shards(output, own)
    todo = {
        split: [planned for planned, each in own if each is samples and not planned.shard] for split, samples in sets.items()
    }
    if not any(todo.values()) and (folder / MANIFEST).exists():
        console.print(f"{'Shard ' + str(share) + ' of ' if share.count > 1 else ''}{out} is already up to date", markup=False)
    else:
        _require_space(folder, todo, sets, data.channels)
        for samples in sets.values():
            for line in sample_notes(samples, None):
                console.print(line, markup=False)
        # Remove these splits from the manifest until all their shards are complete. Reread the other splits each time,
        # because another process might have prepared some of them in the meantime.
        write_manifest(folder, source, data_dir, read_other_splits(folder, source, splits))
        _write_shards(output, sets, todo)
    if missing := _find_missing(output, jobs, share):
        line = f"{share.describe_missing(missing)} The last one to end writes {folder / MANIFEST}."
        console.print(line, markup=False, soft_wrap=True)
        return
    _require_plausible_masks(sets, surveys)
    shards = {split: [planned.shard for planned in plan[split] if planned.shard] for split in sets}
    prepared = {split: {"kind": sets[split].kind, "shards": [*map(shard_to_json, each)]} for split, each in shards.items()}
    write_manifest(folder, source, data_dir, read_other_splits(folder, source, splits) | prepared)
    files = {shard.file for each in shards.values() for shard in each}
    remove_outdated(folder, files | {f"{planned.name}.json" for planned, _ in jobs}, splits)
    if share.count > 1:
        console.print(f"All {share.count} shards are done. {folder / MANIFEST} is written.", markup=False, soft_wrap=True)


def _require_plausible_masks(sets: Mapping[str, Samples], surveys: Mapping[str, Survey]) -> None:
    """Raise DataError if the masks are suspicious. `data check` cannot see the palettes of masks in records."""
    suspicions = [text for split, survey in surveys.items() for text in find_suspicions(survey, None, sets[split].kind)]
    for text in (*suspicions, *compare_palettes(surveys.values())):
        raise DataError(f"The records of {', '.join(sets)} cannot be used. {text}")


@dataclasses.dataclass(frozen=True, slots=True)
class _Output:
    """Where the records are written, and what they are made from.

    Attributes:
      folder: The records folder.
      source: The original data set: its root folder, or tfds:NAME.
      data: The config's data section.
      console: The console for progress output.
    """

    folder: epath.Path
    source: str
    data: DataConfig
    console: Console

    @contextlib.contextmanager
    def work(self) -> Iterator[tuple[Progress, ThreadPoolExecutor]]:
        """Show a progress bar and run a thread pool in the `with` block."""
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar, ThreadPoolExecutor(self.data.threads or usable_cores()) as pool:
            yield bar, pool


def _find_missing(output: _Output, jobs: Sequence["_Job"], share: WorkShard) -> list[int]:
    """Return the numbers of the shares of the work that are not done. If there are none, set `shard` on all planned shards."""
    others = [number for number in range(1, share.count + 1) if number != share.number]
    shares = {number: WorkShard(number, share.count).take(jobs) for number in others}
    missing = [
        number
        for number, each in shares.items()
        if not all((output.folder / f"{planned.name}.json").exists() for planned, _ in each)
    ]
    if missing:  # do not read what others have written before all of it is there
        return missing
    _reuse_shards(output, [job for each in shares.values() for job in each])
    return [number for number, each in shares.items() if not all(planned.shard for planned, _ in each)]


def _write_shards(output: _Output, sets: Mapping[str, Samples], todo: Mapping[str, Sequence["_PlannedShard"]]) -> None:
    old_versions = list_shard_files(output.folder)
    with output.work() as (bar, pool):
        for split, samples in sets.items():
            rows = [i for planned in todo[split] for i in planned.rows]
            task = bar.add_task(split, total=len(rows))
            # Record the stamps (size and modification time) before reading. If a file changes during the read, the next run
            # then sees a different stamp and reads the file again.
            stamps = {i: read_stamp(samples, i) for i in rows}
            decoded = _decode(samples, rows, output.data.threads)
            for planned in todo[split]:
                advance = functools.partial(bar.advance, task)
                planned.shard = _write_shard(output, planned, samples, stamps, decoded, pool, advance)
                for path in old_versions.get(planned.name, ()):
                    if path.name != planned.shard.file:
                        remove_file(path)


@dataclasses.dataclass(slots=True)
class _PlannedShard:
    """A shard to write, or to reuse from an earlier run.

    Attributes:
      name: The file name without the SHA-256 digits and the suffix, such as "train-00000".
      rows: The list positions of the samples in the shard.
      survey: The values in the masks of the split, to which those of the shard are added when it is written or reused.
      shard: The shard, or None until it has been written or reused.
    """

    name: str
    rows: range
    survey: Survey
    shard: Shard | None = None


_Job = tuple[_PlannedShard, Samples]


def _plan_shards(split: str, count: int, survey: Survey) -> list[_PlannedShard]:
    starts = range(0, count, SHARD_SAMPLES)
    return [_PlannedShard(f"{split}-{n:05d}", range(i, min(i + SHARD_SAMPLES, count)), survey) for n, i in enumerate(starts)]


def _reuse_shards(output: _Output, jobs: Sequence["_Job"]) -> None:
    """Set `shard` on each planned shard that an earlier run, or another process, has already written.

    The shards are checked in parallel, because computing the checksums for a large data set takes minutes on one core.
    """
    if not jobs:
        return

    def reuse(job: _Job) -> tuple[Shard | None, list[Mask]]:
        planned, samples = job
        shard = _reuse_shard(output, planned, samples)
        return shard, list(_read_masks(output.folder, shard, samples, planned.rows)) if shard and samples.labels else []

    with output.work() as (bar, pool):
        task = bar.add_task("looking for finished shards", total=len(jobs))
        for (planned, samples), (shard, masks) in zip(jobs, pool.map(reuse, jobs), strict=True):
            planned.shard = shard
            for i, mask in zip(planned.rows, masks, strict=False):
                planned.survey.add(samples.labels[i], mask)
            bar.advance(task)


def _reuse_shard(output: _Output, planned: _PlannedShard, samples: Samples) -> Shard | None:
    """Return an earlier run's shard if it is intact and its source samples are unchanged, or None otherwise."""
    folder, bands, value_range = output.folder, output.data.channels, tuple(output.data.value_range)
    try:
        values = json.loads((folder / f"{planned.name}.json").read_text())
        shard = shard_from_json(values["shard"])
        is_same_kind = (values["format"], values["kind"]) == (FORMAT, samples.kind)
        has_moved = values["source"] != output.source
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    names = [(samples.images[i], "".join(samples.labels[i : i + 1])) for i in planned.rows]
    if not is_same_kind or names != [(record.image, record.label) for record in shard.records]:
        return None
    if any((record.bands, record.value_range) != (bands, value_range) for record in shard.records):
        return None
    # Store the current stamps (size and modification time), so that the next run does not reread files that were only touched.
    records = tuple(
        dataclasses.replace(record, stamp=read_stamp(samples, i)) for i, record in zip(planned.rows, shard.records, strict=True)
    )
    # If the source has moved, compare contents, because a different file could have the same size and modification time.
    recorded = [dataclasses.replace(record, stamp=()) for record in shard.records] if has_moved else shard.records
    unchanged = all(is_unchanged(record, samples, i) for i, record in zip(planned.rows, recorded, strict=True))
    if not unchanged or _sha256(folder / shard.file) != shard.sha256:
        return None
    updated = dataclasses.replace(shard, records=records)
    if has_moved or updated != shard:
        _write_sidecar(output, planned.name, samples.kind, updated)
    return updated


def _read_masks(folder: epath.Path, shard: Shard, samples: Samples, rows: Sequence[int]) -> Iterator[Mask]:
    """Yield what a survey needs of each mask in a shard."""
    file = stat_file(str(folder / shard.file))
    for i, (_, offset, record) in zip(rows, Split(samples.kind, (shard,)).records(), strict=True):
        yield describe_sample_mask(samples, i, read_values(RecordLocation(file, offset, record), 0, record.height))


def _sha256(path: epath.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _decode(samples: Samples, rows: Sequence[int], threads: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield a dict of `DecodedSample` fields ("image", "values", "fingerprint") for each sample in `rows`, in order."""

    def read(index: tf.Tensor) -> dict[str, tf.Tensor]:
        sample = samples.store.decode(samples, index)
        return {name: value for name, value in sample._asdict().items() if value is not None}

    def dataset(start: int, _: tuple[int, ...]) -> tf.data.Dataset:
        indices = tf.data.Dataset.from_tensor_slices(np.array(rows[start:], np.int64))
        return map_in_parallel(indices, read, threads).prefetch(2)

    def check(i: int) -> DataError | None:
        try:
            read_sample(samples, i)
        except DataError as error:
            return error
        return None

    return iterate(samples, dataset, lambda number: [rows[number]], check)


def _write_shard(
    output: _Output,
    planned: _PlannedShard,
    samples: Samples,
    stamps: Mapping[int, tuple[int, ...]],
    decoded: Iterator[Mapping[str, np.ndarray]],
    pool: ThreadPoolExecutor,
    advance: Callable[[], None],
) -> Shard:
    digest, records, masks = hashlib.sha256(), [], {}
    temporary = output.folder / f"{planned.name}.{os.getpid()}.bin"  # the final name includes the checksum
    with write_atomically(temporary) as file:
        for i in planned.rows:
            sample = next(decoded)
            for array in (sample["image"], _split_colors(sample.get("values"))):
                data = array.reshape(-1).data
                file.write(data)
                digest.update(data)
            records.append(_make_record(samples, i, sample, stamps[i], tuple(output.data.value_range)))
            if "values" in sample:
                masks[i] = pool.submit(describe_sample_mask, samples, i, sample["values"])
            advance()
    for i, mask in masks.items():
        planned.survey.add(samples.labels[i], mask.result())
    shard = Shard(f"{planned.name}-{digest.hexdigest()[:8]}.bin", digest.hexdigest(), tuple(records))
    try:
        temporary.replace(output.folder / shard.file)
    except OSError as error:
        raise ConfigError(f"{temporary} cannot be renamed ({error.strerror}). {advise_on_write_error(error)}.") from None
    _write_sidecar(output, planned.name, samples.kind, shard)
    return shard


def _write_sidecar(output: _Output, name: str, kind: str, shard: Shard) -> None:
    description = {"format": FORMAT, "source": output.source, "kind": kind, "shard": shard_to_json(shard)}
    with write_atomically(output.folder / f"{name}.json") as file:
        file.write(json.dumps(description).encode())


def _make_record(
    samples: Samples, i: int, sample: Mapping[str, np.ndarray], stamp: tuple[int, ...], value_range: tuple[float, ...]
) -> Record:
    height, width, bands = sample["image"].shape
    values = sample.get("values")
    return Record(
        image=samples.images[i],
        label="".join(samples.labels[i : i + 1]),
        height=height,
        width=width,
        channels=_count_label_channels(samples),
        values=() if values is None else find_distinct(values)[:MOST_VALUES],
        fingerprint=sample["fingerprint"].tobytes().hex(),
        stamp=stamp,
        bands=bands,
        value_range=value_range,
    )


def _count_label_channels(samples: Samples) -> int:
    """Return the number of bytes per label pixel: 3 for colours, 1 for ids, or 0 without labels."""
    if not samples.labels:
        return 0
    return 3 if samples.kind == "color" else 1


def _split_colors(values: np.ndarray | None) -> np.ndarray:
    """Return label values as uint8. Ids are unchanged, and 24-bit colours are split into three channels."""
    if values is None:
        return np.empty(0, np.uint8)
    if values.dtype == np.uint8:
        return values
    return np.stack([values >> 16, values >> 8 & 255, values & 255], -1).astype(np.uint8)


def _require_space(
    folder: epath.Path, todo: Mapping[str, Sequence[_PlannedShard]], sets: Mapping[str, Samples], bands: int
) -> None:
    """Check that the disk has enough free space for the new shards.

    The estimate assumes that all samples in a split are as large as the first one to be written, and subtracts the size of
    the shards that will be replaced.

    Raises:
      ConfigError: The disk has too little free space.
    """
    if is_url(folder):
        return
    needed, versions = 0, list_shard_files(folder)
    for split, plan in todo.items():
        if not plan:
            continue
        height, width = sets[split].store.size(sets[split], plan[0].rows[0])
        needed += sum(len(planned.rows) for planned in plan) * height * width * (bands + _count_label_channels(sets[split]))
        # Without `os.stat`, epath would look up the owner's name, which user ids in containers often lack.
        needed -= sum(os.stat(path).st_size for planned in plan for path in versions.get(planned.name, ()))
    require_space(folder, needed)
