"""Whether prepared records still are what their source holds."""

import os

from etils import epath

from deeplab_jax.data.lists import Samples, find_samples
from deeplab_jax.data.read import ImageFiles
from deeplab_jax.data.records import Manifest, Record, Records
from deeplab_jax.errors import DataError


def stamp(root: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Size in bytes and time of change in ns of each file; () where files lie elsewhere, since asking takes a request each."""
    if "://" in root:
        return ()
    found = [os.stat(f"{root}/{name}") for name in names]
    return tuple(number for each in found for number in (each.st_size, each.st_mtime_ns))


def require_fresh(manifest: Manifest, split: str, samples: Samples) -> None:
    """Compares a split of records with its source, if that is at hand.

    A file whose size and time of change are as they were counts as unchanged; of another one the content decides.

    Raises:
      DataError: the source's list or the content of a file is another.
    """
    source = manifest.source
    if source.startswith("tfds:") or not epath.Path(source).is_dir():
        return
    try:
        now = find_samples(source, split, samples.kind, need_labels=bool(samples.labels))
        if (now.images, now.labels) != (samples.images, samples.labels):
            raise DataError(f"{now.source} has {len(now)} samples, not the {len(samples)} prepared, or others")
        store = samples.store
        assert isinstance(store, Records)
        changed = [place.record.image for i, place in enumerate(store.places) if not is_unchanged(place.record, now, i)]
    except DataError as error:
        raise DataError(f"{samples.source} are stale ({error}): {_again(manifest, samples)}") from None
    if changed:
        some = f"{len(changed)} of {len(samples)} samples changed in {source}, {changed[0]} among them"
        raise DataError(f"{samples.source} are stale ({some}): {_again(manifest, samples)}")


def is_unchanged(record: Record, source: Samples, i: int) -> bool:
    """Whether the files of sample `i` of the source hold what the record was made of.

    Raises:
      DataError: a file cannot be read.
    """
    names = (source.images[i], *source.labels[i : i + 1])
    if record.stamp and record.stamp == stamp(source.root, names):
        return True
    return ImageFiles().fingerprint(source, i).hex() == record.fingerprint


def _again(manifest: Manifest, samples: Samples) -> str:
    return f"run `deeplab-jax data prepare {manifest.source} --out {samples.root}` again, which does what changed"
