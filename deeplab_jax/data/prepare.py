"""Writes prepared records: every sample decoded once, in parallel, shard by shard.

The manifest comes last and makes them valid. A run that is cut short leaves whole shards, each beside a JSON file that says
what it holds; the next run keeps those that still are what the source says.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from deeplab_jax.config import DataConfig
from deeplab_jax.data import freshness
from deeplab_jax.data.find import find_split
from deeplab_jax.data.iterate import iterate
from deeplab_jax.data.lists import Samples, describe
from deeplab_jax.data.records import (
    FORMAT,
    MANIFEST,
    Record,
    Shard,
    is_records,
    shard_from_json,
    shard_to_json,
)
from deeplab_jax.data.sources import read_sample, store_of
from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.files import replacing

SHARD_SAMPLES = 64  # half a gigabyte of Cityscapes


def prepare(data: DataConfig, out: str, splits: Sequence[str], console: Console) -> None:
    """Writes the records of `splits` to the folder `out`, which then serves as `data.root`.

    Args:
      data: of a config: root, source, kind of the labels, threads.
      out: a folder that does not exist yet, or of an earlier run: what it holds of unchanged samples is kept.
      splits: names.
      console: for progress.

    Raises:
      DataError: see `find.find_split`; a sample cannot be read.
      ConfigError: `out` holds something else, or cannot be written, or has too little room.
    """
    if is_records(data.root):
        raise DataError(f"`root` (={data.root!r}) holds prepared records: give the data set that they were made of")
    folder = epath.Path(out)
    source = data.source or str(epath.Path(data.root).resolve() if "://" not in data.root else data.root)
    found = {split: find_split(data, split, need_labels=split not in ("test",)) for split in splits}
    for split, samples in found.items():
        console.print(describe(split, samples))
    _require_folder(folder)
    others = _other_splits(folder, source, splits)
    plan = {split: _plan(folder, split, samples, source) for split, samples in found.items()}
    todo = {split: [part for part in parts if part.kept is None] for split, parts in plan.items()}
    if not any(todo.values()) and (folder / MANIFEST).exists():
        console.print(f"{out} holds them already")
    else:
        # Without it, what is written next is no set of records until all of it is there.
        (folder / MANIFEST).unlink(missing_ok=True)
        _require_room(folder, {split: sum(len(part.rows) for part in parts) for split, parts in todo.items()}, found)
    with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        for split, samples in found.items():
            task = bar.add_task(split, total=sum(len(part.rows) for part in todo[split]))
            rows = [i for part in todo[split] for i in part.rows]
            decoded = _decode(samples, rows, data.threads)
            for part in todo[split]:
                part.kept = _write_shard(folder, part, samples, source, decoded, lambda task=task: bar.advance(task))
    _write_manifest(folder, source, found, plan, others)
    _remove_rest(folder, {part.name for parts in plan.values() for part in parts}, splits)


@dataclasses.dataclass(slots=True)
class _Part:
    """A shard to be: its name, its samples' positions in the list, and itself once it is there."""

    name: str
    rows: range
    kept: Shard | None


def _plan(folder: epath.Path, split: str, samples: Samples, source: str) -> list[_Part]:
    starts = range(0, len(samples), SHARD_SAMPLES)
    parts = [_Part(f"{split}-{n:05d}", range(i, min(i + SHARD_SAMPLES, len(samples))), None) for n, i in enumerate(starts)]
    for part in parts:
        part.kept = _kept(folder, part, samples, source)
    return parts


def _kept(folder: epath.Path, part: _Part, samples: Samples, source: str) -> Shard | None:
    """The shard of an earlier run, if it is whole and made of what the source holds now."""
    try:
        values = json.loads((folder / f"{part.name}.json").read_text())
        shard = shard_from_json(values["shard"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    same = values["format"] == FORMAT and values["source"] == source and values["kind"] == samples.kind
    names = [(samples.images[i], "".join(samples.labels[i : i + 1])) for i in part.rows]
    if not same or names != [(record.image, record.label) for record in shard.records]:
        return None
    for i, record in zip(part.rows, shard.records, strict=True):
        if samples.store is None and not freshness.is_unchanged(record, samples, i):
            return None
        if samples.store is not None and samples.store.fingerprint(samples, i).hex() != record.fingerprint:
            return None
    return shard if _sha256(folder / shard.file) == shard.sha256 else None


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
    """{"image", "values", "fingerprint"} of the samples at `rows`, in that order."""
    store = store_of(samples)

    def sample(index: tf.Tensor) -> dict[str, tf.Tensor]:
        decoded = store.decoded(samples, index)
        return {name: value for name, value in decoded._asdict().items() if value is not None}

    def dataset(start: int, _: tuple[int, ...]) -> tf.data.Dataset:
        indices = tf.data.Dataset.from_tensor_slices(np.array(rows[start:], np.int64))
        decoded = indices.map(tf.autograph.experimental.do_not_convert(sample), num_parallel_calls=threads or tf.data.AUTOTUNE)
        return decoded.prefetch(2)

    def problem(i: int) -> DataError | None:
        try:
            read_sample(samples, i)
        except DataError as error:
            return error
        return None

    return iterate(samples, dataset, lambda number: [rows[number]], problem)


def _write_shard(
    folder: epath.Path, part: _Part, samples: Samples, source: str, decoded: Iterator[Mapping[str, np.ndarray]], tick: Any
) -> Shard:
    digest, records = hashlib.sha256(), []
    with replacing(folder / f"{part.name}.bin") as file:
        for i in part.rows:
            sample = next(decoded)
            record = _record(samples, i, sample)
            for array in (sample["image"], _label_bytes(sample.get("values"))):
                data = array.tobytes()
                file.write(data)
                digest.update(data)
            records.append(record)
            tick()
    shard = Shard(f"{part.name}.bin", digest.hexdigest(), tuple(records))
    note = {"format": FORMAT, "source": source, "kind": samples.kind, "shard": shard_to_json(shard)}
    with replacing(folder / f"{part.name}.json") as file:
        file.write(json.dumps(note).encode())
    return shard


def _record(samples: Samples, i: int, sample: Mapping[str, np.ndarray]) -> Record:
    names = (samples.images[i], *samples.labels[i : i + 1])
    height, width = sample["image"].shape[:2]
    values = sample.get("values")
    is_color = samples.kind == "color"
    return Record(
        image=names[0],
        label="".join(names[1:]),
        height=height,
        width=width,
        channels=0 if values is None else 3 if is_color else 1,
        values=() if values is None else tuple(np.unique(values).tolist()),
        fingerprint=sample["fingerprint"].tobytes().hex(),
        stamp=freshness.stamp(samples.root, names) if samples.store is None else (),
    )


def _label_bytes(values: np.ndarray | None) -> np.ndarray:
    """uint8: ids as they are, 24-bit colours as three channels."""
    if values is None:
        return np.empty(0, np.uint8)
    if values.dtype == np.uint8:
        return values
    return np.stack([values >> 16, values >> 8 & 255, values & 255], -1).astype(np.uint8)


def _other_splits(folder: epath.Path, source: str, splits: Sequence[str]) -> dict[str, Any]:
    """What an earlier run prepared of the same source and this one is not asked for, as the manifest has it."""
    try:
        values = json.loads((folder / MANIFEST).read_text())
        same = values["format"] == FORMAT and values["source"] == source
        return {name: split for name, split in values["splits"].items() if same and name not in splits}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_manifest(
    folder: epath.Path, source: str, found: Mapping[str, Samples], plan: Mapping[str, list[_Part]], others: Mapping[str, Any]
) -> None:
    splits = dict(others) | {
        split: {"kind": samples.kind, "shards": [shard_to_json(part.kept) for part in plan[split] if part.kept]}
        for split, samples in found.items()
    }
    with replacing(folder / MANIFEST) as file:
        file.write(json.dumps({"format": FORMAT, "source": source, "splits": splits}).encode())


def _remove_rest(folder: epath.Path, names: set[str], splits: Sequence[str]) -> None:
    """Shards of an earlier, longer list of these splits."""
    for path in folder.iterdir():
        split, _, number = path.stem.rpartition("-")
        if split in splits and number.isdigit() and path.suffix in (".bin", ".json") and path.stem not in names:
            path.unlink()


def _require_folder(folder: epath.Path) -> None:
    """An empty or new folder, or one of records, whole or begun."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise ConfigError(f"`--out` (={str(folder)!r}) cannot be used ({error.strerror}): name another folder") from None
    foreign = [name for name in names if not name.startswith(".") and not name.endswith((".bin", ".json"))]
    if foreign:
        raise ConfigError(f"`--out` (={str(folder)!r}) holds {foreign[0]}, which is no record: name a folder of its own")


def _require_room(folder: epath.Path, counts: Mapping[str, int], found: Mapping[str, Samples]) -> None:
    """Judged by the first sample of each split; what is rewritten needs room beside the old."""
    if "://" in str(folder):
        return
    needed = 0
    for split, count in counts.items():
        height, width = store_of(found[split]).size(found[split], 0)
        needed += count * height * width * (3 + bool(found[split].labels))
    free = shutil.disk_usage(os.fspath(folder)).free
    if needed > free:
        raise ConfigError(
            f"`--out` (={str(folder)!r}) has {free / 1e9:.1f} GB free, and the records take about {needed / 1e9:.1f}: make room"
        )
