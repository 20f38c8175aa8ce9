"""Opens the split that a config names: image files, prepared records or TensorFlow Datasets."""

import dataclasses
import functools

from etils import epath

from deeplab_jax.config import DataConfig
from deeplab_jax.data import records
from deeplab_jax.data.freshness import require_fresh
from deeplab_jax.data.lists import Samples, find_samples
from deeplab_jax.data.ranges import File, look_at
from deeplab_jax.data.tfds import find_tfds
from deeplab_jax.errors import DataError

TFDS = "tfds:"


def find_split(data: DataConfig, split: str, *, need_labels: bool = True) -> Samples:
    """The samples of `split`, in list order; "train+val" is one after the other.

    Raises:
      DataError: see `lists.find_samples`; or records do not fit their source any more.
    """
    if data.source:
        return find_tfds(data.source.removeprefix(TFDS), data.root, split, data.label_kind)
    if not records.is_records(data.root):
        try:
            return find_samples(data.root, split, data.label_kind, need_labels=need_labels)
        except DataError:
            if records.is_begun(data.root):
                said = f"`data.root` (={data.root!r}) holds records that are not complete: run `data prepare` to its end"
                raise DataError(said) from None
            raise
    manifest = look_at(str(epath.Path(data.root) / records.MANIFEST))
    samples = _prepared(data.root, split, manifest, need_labels=need_labels)
    if data.label_kind in ("auto", samples.kind):
        return samples
    if not samples.labels:
        return dataclasses.replace(samples, kind=data.label_kind)
    raise DataError(
        f"`data.label_kind` (={data.label_kind!r}) is not that of the records in {data.root} ({samples.kind}): "
        "leave it at auto, or prepare the records anew"
    )


@functools.cache
def _prepared(root: str, split: str, version: File, *, need_labels: bool) -> Samples:
    """Kept for the process while the manifest stays: a run asks for its training list more than once."""
    manifest = records.read_manifest(root)
    samples = records.find_records(manifest, root, split, need_labels=need_labels)
    require_fresh(manifest, split, samples)
    return samples
