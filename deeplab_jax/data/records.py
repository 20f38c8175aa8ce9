"""Prepared records: samples decoded once, as raw bytes in large files, of which a window is read without the rest.

A folder of records holds `manifest.json` and, for each split, shards `<split>-00000.bin`: for each sample the image's bytes
(uint8 [h, w, 3]) and then the label's values (uint8 [h, w] ids, or [h, w, 3] colours). `prepare.py` writes them; this file
reads them.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath

from deeplab_jax.data.lists import Samples
from deeplab_jax.data.ranges import read_range
from deeplab_jax.data.sources import Decoded, Opened
from deeplab_jax.errors import DataError
from deeplab_jax.labels import UNKNOWN

MANIFEST = "manifest.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """Where a sample lies, and what it was made of.

    Attributes:
      image, label: names in the source; label "" if there is none.
      height, width: in pixels.
      channels: of the label: 1 for ids, 3 for colours, 0 for none.
      values: which the label holds; 24-bit colours where it has 3 channels.
      fingerprint: of the source's files, hexadecimal.
      stamp: size and time of change (ns) of each source file, which tell whether it must be looked at again.
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
        """(shard, offset of the first byte, record) of every sample, in the order of the list."""
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
      splits: by name.
    """

    source: str
    splits: dict[str, Split]


def is_records(root: str) -> bool:
    """Whether `root` is a folder of prepared records."""
    return bool(root) and (epath.Path(root) / MANIFEST).exists()


def read_manifest(root: str) -> Manifest:
    """The manifest of a folder of records.

    Raises:
      DataError: it cannot be read, or another version wrote it.
    """
    path = epath.Path(root) / MANIFEST
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise DataError(f"{path} has format {values['format']}, this version reads {FORMAT}: prepare the records again")
        splits = {name: Split(v["kind"], tuple(map(shard_from_json, v["shards"]))) for name, v in values["splits"].items()}
        return Manifest(values["source"], splits)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): prepare the records again") from None


def shard_from_json(values: dict[str, Any]) -> Shard:
    """The inverse of `shard_to_json`."""
    rows = [row | {"values": tuple(row["values"]), "stamp": tuple(row["stamp"])} for row in values["records"]]
    return Shard(values["file"], values["sha256"], tuple(Record(**row) for row in rows))


def shard_to_json(shard: Shard) -> dict[str, Any]:
    """Plain JSON values."""
    return dataclasses.asdict(shard)


def find_records(manifest: Manifest, root: str, split: str, *, need_labels: bool = True) -> Samples:
    """The samples of a split of a folder of records; "train+val" is one after the other.

    Raises:
      DataError: there is no such split, it has no labels, or a shard is missing or cut short.
    """
    found = []
    for part in split.split("+"):
        if part not in manifest.splits:
            known = ", ".join(manifest.splits)
            raise DataError(f"the records in {root} have no split {part!r} but {known}: prepare it with --splits {part}")
        found.append(manifest.splits[part])
    for shard in (shard for each in found for shard in each.shards):
        _require_whole(epath.Path(root) / shard.file, sum(record.nbytes for record in shard.records))
    places = tuple(Place(shard.file, offset, record) for each in found for shard, offset, record in each.records())
    images, labels = tuple(p.record.image for p in places), tuple(p.record.label for p in places if p.record.label)
    if need_labels and len(labels) < len(images):
        raise DataError(f"the records in {root} have no labels in split {split!r}: name a split that has")
    return Samples(root, images, labels, found[0].kind, f"the records in {root}", Records(str(epath.Path(root)), places))


def _require_whole(path: epath.Path, size: int) -> None:
    found = path.stat().length if path.exists() else 0
    if found != size:
        what = f"has {found} bytes instead of {size}" if found else "is missing"
        raise DataError(f"{path} {what}: run `deeplab-jax data prepare` again, which mends it")


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A record, and where its first byte lies."""

    file: str
    offset: int
    record: Record


@dataclasses.dataclass(frozen=True, slots=True)
class Records:
    """The records of some samples, by position in the list. A `sources.Store`.

    Attributes:
      folder: that holds the shards.
      places: of the samples.
    """

    folder: str
    places: tuple[Place, ...]

    def decoded(self, samples: Samples, index: tf.Tensor) -> Decoded:
        """See `Store`."""
        size = tf.constant([(p.record.height, p.record.width) for p in self.places], tf.int32)[index]
        zero = tf.zeros(2, tf.int32)
        values = self._window(self._values, index, zero, size, tf.int32 if samples.kind == "color" else tf.uint8)
        image = tf.ensure_shape(self._window(self._image, index, zero, size, tf.uint8), (None, None, 3))
        return Decoded(image, tf.ensure_shape(values, (None, None)) if samples.labels else None, self._fingerprint(index))

    def opened(self, samples: Samples, table: np.ndarray, index: tf.Tensor) -> Opened:
        """See `Store`."""
        size = tf.constant([(p.record.height, p.record.width) for p in self.places], tf.int32)[index]
        # Known from the manifest: a window may not show the value that makes the label unusable.
        known = [all(table[value] != UNKNOWN for value in p.record.values) for p in self.places]
        tf.debugging.assert_equal(tf.constant(known)[index], True, "a label value is in no table")
        lookup = table.astype(np.uint8)

        def image(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(self._window(self._image, index, low, high, tf.uint8), (None, None, 3))

        def label(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
            read = self._window(lambda *where: lookup.take(self._values(*where)), index, low, high, tf.uint8)
            return tf.ensure_shape(read, (None, None))

        return Opened(size, image, label if samples.labels else None, self._fingerprint(index))

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """See `Store`."""
        return self.places[i].record.height, self.places[i].record.width

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """See `Store`."""
        return bytes.fromhex(self.places[i].record.fingerprint)

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """See `Store`."""
        place = self.places[i]
        reason = str(error).partition("\n")[0][:200]
        return DataError(f"{self.folder}/{place.file} cannot be read at {place.record.image} ({reason}): prepare it again")

    def _fingerprint(self, index: tf.Tensor) -> tf.Tensor:
        prints = [list(bytes.fromhex(place.record.fingerprint)) for place in self.places]
        return tf.constant(prints, tf.uint8)[index]

    def _window(self, read: Any, index: tf.Tensor, low: tf.Tensor, high: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return tf.numpy_function(lambda i, a, b: read(int(i), *a.tolist(), *b.tolist()), [index, low, high], dtype)

    def _image(self, i: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        place = self.places[i]
        return self._rows(place, place.offset, 3, top, bottom)[:, left:right]

    def _values(self, i: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        place = self.places[i]
        start = place.offset + 3 * place.record.height * place.record.width
        values = self._rows(place, start, place.record.channels, top, bottom)[:, left:right]
        if place.record.channels == 1:
            return values[..., 0]
        return values.astype(np.int32) @ np.array([65536, 256, 1], np.int32)

    def _rows(self, place: Place, start: int, channels: int, top: int, bottom: int) -> np.ndarray:
        """uint8 [bottom - top, w, channels]: whole rows, which lie together."""
        stride = place.record.width * channels
        data = read_range(f"{self.folder}/{place.file}", start + top * stride, (bottom - top) * stride)
        return np.frombuffer(data, np.uint8).reshape(bottom - top, place.record.width, channels)
