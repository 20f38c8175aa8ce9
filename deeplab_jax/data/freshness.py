"""Whether prepared records still are what their source holds."""

import os

from etils import epath

from deeplab_jax.data.lists import Samples, find_samples
from deeplab_jax.data.read import ImageFiles
from deeplab_jax.data.records import Manifest, Record, Records, prepare_again
from deeplab_jax.errors import DataError


def stamp(root: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """Size in bytes and time of change in ns of each file; () where files lie elsewhere, since asking takes a request each.

    Raises:
      DataError: a file cannot be looked at.
    """
    if "://" in root:
        return ()
    try:
        found = [os.stat(f"{root}/{name}") for name in names]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): replace it or take it off the list") from None
    return tuple(number for each in found for number in (each.st_size, each.st_mtime_ns))


def require_fresh(manifest: Manifest, split: str, samples: Samples) -> None:
    """Compares a split of records with its source, if that is a folder at hand.

    A file whose size and time of change are as they were counts as unchanged; of another one the content decides.

    Raises:
      DataError: the source's list or the content of a file is another.
    """
    source = manifest.source
    if not _is_at_hand(source):
        return
    try:
        now = find_samples(source, split, samples.kind, need_labels=bool(samples.labels))
        if (now.images, now.labels) != (samples.images, samples.labels):
            raise DataError(f"{now.source} has {len(now)} samples, not the {len(samples)} prepared, or others")
        store = samples.store
        assert isinstance(store, Records)
        changed = [place.record.image for i, place in enumerate(store.places) if not is_unchanged(place.record, now, i)]
    except DataError as error:
        raise DataError(f"{samples.source} are stale ({error}): {prepare_again(manifest, samples.root)}") from None
    if changed:
        some = f"{len(changed)} of {len(samples)} samples changed in {source}, {changed[0]} among them"
        raise DataError(f"{samples.source} are stale ({some}): {prepare_again(manifest, samples.root)}")


def _is_at_hand(source: str) -> bool:
    """Whether the source can be asked at no great cost: not over a network, not where nothing is mounted."""
    if source.startswith("tfds:") or "://" in source:
        return False
    try:
        return next(epath.Path(source).iterdir(), None) is not None
    except OSError:
        return False


def is_unchanged(record: Record, source: Samples, i: int) -> bool:
    """Whether the files of sample `i` of the source hold what the record was made of.

    Raises:
      DataError: a file cannot be read.
    """
    names = (source.images[i], *source.labels[i : i + 1])
    if record.stamp and record.stamp == stamp(source.root, names):
        return True
    return ImageFiles().fingerprint(source, i).hex() == record.fingerprint
