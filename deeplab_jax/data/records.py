"""Prepared records: samples decoded once, as raw bytes in large files, of which a window is read without the rest.

A folder of records holds `records.json` and, for each split, shards `<split>-00000-1a2b3c4d.bin`: for each sample the image's
bytes (uint8 [h, w, 3]) and then the label's values (uint8 [h, w] ids, or [h, w, 3] colours). `prepare.py` writes them; this
file reads them.

A record's fingerprint identifies what the source held when the record was prepared, not the bytes that are read here. A shard's
name ends in the first digits of its SHA-256, so that shards of two preparations cannot be confused; `data prepare`, run again,
verifies the bytes against that sum.
"""

import dataclasses
import functools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath

from deeplab_jax.data.image_files import ImageFiles, reason
from deeplab_jax.data.ranges import File, read_range, stat_file
from deeplab_jax.data.samples import DecodedSample, OpenSample, Samples, Store, require_disjoint
from deeplab_jax.errors import DataError, one_line
from deeplab_jax.labels import UNKNOWN

MANIFEST = "records.json"
SHARD = re.compile(r"(?P<split>.+)-\d{5}-[0-9a-f]{8}\.bin")
NOTE = re.compile(r"(?P<split>.+)-\d{5}\.json")  # beside a shard: what it holds
FORMAT = 2
# More than a label set can name: one of so many is in no table. A mask of blended colours has hundreds of thousands.
MOST_VALUES = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """Where a sample lies, and what it was made of.

    Attributes:
      image, label: names in the source; label "" if there is none.
      height, width: in pixels.
      channels: of the label: 1 for ids, 3 for colours, 0 for none.
      values: which the label holds, the first MOST_VALUES of them; 24-bit colours where it has 3 channels.
      fingerprint: of the source's files, hexadecimal.
      stamp: size and time of change (ns) of each source file; where these are the same, the file need not be read again.
    """

    image: str
    label: str
    height: int
    width: int
    channels: int
    values: tuple[int, ...]
    fingerprint: str
    stamp: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of the image and the label."""
        return self.height * self.width * (3 + self.channels)


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A file of records, in the order of the list.

    Attributes:
      file: name in the folder.
      sha256: of its bytes.
      records: what it holds.
    """

    file: str
    sha256: str
    records: tuple[Record, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """A split of the source.

    Attributes:
      kind: how the labels encode classes.
      shards: all of them.
    """

    kind: str
    shards: tuple[Shard, ...]

    def records(self) -> Iterator[tuple[Shard, int, Record]]:
        """Yield (shard, offset of the first byte, record) of every sample, in the order of the list."""
        for shard in self.shards:
            offset = 0
            for record in shard.records:
                yield shard, offset, record
                offset += record.nbytes


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder of records holds.

    Attributes:
      source: the root, or tfds:NAME, that it was made of.
      data_dir: where tfds:NAME was built; "" for TFDS's own place, and with a root.
      splits: by name.
    """

    source: str
    data_dir: str
    splits: dict[str, Split]


def is_records(root: str) -> bool:
    """Whether `root` is a folder of prepared records."""
    # A data set may have a file of that name itself.
    return bool(root) and (epath.Path(root) / MANIFEST).exists() and _holds(root, SHARD, NOTE)


def is_begun(root: str) -> bool:
    """Whether `root` is what an interrupted preparation left."""
    return bool(root) and epath.Path(root).is_dir() and _holds(root, SHARD)


def _holds(root: str, *patterns: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(path.name) for path in epath.Path(root).iterdir() for pattern in patterns)


def read_manifest(root: str) -> Manifest:
    """Return the manifest of a folder of records.

    Raises:
      DataError: it cannot be read, or another version wrote it.
    """
    path = epath.Path(root) / MANIFEST
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise DataError(f"{path} has format {values['format']}, this version reads {FORMAT}: prepare the records again")
        splits = {name: Split(v["kind"], tuple(map(shard_from_json, v["shards"]))) for name, v in values["splits"].items()}
        return Manifest(values["source"], values["data_dir"], splits)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        details = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(f"{path} is no list of prepared records that can be read ({details}): prepare them again") from None


def shard_from_json(values: dict[str, Any]) -> Shard:
    """Return the inverse of `shard_to_json`."""
    rows = [row | {"values": tuple(row["values"]), "stamp": tuple(row["stamp"])} for row in values["records"]]
    return Shard(values["file"], values["sha256"], tuple(Record(**row) for row in rows))


def shard_to_json(shard: Shard) -> dict[str, Any]:
    """Return plain JSON values."""
    return dataclasses.asdict(shard)


def find_records(manifest: Manifest, root: str, split: str, *, need_labels: bool = True) -> Samples:
    """Return the samples of a split of a folder of records; "train+val" is one after the other.

    Raises:
      DataError: there is no such split, or it has no labels; splits that are joined share an image or differ in how labels
        encode classes; a shard is missing or truncated.
    """
    again = prepare_again(manifest, root)
    parts = [(part, _require_split(manifest, root, part)) for part in split.split("+")]
    images_of = [(part, [record.image for _, _, record in each.records()]) for part, each in parts]
    require_disjoint(f"split {split!r} of the records in {root}", images_of)
    _require_one_kind(root, split, parts)
    files = {
        shard.file: _require_whole(epath.Path(root) / shard.file, shard, again) for _, each in parts for shard in each.shards
    }
    locations = tuple(
        RecordLocation(files[shard.file], offset, record) for _, each in parts for shard, offset, record in each.records()
    )
    images, labels = tuple(p.record.image for p in locations), tuple(p.record.label for p in locations if p.record.label)
    if need_labels and len(labels) < len(images):
        raise DataError(f"the records in {root} have no labels in split {split!r}: name a split that has")
    return Samples(root, images, labels, parts[0][1].kind, f"the records in {root}", Records(locations, again))


def prepare_again(manifest: Manifest, root: str) -> str:
    """Return what to do about records that are damaged or stale."""
    labelled = [split for split in manifest.splits.values() if any(record.label for _, _, record in split.records())]
    kinds = {split.kind for split in labelled}
    options = ["--splits", *manifest.splits]
    if len(kinds) == 1 and kinds != {"labelIds"}:
        options += ["--label-kind", *kinds]
    if manifest.data_dir:
        options += ["--data-dir", manifest.data_dir]
    words = ["deeplab-jax", "data", "prepare", manifest.source, "--out", root, *options]
    return f"run `{shlex.join(words)}` again, which does what is needed"


def _require_split(manifest: Manifest, root: str, name: str) -> Split:
    if name not in manifest.splits:
        known = ", ".join(manifest.splits)
        raise DataError(f"the records in {root} have no split {name!r} but {known}: prepare it with --splits {name}")
    return manifest.splits[name]


def _require_one_kind(root: str, split: str, parts: Sequence[tuple[str, Split]]) -> None:
    kinds = {(each.kind, any(record.label for _, _, record in each.records())): part for part, each in parts}
    if len(kinds) > 1:
        shown = " and ".join(f"{kind if labelled else 'no labels'} in {part}" for (kind, labelled), part in kinds.items())
        raise DataError(f"split {split!r} of the records in {root} mixes labels ({shown}): name splits that have the same")


def _require_whole(path: epath.Path, shard: Shard, again: str) -> File:
    """Return a shard's file, which must have the size that the manifest says."""
    size = sum(record.nbytes for record in shard.records)
    try:
        file = stat_file(str(path))
    # TensorFlow asks for what lies on object storage.
    except (OSError, tf.errors.OpError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)}): {again}") from None
    if file.size != size:
        raise DataError(f"{path} has {file.size} bytes instead of {size}: {again}")
    return file


@dataclasses.dataclass(frozen=True, slots=True)
class RecordLocation:
    """A record, and where its first byte lies."""

    file: File
    offset: int
    record: Record


@dataclasses.dataclass(frozen=True, eq=False)
class Records(Store):
    """The records of some samples, by position in the list.

    Attributes:
      locations: of the samples.
      again: what to do where they cannot be read.
    """

    locations: tuple[RecordLocation, ...]
    again: str

    def decode(self, samples: Samples, index: tf.Tensor) -> DecodedSample:
        """See `Store`."""
        size, zero = tf.constant(self._sizes)[index], tf.zeros(2, tf.int32)
        image = tf.ensure_shape(self._window(self._image, index, zero, size, tf.uint8), (None, None, 3))
        if not samples.labels:
            return DecodedSample(image, None, self._fingerprint(index))
        values = self._window(self._values, index, zero, size, tf.int32 if samples.kind == "color" else tf.uint8)
        return DecodedSample(image, tf.ensure_shape(values, (None, None)), self._fingerprint(index))

    def open(self, samples: Samples, table: np.ndarray, index: tf.Tensor) -> OpenSample:
        """See `Store`."""
        # Known from the manifest: a window may not show the value that makes the label unusable.
        known = [bool((table[list(location.record.values)] != UNKNOWN).all()) for location in self.locations]
        tf.debugging.assert_equal(tf.constant(known)[index], True, "a label value is in no table")
        lookup = table.astype(np.uint8)

        def image(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(self._window(self._image, index, low, high, tf.uint8), (None, None, 3))

        def pick(i: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            values = self._values(int(i), int(rows[0]), 0, int(rows[-1]) + 1, self.locations[i].record.width)
            return lookup.take(values.take(rows - rows[0], 0).take(columns, 1))

        def label(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(pick, [index, rows, columns], tf.uint8), (None, None))

        return OpenSample(tf.constant(self._sizes)[index], image, label if samples.labels else None, self._fingerprint(index))

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """See `Store`."""
        return self.locations[i].record.height, self.locations[i].record.width

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """See `Store`."""
        return bytes.fromhex(self.locations[i].record.fingerprint)

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """See `Store`."""
        location = self.locations[i]
        return DataError(f"{location.file.path} cannot be read at {location.record.image} ({reason(error)}): {self.again}")

    # Made once: the samples are also read one by one, outside tf.data.
    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([(location.record.height, location.record.width) for location in self.locations], np.int32)

    @functools.cached_property
    def _fingerprints(self) -> np.ndarray:
        return np.array([list(bytes.fromhex(location.record.fingerprint)) for location in self.locations], np.uint8)

    def _fingerprint(self, index: tf.Tensor) -> tf.Tensor:
        return tf.constant(self._fingerprints)[index]

    def _window(self, read: Any, index: tf.Tensor, low: tf.Tensor, high: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return tf.numpy_function(lambda i, a, b: read(int(i), *a.tolist(), *b.tolist()), [index, low, high], dtype)

    def _image(self, i: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        location = self.locations[i]
        return _rows(location, location.offset, 3, top, bottom)[:, left:right]

    def _values(self, i: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        location = self.locations[i]
        start = location.offset + 3 * location.record.height * location.record.width
        values = _rows(location, start, location.record.channels, top, bottom)[:, left:right]
        if location.record.channels == 1:
            return values[..., 0]
        return values.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _rows(location: RecordLocation, start: int, channels: int, top: int, bottom: int) -> np.ndarray:
    """uint8 [bottom - top, w, channels]: whole rows, which lie together."""
    stride = location.record.width * channels
    data = read_range(location.file, start + top * stride, (bottom - top) * stride)
    return np.frombuffer(data, np.uint8).reshape(bottom - top, location.record.width, channels)


def read_stamp(samples: Samples, i: int) -> tuple[int, ...]:
    """Return the size in bytes and time of change in ns of each file of sample `i`.

    () where the samples are no files, or lie elsewhere, since asking takes a request each.

    Raises:
      DataError: the system has no answer for a file.
    """
    if not isinstance(samples.store, ImageFiles) or "://" in samples.root:
        return ()
    try:
        stats = [os.stat(f"{samples.root}/{name}") for name in (samples.images[i], *samples.labels[i : i + 1])]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): replace it or take it off the list") from None
    return tuple(number for each in stats for number in (each.st_size, each.st_mtime_ns))


def is_unchanged(record: Record, source: Samples, i: int) -> bool:
    """Whether the source holds of sample `i` what the record was made of.

    Raises:
      DataError: the source cannot be read.
    """
    if record.stamp and record.stamp == read_stamp(source, i):
        return True
    return source.store.fingerprint(source, i).hex() == record.fingerprint


def changed_images(samples: Samples, source: Samples) -> list[str]:
    """Return the images of a split of records that its source, which lists the same samples, holds otherwise.

    Raises:
      DataError: the source cannot be read.
    """
    assert isinstance(samples.store, Records)
    located = enumerate(samples.store.locations)
    return [location.record.image for i, location in located if not is_unchanged(location.record, source, i)]
