"""Hold out a part of the training images for validation."""

import dataclasses
import hashlib
import itertools
import re
from fractions import Fraction

from deeplab_jax.data.samples import Samples
from deeplab_jax.errors import ConfigError

TOO_MANY = 1.5  # a larger multiple of the wanted number of images is noted


def hold_out(samples: Samples, share: float, group: str, *, is_validation: bool, eligible: int) -> Samples:
    """Return the validation part of a split, or its other part.

    The choice depends only on the image names and is the same on every machine: the names are sorted by their SHA-256 hash, and
    the first ones are held out. Images with the same group stay together. If images are added later, most of the others
    stay where they are.

    Args:
      samples: The full split.
      share: The fraction of images to hold out, above 0 and below 1.
      group: A regular expression. Its match in an image's name is the image's group: the first part in parentheses, or the
        whole match. If "", every image is a group of its own.
      is_validation: Whether to return the held-out part.
      eligible: The number of images at the start of the list that can be held out. The share refers to these.

    Raises:
      ConfigError: An image has no group, or there are fewer than two groups.
    """
    names = list(samples.images[:eligible])
    names = [_find_group(name, group) for name in names] if group else names
    order = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(order) < 2:
        raise ConfigError(
            f"`data.val_share` (={share:g}) cannot be used, because {samples.source} has only one "
            f"{'group of images' if group else 'image'}. Provide a validation split instead."
        )
    held_out: set[str] = set()
    sizes = dict.fromkeys(order, 0)
    for name in names:
        sizes[name] += 1
    count = 0
    wanted = Fraction(str(share)) * len(names)  # the decimal number that the user wrote
    for name in order[:-1]:
        if count >= wanted:
            break
        held_out.add(name)
        count += sizes[name]
    rows = [i for i in range(len(samples)) if (i < eligible and names[i] in held_out) == is_validation]
    ends = list(itertools.accumulate(samples.part_sizes, initial=0))
    part_sizes = tuple(sum(start <= i < end for i in rows) for start, end in itertools.pairwise(ends))
    whole = f"{'the first ' if eligible < len(samples) else ''}{len(names)} images"
    kept = f"{'' if is_validation else 'all but '}{count} of {whole}"
    note = (
        f"data.val_share (={share:g}) holds out {count} of {len(names)} images, because images of one group stay together. The "
        f"largest group has {max(sizes.values())}. Choose smaller groups with data.val_group, or provide a validation split."
    )
    return dataclasses.replace(
        samples,
        notes=samples.notes + ((note,) if group and is_validation and count > TOO_MANY * wanted else ()),
        images=tuple(samples.images[i] for i in rows),
        labels=tuple(samples.labels[i] for i in rows) if samples.labels else (),
        store=samples.store.select(rows),
        source=f"{samples.source}, {kept} by data.val_share={share:g}",
        part_sizes=part_sizes,
    )


def _find_group(name: str, group: str) -> str:
    match = re.search(group, name)
    if not match:
        raise ConfigError(f"`data.val_group` (={group!r}) does not match the image name {name!r}. It must match every name.")
    return next((part for part in match.groups() if part is not None), match[0])
