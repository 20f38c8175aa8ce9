"""Opens the split that a config names: image files, prepared records or TensorFlow Datasets."""

import functools

from deeplab_jax.config import DataConfig
from deeplab_jax.data import records
from deeplab_jax.data.freshness import require_fresh
from deeplab_jax.data.lists import Samples, find_samples
from deeplab_jax.data.tfds import find_tfds
from deeplab_jax.errors import DataError

TFDS = "tfds:"


def find_split(data: DataConfig, split: str, *, need_labels: bool = True) -> Samples:
    """The samples of `split`, in list order; "train+val" is one after the other.

    Raises:
      DataError: see `lists.find_samples`; or records do not fit their source any more.
    """
    if data.source:
        return find_tfds(data.source.removeprefix(TFDS), data.root, split, data.label_kind, need_labels=need_labels)
    if not records.is_records(data.root):
        return find_samples(data.root, split, data.label_kind, need_labels=need_labels)
    samples = _prepared(data.root, split, need_labels=need_labels)
    if data.label_kind not in ("auto", samples.kind):
        raise DataError(
            f"`data.label_kind` (={data.label_kind!r}) is not that of the records in {data.root} ({samples.kind}): "
            "leave it at auto, or prepare the records anew"
        )
    return samples


@functools.cache
def _prepared(root: str, split: str, *, need_labels: bool) -> Samples:
    """Kept for the process: a run asks for its training list more than once."""
    manifest = records.read_manifest(root)
    samples = records.find_records(manifest, root, split, need_labels=need_labels)
    require_fresh(manifest, split, samples)
    return samples
