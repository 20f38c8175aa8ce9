"""Writes prepared records: every sample decoded once, in parallel, shard by shard.

The manifest comes last and makes them valid. An interrupted run leaves whole shards, each beside a JSON file that says
what it holds; the next run keeps those that still are what the source says.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import describe, find_split
from deeplab_jax.data.pipeline import iterate, map_in_parallel
from deeplab_jax.data.records import (
    FORMAT,
    MANIFEST,
    MOST_VALUES,
    NOTE,
    SHARD,
    Record,
    Shard,
    is_records,
    is_unchanged,
    read_stamp,
    shard_from_json,
    shard_to_json,
)
from deeplab_jax.data.samples import Samples, read_sample
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import replacing
from deeplab_jax.runtime.machine import usable_cores

SHARD_SAMPLES = 64  # half a gigabyte of Cityscapes
# What the process `pid` is writing: the manifest, a note or a shard, or a shard that has yet to get its name.
BEGUN = re.compile(rf"\.?(?:{re.escape(MANIFEST)}|(?P<split>.+)-\d{{5}}(?:\.json)?)\.(?P<pid>\d+)\.(?:new|bin|bin\.\d+\.new)")


def prepare(data: DataConfig, out: str, splits: Sequence[str], console: Console) -> None:
    """Write the records of `splits` to the folder `out`, which then serves as `data.root`.

    Args:
      data: of a config: root, source, kind of the labels, threads.
      out: a folder that does not exist yet, or of an earlier run: what it holds of unchanged samples is kept.
      splits: names; "train+val" are two.
      console: for progress.

    Raises:
      DataError: see `find.find_split`; a sample cannot be read.
      ConfigError: `out` holds something else, or cannot be written, or has too little room.
    """
    if not data.source and is_records(data.root):
        raise DataError(f"`root` (={data.root!r}) holds prepared records: give the data set that they were made of")
    splits = list(dict.fromkeys(part for split in splits for part in split.split("+")))
    folder = epath.Path(out)
    place = data.root if "://" in data.root or not data.root else str(epath.Path(data.root).resolve())
    made_of = (data.source, place) if data.source else (place, "")
    source = made_of[0]
    sets = {split: find_split(data, split, need_labels=split != "test") for split in splits}
    for split, samples in sets.items():
        console.print(describe(split, samples), markup=False)
    _require_folder(folder)
    _other_splits(folder, source, splits)  # refuses those of another source, before anything is touched
    _remove_left_over(folder, splits)
    plan = {split: _parts(split, len(samples)) for split, samples in sets.items()}
    _reuse_shards(folder, plan, sets, source, data.threads, console)
    todo = {split: [part for part in parts if part.kept is None] for split, parts in plan.items()}
    if not any(todo.values()) and (folder / MANIFEST).exists():
        console.print(f"{out} holds them already", markup=False)
    else:
        _require_room(folder, todo, sets)
        # What is written next is no set of records until all of it is there. The other splits are read each time:
        # another process may have prepared some meanwhile.
        _write_manifest(folder, made_of, _other_splits(folder, source, splits))
        _write_shards(folder, sets, todo, source, data.threads, console)
    made = {split: _as_json(samples, plan[split]) for split, samples in sets.items()}
    _write_manifest(folder, made_of, _other_splits(folder, source, splits) | made)
    parts = [part for each in plan.values() for part in each]
    _remove_rest(folder, {f"{part.name}.json" for part in parts} | {part.kept.file for part in parts if part.kept}, splits)


def _write_shards(
    folder: epath.Path,
    sets: Mapping[str, Samples],
    todo: Mapping[str, Sequence["_Part"]],
    source: str,
    threads: int,
    console: Console,
) -> None:
    with _progress(console) as bar:
        for split, samples in sets.items():
            rows = [i for part in todo[split] for i in part.rows]
            task = bar.add_task(split, total=len(rows))
            # Taken before the files are read: one that changes meanwhile will be read again.
            stamps = {i: read_stamp(samples, i) for i in rows}
            decoded = _decode(samples, rows, threads)
            for part in todo[split]:
                part.kept = _write_shard(folder, part, samples, source, stamps, decoded, functools.partial(bar.advance, task))


def _progress(console: Console) -> Progress:
    return Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console)


@dataclasses.dataclass(slots=True)
class _Part:
    """A shard to be: its name but for the content, its samples' positions in the list, and itself once it is there."""

    name: str
    rows: range
    kept: Shard | None


def _parts(split: str, count: int) -> list[_Part]:
    starts = range(0, count, SHARD_SAMPLES)
    return [_Part(f"{split}-{n:05d}", range(i, min(i + SHARD_SAMPLES, count)), None) for n, i in enumerate(starts)]


def _reuse_shards(
    folder: epath.Path,
    plan: Mapping[str, Sequence[_Part]],
    sets: Mapping[str, Samples],
    source: str,
    threads: int,
    console: Console,
) -> None:
    """Set `kept` of every part. Many at once: checksums of what was prepared take minutes on one core."""
    jobs = [(part, sets[split]) for split, parts in plan.items() for part in parts]
    with _progress(console) as bar, ThreadPoolExecutor(threads or usable_cores()) as pool:
        task = bar.add_task("what is there", total=len(jobs))
        for (part, _), shard in zip(
            jobs, pool.map(lambda job: _reuse_shard(folder, job[0], job[1], source), jobs), strict=True
        ):
            part.kept = shard
            bar.advance(task)


def _reuse_shard(folder: epath.Path, part: _Part, samples: Samples, source: str) -> Shard | None:
    """Return the shard of an earlier run, if it is whole and made of what the source holds now."""
    try:
        values = json.loads((folder / f"{part.name}.json").read_text())
        shard = shard_from_json(values["shard"])
        same, moved = (values["format"], values["kind"]) == (FORMAT, samples.kind), values["source"] != source
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    names = [(samples.images[i], "".join(samples.labels[i : i + 1])) for i in part.rows]
    if not same or names != [(record.image, record.label) for record in shard.records]:
        return None
    # Files that were touched get their new stamp, so that the next training need not read them.
    records = tuple(dataclasses.replace(r, stamp=read_stamp(samples, i)) for i, r in zip(part.rows, shard.records, strict=True))
    made_of = [dataclasses.replace(r, stamp=()) for r in shard.records] if moved else shard.records
    unchanged = all(is_unchanged(record, samples, i) for i, record in zip(part.rows, made_of, strict=True))
    if not unchanged or _sha256(folder / shard.file) != shard.sha256:
        return None
    kept = dataclasses.replace(shard, records=records)
    if moved or kept != shard:
        _write_note(folder, part.name, samples.kind, source, kept)
    return kept


def _sha256(path: epath.Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError:
        return ""
    return digest.hexdigest()


def _decode(samples: Samples, rows: Sequence[int], threads: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield {"image", "values", "fingerprint"} of the samples at `rows`, in that order."""

    def read(index: tf.Tensor) -> dict[str, tf.Tensor]:
        sample = samples.store.decode(samples, index)
        return {name: value for name, value in sample._asdict().items() if value is not None}

    def dataset(start: int, _: tuple[int, ...]) -> tf.data.Dataset:
        indices = tf.data.Dataset.from_tensor_slices(np.array(rows[start:], np.int64))
        return map_in_parallel(indices, read, threads).prefetch(2)

    def problem(i: int) -> DataError | None:
        try:
            read_sample(samples, i)
        except DataError as error:
            return error
        return None

    return iterate(samples, dataset, lambda number: [rows[number]], problem)


def _write_shard(
    folder: epath.Path,
    part: _Part,
    samples: Samples,
    source: str,
    stamps: Mapping[int, tuple[int, ...]],
    decoded: Iterator[Mapping[str, np.ndarray]],
    tick: Callable[[], None],
) -> Shard:
    digest, records = hashlib.sha256(), []
    begun = folder / f"{part.name}.{os.getpid()}.bin"  # what its name will be is known at its end
    with replacing(begun) as file:
        for i in part.rows:
            sample = next(decoded)
            for array in (sample["image"], _label_bytes(sample.get("values"))):
                data = array.tobytes()
                file.write(data)
                digest.update(data)
            records.append(_record(samples, i, sample, stamps[i]))
            tick()
    shard = Shard(f"{part.name}-{digest.hexdigest()[:8]}.bin", digest.hexdigest(), tuple(records))
    try:
        begun.replace(folder / shard.file)
    except OSError as error:
        raise ConfigError(f"{begun} cannot be renamed ({error.strerror}): fix this, or name another folder") from None
    _write_note(folder, part.name, samples.kind, source, shard)
    for path in _versions(folder, part):
        if path.name != shard.file:
            _unlink(path)
    return shard


def _versions(folder: epath.Path, part: _Part) -> list[epath.Path]:
    """Return the shards of a part that exist, whatever they hold."""
    return [path for path in folder.iterdir() if SHARD.fullmatch(path.name) and path.name[:-13] == part.name]


def _write_note(folder: epath.Path, name: str, kind: str, source: str, shard: Shard) -> None:
    note = {"format": FORMAT, "source": source, "kind": kind, "shard": shard_to_json(shard)}
    with replacing(folder / f"{name}.json") as file:
        file.write(json.dumps(note).encode())


def _record(samples: Samples, i: int, sample: Mapping[str, np.ndarray], stamp: tuple[int, ...]) -> Record:
    height, width = sample["image"].shape[:2]
    values = sample.get("values")
    return Record(
        image=samples.images[i],
        label="".join(samples.labels[i : i + 1]),
        height=height,
        width=width,
        channels=_channels(samples),
        values=() if values is None else tuple(np.unique(values)[:MOST_VALUES].tolist()),
        fingerprint=sample["fingerprint"].tobytes().hex(),
        stamp=stamp,
    )


def _channels(samples: Samples) -> int:
    """Return the bytes of a label's pixel."""
    if not samples.labels:
        return 0
    return 3 if samples.kind == "color" else 1


def _label_bytes(values: np.ndarray | None) -> np.ndarray:
    """Return uint8: ids as they are, 24-bit colours as three channels."""
    if values is None:
        return np.empty(0, np.uint8)
    if values.dtype == np.uint8:
        return values
    return np.stack([values >> 16, values >> 8 & 255, values & 255], -1).astype(np.uint8)


def _as_json(samples: Samples, parts: Sequence[_Part]) -> dict[str, Any]:
    return {"kind": samples.kind, "shards": [shard_to_json(part.kept) for part in parts if part.kept]}


def _other_splits(folder: epath.Path, source: str, splits: Sequence[str]) -> dict[str, Any]:
    """Return the splits that an earlier run prepared of the same source and this one is not asked for, as in the manifest."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
        others = {name: split for name, split in values["splits"].items() if name not in splits}
        made_of, known = values["source"], values["format"] == FORMAT
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    if others and made_of != source:
        raise ConfigError(
            f"`--out` (={str(folder)!r}) holds records of {made_of} in {', '.join(others)}: prepare all its splits again, or "
            "name another folder"
        )
    return others if known else {}


def _write_manifest(folder: epath.Path, made_of: tuple[str, str], splits: Mapping[str, Any]) -> None:
    """Write the manifest, `made_of` a source and its data_dir; remove it where there are no splits."""
    if not splits:
        _unlink(folder / MANIFEST)
        return
    text = json.dumps({"format": FORMAT, "source": made_of[0], "data_dir": made_of[1], "splits": splits})
    if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_text() != text:
        with replacing(folder / MANIFEST) as file:
            file.write(text.encode())


def _remove_rest(folder: epath.Path, names: set[str], splits: Sequence[str]) -> None:
    """Remove shards of an earlier, longer list of these splits, and of other contents."""
    for path in folder.iterdir():
        if _split_of(path.name) in splits and path.name not in names:
            _unlink(path)


def _split_of(name: str) -> str:
    """Return the split of a shard or of the note beside it; "" for another file."""
    match = NOTE.fullmatch(name) or SHARD.fullmatch(name)
    return match["split"] if match else ""


def _require_folder(folder: epath.Path) -> None:
    """Require an empty or new folder, or one of records, complete or not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise ConfigError(f"`--out` (={str(folder)!r}) cannot be used ({error.strerror}): name another folder") from None
    ours = [name for name in names if name.startswith(".") or name == MANIFEST or _split_of(name) or BEGUN.fullmatch(name)]
    foreign = [name for name in names if name not in ours]
    if foreign:
        raise ConfigError(f"`--out` (={str(folder)!r}) holds {foreign[0]}, which is no record: name a folder of its own")


def _remove_left_over(folder: epath.Path, splits: Sequence[str]) -> None:
    """Remove files of these splits, and manifests, that a process was writing when it was killed."""
    for path in folder.iterdir():
        match = BEGUN.fullmatch(path.name)
        if match and (not match["split"] or match["split"] in splits) and not _is_alive(int(match["pid"])):
            _unlink(path)


def _is_alive(process: int) -> bool:
    """Whether another process of this machine has that number. On Windows, where asking would end it, the answer is yes."""
    if process == os.getpid():
        return False
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _unlink(path: epath.Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be removed ({error.strerror}): fix this, or name another folder") from None


def _require_room(folder: epath.Path, todo: Mapping[str, Sequence[_Part]], sets: Mapping[str, Samples]) -> None:
    """Estimate the size by the first sample of each split; shards that are replaced free their room."""
    if "://" in str(folder):
        return
    needed = 0
    for split, parts in todo.items():
        if not parts:
            continue
        height, width = sets[split].store.size(sets[split], parts[0].rows[0])
        needed += sum(len(part.rows) for part in parts) * height * width * (3 + _channels(sets[split]))
        needed -= sum(path.stat().length for part in parts for path in _versions(folder, part))
    free = shutil.disk_usage(os.fspath(folder)).free
    if needed > free:
        raise ConfigError(
            f"`--out` (={str(folder)!r}) has {free / 1e9:.3g} GB free, and the records take about {needed / 1e9:.3g}: make room"
        )
