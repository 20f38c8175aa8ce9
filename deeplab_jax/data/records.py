"""Read prepared records: samples that were decoded once and stored as raw bytes in large files.

Raw bytes allow a window to be read without reading the rest of the sample. `prepare.py` writes the records.

A records folder contains a manifest, `records.json`, and shards named `<split>-00000-1a2b3c4d.bin`. For each sample, the shard
stores the image bytes (uint8 [h, w, c]), followed by the label values (uint8 [h, w] ids, or uint8 [h, w, 3] colours).

A record's fingerprint identifies the source contents from which the record was prepared. It is not a checksum of the record
itself. A shard name ends in the first eight digits of the shard's SHA-256, so shards from different `data prepare` runs cannot
be mixed up. Running `data prepare` again verifies the shards against their full SHA-256.
"""

import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from etils import epath

from deeplab_jax.config import DataConfig
from deeplab_jax.data.folders import list_names
from deeplab_jax.data.image_files import reason
from deeplab_jax.data.ranges import File, read_range, stat_file
from deeplab_jax.data.samples import DecodedSample, OpenSample, Samples, Store, require_disjoint
from deeplab_jax.errors import DataError, one_line
from deeplab_jax.labels import UNKNOWN

MANIFEST = "records.json"
SHARD = re.compile(r"(?P<split>.+)-\d{5}-[0-9a-f]{8}\.bin")
SIDECAR = re.compile(r"(?P<split>.+)-\d{5}\.json")  # a JSON file that describes one shard
FORMAT = 2
# The maximum number of label values listed in a record. Label sets define fewer values than this, so a mask that reaches the
# limit contains an unknown value. Without the limit, the record for a mask with blended colours would list hundreds of
# thousands of values.
MOST_VALUES = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One prepared sample: its layout in the shard and the source files it was made from.

    Attributes:
      image: The image name in the source.
      label: The label name in the source, or "" if there is no label.
      height: The height in pixels.
      width: The width in pixels.
      channels: The number of label channels: 1 for ids, 3 for colours, or 0 if there is no label.
      values: The distinct label values (at most MOST_VALUES), as 24-bit colours if the label has 3 channels.
      fingerprint: The fingerprint of the source contents, in hexadecimal.
      stamp: The size (bytes) and modification time (ns) of each source file. A file with an unchanged stamp is not reread.
      bands: The number of image channels (`data.channels`).
      value_range: The `data.value_range` with which the image was decoded.
    """

    image: str
    label: str
    height: int
    width: int
    channels: int
    values: tuple[int, ...]
    fingerprint: str
    stamp: tuple[int, ...]
    bands: int = 3
    value_range: tuple[float, ...] = ()

    @property
    def nbytes(self) -> int:
        """Return the combined size of the image and the label in bytes."""
        return self.height * self.width * (self.bands + self.channels)


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A file that stores records in list order.

    Attributes:
      file: The file name within the records folder.
      sha256: The file's SHA-256, in hexadecimal.
      records: The records in the file.
    """

    file: str
    sha256: str
    records: tuple[Record, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """A prepared split.

    Attributes:
      kind: How the labels encode classes.
      shards: The shards, in list order.
    """

    kind: str
    shards: tuple[Shard, ...]

    def records(self) -> Iterator[tuple[Shard, int, Record]]:
        """Yield (shard, byte offset within the shard, record) for each sample, in list order."""
        for shard in self.shards:
            offset = 0
            for record in shard.records:
                yield shard, offset, record
                offset += record.nbytes


@dataclasses.dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of `records.json`, which describes a records folder.

    Attributes:
      source: The original data set: its root folder, or tfds:NAME.
      data_dir: The TFDS data directory that contains tfds:NAME, or "" for the default directory. Also "" if the source is a
        root folder.
      splits: The prepared splits, keyed by name.
    """

    source: str
    data_dir: str
    splits: dict[str, Split]


def is_records(root: str) -> bool:
    """Return whether `root` contains prepared records."""
    # Any data set might contain a file named records.json, so also look for shards or sidecar files.
    return bool(root) and (epath.Path(root) / MANIFEST).exists() and _has_file(root, SHARD, SIDECAR)


def is_incomplete(root: str) -> bool:
    """Return whether `root` contains shards from an interrupted `data prepare` run, assuming that it has no manifest."""
    return bool(root) and epath.Path(root).is_dir() and _has_file(root, SHARD)


def _has_file(root: str, *patterns: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(name) for name in list_names(epath.Path(root)) for pattern in patterns)


def read_manifest(root: str) -> Manifest:
    """Read the manifest in a records folder.

    Raises:
      DataError: The manifest is unreadable, or uses the format of a different package version.
    """
    path = epath.Path(root) / MANIFEST
    try:
        values = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise DataError(
                f"{path} has format {values['format']}, but this version reads format {FORMAT}. Prepare the records again."
            )
        splits = {name: Split(v["kind"], tuple(map(shard_from_json, v["shards"]))) for name, v in values["splits"].items()}
        return Manifest(values["source"], values["data_dir"], splits)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        details = f"{type(error).__name__}: {one_line(error)}"
        raise DataError(f"{path} is not a valid records manifest ({details}). Prepare the records again.") from None


def shard_from_json(values: dict[str, Any]) -> Shard:
    """Build a shard from the JSON values returned by `shard_to_json`."""
    tuples = ("values", "stamp", "value_range")  # JSON has lists instead
    rows = [row | {name: tuple(row[name]) for name in tuples if name in row} for row in values["records"]]
    return Shard(values["file"], values["sha256"], tuple(Record(**row) for row in rows))


def shard_to_json(shard: Shard) -> dict[str, Any]:
    """Convert a shard to JSON values."""
    return dataclasses.asdict(shard)


def find_records(manifest: Manifest, root: str, split: str, *, need_labels: bool = True) -> Samples:
    """Return the samples of `split` from a records folder.

    "train+val" concatenates the two splits.

    Raises:
      DataError: The split does not exist or lacks required labels, two joined splits share an image or have different label
        kinds, or a shard is missing or truncated.
    """
    advice = advise_rerun(manifest, root)
    parts = [(part, _require_split(manifest, root, part)) for part in split.split("+")]
    images = [(part, [record.image for _, _, record in each.records()]) for part, each in parts]
    require_disjoint(f"Split {split!r} of the records in {root}", images)
    _require_one_kind(root, split, parts)
    files = {
        shard.file: _require_complete(epath.Path(root) / shard.file, shard, advice)
        for _, each in parts
        for shard in each.shards
    }
    locations = tuple(
        RecordLocation(files[shard.file], offset, record) for _, each in parts for shard, offset, record in each.records()
    )
    names, labels = tuple(p.record.image for p in locations), tuple(p.record.label for p in locations if p.record.label)
    if need_labels and len(labels) < len(names):
        raise DataError(f"The records in {root} have no labels in split {split!r}. Choose a split with labels.")
    sizes = tuple(len(each) for _, each in images)
    store = RecordStore(locations, advice)
    return Samples(root, names, labels, parts[0][1].kind, f"the records in {root}", store, part_sizes=sizes)


def advise_rerun(manifest: Manifest, root: str) -> str:
    """Return the advice for repairing damaged or stale records, for use in messages."""
    labelled = [split for split in manifest.splits.values() if any(record.label for _, _, record in split.records())]
    kinds = {split.kind for split in labelled}
    options = ["--splits", *manifest.splits]
    if len(kinds) == 1 and kinds != {"labelIds"}:
        options += ["--label-kind", *kinds]
    if manifest.data_dir:
        options += ["--data-dir", manifest.data_dir]
    record = next((record for split in manifest.splits.values() for _, _, record in split.records()), None)
    if record and record.bands != 3:
        options += ["--channels", str(record.bands)]
    if record and record.value_range:
        options += ["--value-range", *(f"{value:g}" for value in record.value_range)]
    words = ["deeplab-jax", "data", "prepare", manifest.source, "--out", root, *options]
    return f"Run `{shlex.join(words)}` again. It rewrites only the shards that are missing, damaged or out of date."


def _require_split(manifest: Manifest, root: str, name: str) -> Split:
    if name not in manifest.splits:
        available = ", ".join(manifest.splits)
        hold_out = ", or set --config.data.val_share=0.2 to hold out a fifth of the training images for validation"
        raise DataError(
            f"The records in {root} have no split {name!r}, only {available}. "
            f"Run `deeplab-jax data prepare` with `--splits {name}` to prepare it{hold_out if name == 'val' else ''}."
        )
    return manifest.splits[name]


def _require_one_kind(root: str, split: str, parts: Sequence[tuple[str, Split]]) -> None:
    kinds = {(each.kind, any(record.label for _, _, record in each.records())): part for part, each in parts}
    if len(kinds) > 1:
        shown = " and ".join(f"{kind if labelled else 'no labels'} in {part}" for (kind, labelled), part in kinds.items())
        raise DataError(
            f"Split {split!r} of the records in {root} mixes labels ({shown}). Join only splits with the same label kind."
        )


def require_same_bands(samples: Samples, data: DataConfig) -> None:
    """Check that prepared images have `data.channels` channels and were decoded with `data.value_range`.

    Raises:
      DataError: They differ. Predictions would otherwise read image files differently from how the training did.
    """
    assert isinstance(samples.store, RecordStore)
    expected = {"channels": data.channels, "value_range": tuple(data.value_range)}
    for record in (location.record for location in samples.store.locations):
        for field, prepared in (("channels", record.bands), ("value_range", record.value_range)):
            if prepared != expected[field]:
                raise DataError(
                    f"`data.{field}` (={expected[field]!r}) does not match the records in {samples.root}, which were prepared "
                    f"with {prepared!r}. Set it to {prepared!r}, or prepare the records again."
                )


def _require_complete(path: epath.Path, shard: Shard, advice: str) -> File:
    """Return the shard file, after checking its size against the manifest."""
    size = sum(record.nbytes for record in shard.records)
    try:
        file = stat_file(str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason(error)}). {advice}") from None
    if file.size != size:
        raise DataError(f"{path} has {file.size} bytes instead of {size}. {advice}")
    return file


@dataclasses.dataclass(frozen=True, slots=True)
class RecordLocation:
    """A record, the file that contains it, and its byte offset in that file."""

    file: File
    offset: int
    record: Record


@dataclasses.dataclass(frozen=True, eq=False)
class RecordStore(Store):
    """A store that reads samples from prepared records.

    Attributes:
      locations: The location of each sample, in list order.
      advice: What to tell the user if a record cannot be read.
    """

    locations: tuple[RecordLocation, ...]
    advice: str

    def decode(self, samples: Samples, index: tf.Tensor) -> DecodedSample:
        """Read the full sample at position `index`. See `Store.decode`."""
        size, zero = tf.constant(self._sizes)[index], tf.zeros(2, tf.int32)
        image = tf.ensure_shape(self._read_window(self._read_image, index, zero, size, tf.uint8), self._image_shape)
        if not samples.labels:
            return DecodedSample(image, None, self._fingerprint(index))
        values = self._read_window(self._read_values, index, zero, size, tf.int32 if samples.kind == "color" else tf.uint8)
        return DecodedSample(image, tf.ensure_shape(values, (None, None)), self._fingerprint(index))

    def open(self, samples: Samples, table: np.ndarray, index: tf.Tensor) -> OpenSample:
        """Open the sample at position `index`. Only the requested windows are read from disk. See `Store.open`."""
        # Check the label values listed in the manifest, because the requested window might not contain the unknown value.
        is_known = [bool((table[list(location.record.values)] != UNKNOWN).all()) for location in self.locations]
        tf.debugging.assert_equal(tf.constant(is_known)[index], True, "a label value is not in the table")
        lookup = table.astype(np.uint8)

        def read_image(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(self._read_window(self._read_image, index, low, high, tf.uint8), self._image_shape)

        def pick_train_ids(i: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            values = self._read_values(int(i), int(rows[0]), 0, int(rows[-1]) + 1, self.locations[i].record.width)
            return lookup.take(values.take(rows - rows[0], 0).take(columns, 1))

        def read_label(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(pick_train_ids, [index, rows, columns], tf.uint8), (None, None))

        size, fingerprint = tf.constant(self._sizes)[index], self._fingerprint(index)
        return OpenSample(size, read_image, read_label if samples.labels else None, fingerprint)

    def size(self, samples: Samples, i: int) -> tuple[int, int]:
        """Return the (height, width) of sample `i` in pixels."""
        return self.locations[i].record.height, self.locations[i].record.width

    def fingerprint(self, samples: Samples, i: int) -> bytes:
        """Return the 8-byte fingerprint of sample `i`, as recorded in the manifest."""
        return bytes.fromhex(self.locations[i].record.fingerprint)

    def select(self, rows: Sequence[int]) -> "RecordStore":
        """Return a store for the samples at the given positions. See `Store.select`."""
        return dataclasses.replace(self, locations=tuple(self.locations[i] for i in rows))

    def explain(self, samples: Samples, i: int, error: Exception) -> DataError:
        """Return an error that names sample `i` and its shard, and says how to repair the records."""
        location = self.locations[i]
        return DataError(f"{location.record.image} cannot be read from {location.file.path} ({reason(error)}). {self.advice}")

    @property
    def _image_shape(self) -> tuple[None, None, int]:
        return (None, None, self.locations[0].record.bands)

    # Cache `_sizes` and `_fingerprints`, because `decode` and `open` can also run eagerly, once per sample.
    @functools.cached_property
    def _sizes(self) -> np.ndarray:
        return np.array([(location.record.height, location.record.width) for location in self.locations], np.int32)

    @functools.cached_property
    def _fingerprints(self) -> np.ndarray:
        return np.array([list(bytes.fromhex(location.record.fingerprint)) for location in self.locations], np.uint8)

    def _fingerprint(self, index: tf.Tensor) -> tf.Tensor:
        return tf.constant(self._fingerprints)[index]

    def _read_window(self, read: Any, index: tf.Tensor, low: tf.Tensor, high: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        return tf.numpy_function(lambda i, a, b: read(int(i), *a.tolist(), *b.tolist()), [index, low, high], dtype)

    def _read_image(self, i: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        location = self.locations[i]
        return _read_rows(location, location.offset, location.record.bands, top, bottom)[:, left:right]

    def _read_values(self, i: int, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        return read_values(self.locations[i], top, bottom)[:, left:right]


def read_values(location: RecordLocation, top: int, bottom: int) -> np.ndarray:
    """Read the label values in the rows from `top` to `bottom`, as ids or 24-bit colours."""
    start = location.offset + location.record.bands * location.record.height * location.record.width
    values = _read_rows(location, start, location.record.channels, top, bottom)
    if location.record.channels == 1:
        return values[..., 0]
    return values.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def _read_rows(location: RecordLocation, start: int, channels: int, top: int, bottom: int) -> np.ndarray:
    """Read the rows from `top` to `bottom` at full width, as uint8 [bottom - top, w, channels].

    Full rows are contiguous in the file, so a single read is enough.
    """
    stride = location.record.width * channels
    data = read_range(location.file, start + top * stride, (bottom - top) * stride)
    return np.frombuffer(data, np.uint8).reshape(bottom - top, location.record.width, channels)
