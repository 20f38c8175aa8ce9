"""Opens every sample of a data set and reports what is wrong. What ends a training is what its own reader objects to."""

import dataclasses
import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_split
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.samples import Samples, read_sample, value_table
from deeplab_jax.data.survey import count_runs, in_parallel, show_value
from deeplab_jax.errors import DataError
from deeplab_jax.labels import IGNORE, UNKNOWN, LabelSet

SMALL, LARGE, NARROW = 64, 50_000_000, 4  # pixels of the shorter side; pixels; longer over shorter side
ORIENTATION = 274  # the EXIF tag
# How Pillow calls what is no plain RGB, and what training makes of it.
UNUSUAL_MODES = {
    "L": "grey: it is repeated for red, green and blue",
    "LA": "grey with transparency, which is dropped",
    "1": "black and white: it is read as grey",
    "P": "coloured by a palette: its colours are read",
    "RGBA": "an image with transparency, which is dropped",
    "CMYK": "CMYK, converted to RGB without its colour profile: save it as RGB",
    "I;16": "16 bits a value, of which the upper 8 are used: save it with 8",
    "I": "16 bits a value, of which the upper 8 are used: save it with 8",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, in a line.

    Attributes:
      sort: what kind of problem, the same for all problems of a kind.
      split: where.
      text: the file, what is wrong with it and what to do.
      fails: whether a training would end there.
    """

    sort: str
    split: str
    text: str
    fails: bool


@dataclasses.dataclass(slots=True)
class Tally:
    """What a split's readable samples add up to.

    Attributes:
      source: where the list comes from.
      samples: how many there are.
      pixels: by train id.
      images: samples that hold a class, by train id.
      sizes: samples by (width, height).
      image_modes, label_modes: samples by Pillow's name of the files' mode.
      ignored: pixels.
      unknown: pixels of values outside the label set.
    """

    source: str
    samples: int
    pixels: np.ndarray
    images: np.ndarray
    sizes: Counter[tuple[int, int]] = dataclasses.field(default_factory=Counter)
    image_modes: Counter[str] = dataclasses.field(default_factory=Counter)
    label_modes: Counter[str] = dataclasses.field(default_factory=Counter)
    ignored: int = 0
    unknown: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What `check` reports: a tally by split, and the problems, those first that end a training."""

    tallies: Mapping[str, Tally]
    problems: Sequence[Problem]

    @property
    def fails(self) -> bool:
        """Whether training would fail."""
        return any(problem.fails for problem in self.problems)


@dataclasses.dataclass(slots=True)
class _Sample:
    """What one sample holds. Pixels by value of the label; `error` where it cannot be read."""

    name: str
    label: str = ""
    size: tuple[int, int] = (0, 0)
    image_mode: str = ""
    label_mode: str = ""
    orientation: int = 1
    pixels_hash: str = ""
    values: dict[int, int] = dataclasses.field(default_factory=dict)
    error: str = ""


def open_splits(data: DataConfig, splits: Iterable[str]) -> tuple[dict[str, Samples], list[Problem]]:
    """Return the splits that training would find, and what keeps it from the others. The split "test" needs no labels."""
    sets, problems = {}, []
    for split in splits:
        try:
            sets[split] = find_split(data, split, need_labels=split != "test")
        except DataError as error:
            problems.append(Problem("lists and folders", split, str(error), fails=True))
    return sets, problems


def check(
    sets: Mapping[str, Samples],
    labels: LabelSet,
    problems: Sequence[Problem] = (),
    on_sample: Callable[[], None] = lambda: None,
    threads: int = 0,
) -> Report:
    """Read every sample of some splits.

    Args:
      sets: by name of the split, training's first.
      labels: what the values should mean.
      problems: found before, with which the report begins.
      on_sample: called after each sample, to show progress.
      threads: samples that are read at once; 0 for as many as there are cores.
    """
    problems = list(problems)
    tallies: dict[str, Tally] = {}
    seen: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, samples in sets.items():
        zeros = np.zeros(labels.num_classes, np.int64)
        tally = tallies[split] = Tally(samples.source, len(samples), pixels=zeros, images=zeros.copy())
        table = value_table(samples.kind, labels)
        for sample in in_parallel(functools.partial(_inspect, samples), range(len(samples)), threads):
            problems += _add(tally, split, samples, labels, table, sample)
            if sample.pixels_hash:
                seen[sample.pixels_hash].append((split, sample.name))
            on_sample()
    problems += _duplicates(seen.values())
    problems += _missing_classes(tallies, labels)
    return Report(tallies, sorted(problems, key=lambda problem: not problem.fails))


def read_examples(
    sets: Mapping[str, Samples], labels: LabelSet, count: int = 8
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]]:
    """Yield (caption, image, train ids) of up to `count` samples of each split, spread evenly over its list.

    Values in no entry of the label set are ignored; train ids are None in a split without labels. Samples that cannot be read
    are left out.
    """
    for split, samples in sets.items():
        table = value_table(samples.kind, labels)
        table = np.where(table == UNKNOWN, IGNORE, table).astype(np.uint8)
        for i in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)).tolist():
            try:
                image, values = read_sample(samples, i)
            except DataError:
                continue
            yield f"{split}: {samples.images[i]}", image, None if values is None else table[values]


def class_weights(pixels: np.ndarray) -> tuple[float, ...]:
    """Return weights for classes with these numbers of pixels: ENet's 1 / ln(1.02 + share) (arXiv 1606.02147, section 5.2).

    They are scaled so that the mean over all pixels is 1, which leaves the loss and so the learning rate at their scale.
    Where no pixel is labelled there are none.
    """
    if not pixels.sum():
        return ()
    share = pixels / pixels.sum()
    weights = 1 / np.log(1.02 + share)
    return tuple(round(float(w), 3) for w in weights / (share * weights).sum())


def as_json(report: Report, labels: LabelSet) -> dict[str, Any]:
    """Return the report as plain values: what check.json holds and the page draws."""
    splits = {}
    for split, tally in report.tallies.items():
        splits[split] = {
            "source": tally.source,
            "samples": tally.samples,
            "sizes": {f"{width}x{height}": count for (width, height), count in tally.sizes.most_common()},
            "image_modes": dict(tally.image_modes),
            "label_modes": dict(tally.label_modes),
            "class_pixels": dict(zip(labels.names, tally.pixels.tolist(), strict=True)),
            "class_images": dict(zip(labels.names, tally.images.tolist(), strict=True)),
            "ignored_pixels": tally.ignored,
            "unknown_pixels": tally.unknown,
        }
    weights = {split: class_weights(tally.pixels) for split, tally in list(report.tallies.items())[:1] if tally.pixels.any()}
    return {
        "labels": labels.name,
        "training_would_fail": report.fails,
        "splits": splits,
        "class_weights": weights,
        "problems": [dataclasses.asdict(problem) for problem in report.problems],
    }


def _inspect(samples: Samples, i: int) -> _Sample:
    sample = _Sample(samples.images[i], samples.labels[i] if samples.labels else "")
    try:
        image, values = read_sample(samples, i)
        samples.store.size(samples, i)  # which evaluation asks for
    except DataError as error:
        sample.error = str(error)
        return sample
    sample.size = (image.shape[1], image.shape[0])
    sample.pixels_hash = hashlib.sha256(str(image.shape).encode() + image.tobytes()).hexdigest()
    if values is not None:
        sample.values = count_runs(values.ravel())
    if isinstance(samples.store, ImageFiles):
        sample.image_mode, sample.orientation = _header(samples, samples.images[i])
        sample.label_mode = _header(samples, sample.label)[0] if sample.label else ""
    return sample


def _header(samples: Samples, name: str) -> tuple[str, int]:
    """Return Pillow's name of the mode, and the EXIF orientation, 1 for upright; "" where only TensorFlow can read the file."""
    try:
        with (epath.Path(samples.root) / name).open("rb") as file, Image.open(file) as picture:
            return picture.mode, picture.getexif().get(ORIENTATION, 1)
    except Exception:  # training can read the file, which is what counts
        return "", 1


def _add(tally: Tally, split: str, samples: Samples, labels: LabelSet, table: np.ndarray, sample: _Sample) -> Iterable[Problem]:
    """Add the sample to the tally, and yield what is wrong with it."""
    path = f"{samples.root}/{sample.name}"
    if sample.error:
        yield Problem("cannot be used", split, sample.error, fails=True)
        return
    tally.sizes[sample.size] += 1
    if sample.image_mode:
        tally.image_modes[sample.image_mode] += 1
    if sample.label_mode:
        tally.label_modes[sample.label_mode] += 1
    yield from _odd_image(split, path, sample)
    if not samples.labels:
        return
    unknown = {}
    by_class = np.zeros_like(tally.pixels)
    for value, pixels in sample.values.items():
        train_id = int(table[value])
        if train_id == UNKNOWN:
            unknown[value] = pixels
        elif train_id == IGNORE:
            tally.ignored += pixels
        else:
            by_class[train_id] += pixels
    tally.pixels += by_class
    tally.images += by_class > 0
    tally.unknown += sum(unknown.values())
    if unknown:
        is_color = samples.kind == "color"
        shown = ", ".join(f"{show_value(value, is_color)} ({pixels} pixels)" for value, pixels in list(unknown.items())[:5])
        shown += f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        text = f"{samples.root}/{sample.label} holds {shown}, in no entry of the label set {labels.name}"
        blended = ": was it resized with blending, or JPEG once? Make it again" if len(unknown) > 5 else ""
        text += blended or ": correct the file, or add the value to the label set (ignored_ids: no class)"
        yield Problem("values outside the label set", split, text, fails=True)
    elif not by_class.any():
        text = f"{path} has a label that is ignored all over: nothing is learned from it; take it off the list"
        yield Problem("labels that are all ignored", split, text, fails=False)


def _odd_image(split: str, path: str, sample: _Sample) -> Iterable[Problem]:
    if sample.image_mode != "RGB" and sample.image_mode:
        what = UNUSUAL_MODES.get(sample.image_mode, f"an image of Pillow's mode {sample.image_mode}: save it as RGB")
        yield Problem(f"images of mode {sample.image_mode}", split, f"{path} is {what}", fails=False)
    if sample.orientation != 1:
        text = (
            f"{path} has EXIF orientation {sample.orientation}, which training does not apply: save it upright, like its label"
        )
        yield Problem("images that a viewer turns", split, text, fails=False)
    short, long = sorted(sample.size)
    shown = f"{path} is {sample.size[0]}x{sample.size[1]} pixels"
    if short < SMALL:
        yield Problem("very small images", split, f"{shown}: the network sees little in it; is it a thumbnail?", fails=False)
    elif long > NARROW * short:
        text = f"{shown}, very long: crops are mostly fill colour or a small part of it; cut it up"
        yield Problem("very long images", split, text, fails=False)
    if short * long > LARGE:
        text = f"{shown}: evaluation takes images whole; set --config.eval.window, or make it smaller"
        yield Problem("very large images", split, text, fails=False)


def _duplicates(same: Iterable[list[tuple[str, str]]]) -> Iterable[Problem]:
    for places in same:
        first_split, first = places[0]
        for split, name in places[1:]:
            if split == first_split:
                text = f"{name} is the same picture as {first}: it counts twice; take one off the list"
                yield Problem("the same picture twice in a split", split, text, fails=False)
            else:
                text = (
                    f"{name} of {split} is the same picture as {first} of {first_split}: scores would be of images trained on"
                )
                yield Problem("the same picture in two splits", split, f"{text}; take one off its list", fails=False)


def _missing_classes(tallies: Mapping[str, Tally], labels: LabelSet) -> Iterable[Problem]:
    first = next(iter(tallies), "")
    for split, tally in tallies.items():
        absent = [name for name, pixels in zip(labels.names, tally.pixels, strict=True) if not pixels]
        if absent and tally.pixels.any():
            advice = "add images, or take it out of the label set" if split == first else "it is not scored there"
            text = f"{split} has no pixel of {', '.join(absent)}: {advice}"
            yield Problem("classes never seen", split, text, fails=False)
