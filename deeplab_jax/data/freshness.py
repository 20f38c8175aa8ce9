"""Check whether the source of prepared records has changed since they were prepared."""

import os

from deeplab_jax.buckets import is_url
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.records import Record, RecordStore
from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import DataError


def read_stamp(samples: Samples, i: int) -> tuple[int, ...]:
    """Return the size (bytes) and modification time (ns) of the image and label files for sample `i`.

    The result is empty if the samples are not image files. It is also empty for remote files, which would need one request
    each.

    Raises:
      DataError: A file is missing or cannot be accessed.
    """
    if not isinstance(samples.store, ImageFiles) or is_url(samples.root):
        return ()
    try:
        stats = [os.stat(f"{samples.root}/{name}") for name in (samples.images[i], *samples.labels[i : i + 1])]
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}). Replace the file or remove it from the data set."
        ) from None
    return tuple(number for each in stats for number in (each.st_size, each.st_mtime_ns))


def is_unchanged(record: Record, source: Samples, i: int) -> bool:
    """Return whether sample `i` in the source is unchanged since the record was prepared.

    Raises:
      DataError: The source cannot be read.
    """
    if record.stamp and record.stamp == read_stamp(source, i):
        return True
    return source.store.fingerprint(source, i).hex() == record.fingerprint


def find_changed_images(samples: Samples, source: Samples) -> list[str]:
    """Return the image names of the samples whose source has changed since the records were prepared.

    Args:
      samples: The samples from the prepared records.
      source: The same samples from the original data set.

    Raises:
      DataError: The source cannot be read.
    """
    assert isinstance(samples.store, RecordStore)
    located = enumerate(samples.store.locations)
    return [location.record.image for i, location in located if not is_unchanged(location.record, source, i)]
