"""Read every sample in a data set and report problems.

Samples are read with the training code. A problem counts as an error if it would stop a training run, or make it learn
wrong classes.
"""

import dataclasses
import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.config import DataConfig
from deeplab_jax.data.decode import find_orientation
from deeplab_jax.data.find import find_split
from deeplab_jax.data.image_files import ImageFiles
from deeplab_jax.data.inspection_report import Problem, Report, Tally
from deeplab_jax.data.masks import Mask, advise_on_unknown, format_value
from deeplab_jax.data.omissions import find_clipping
from deeplab_jax.data.samples import Samples, make_value_table, read_sample
from deeplab_jax.data.survey import Survey, survey_masks
from deeplab_jax.data.suspicion import compare_palettes, describe_sample_mask, find_questions, find_suspicions
from deeplab_jax.errors import DataError, summarize
from deeplab_jax.labels import IGNORE, UNKNOWN, LabelSet
from deeplab_jax.runtime.parallel import run_in_parallel

MIN_SIDE = 64  # in pixels; images whose shorter side is below this are reported as very small
MAX_PIXELS = 50_000_000  # images with more pixels are reported as very large
MAX_ASPECT_RATIO = 4  # images with a larger long-to-short side ratio are reported as very elongated
# Modes whose transparency and further bits are reported where an image makes use of them.
USUAL_MODES = frozenset(("RGB", "RGBA", "LA", "I", "I;16", "I;16B"))
# Maps other Pillow image modes to a message about how training with 3 channels reads images in that mode.
UNUSUAL_MODES = {
    "L": "is a grey image. Its values are used for red, green and blue.",
    "1": "is a black-and-white image. It is read as grey.",
    "P": "is a palette image. It is converted to its palette colours.",
    "CMYK": "is a CMYK image. Training converts it to RGB without its colour profile. Save it as RGB.",
}


@dataclasses.dataclass(slots=True)
class _Sample:
    """The inspection results for one sample.

    Attributes:
      name: The image file name.
      label: The label file name, or "" if the sample has no label.
      size: The image's (width, height).
      image_mode: The image file's Pillow mode, or "" if unknown.
      orientation: The image's EXIF orientation. 1 means upright.
      omissions: The parts of the image file that are not used. See `omissions.find_omissions`.
      pixels_hash: A hash of evenly spaced rows of the decoded image, for finding duplicates.
      band_sums: See `Tally`.
      mask: The label values, or None if the sample has no label.
      error: The error message if the sample is unreadable, otherwise "". If set, only `name` and `label` are valid.
    """

    name: str
    label: str = ""
    size: tuple[int, int] = (0, 0)
    image_mode: str = ""
    orientation: int = 1
    omissions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pixels_hash: str = ""
    band_sums: np.ndarray | None = None
    mask: Mask | None = None
    error: str = ""


def open_splits(data: DataConfig, splits: Sequence[str]) -> tuple[dict[str, Samples], list[Problem]]:
    """Find the given splits the way training does.

    The "test" split is not required to have labels. Without `splits`, these are "train" and "val", which training needs by
    default.

    Returns:
      A dict mapping names to splits, and a list with one problem per unusable split.
    """
    sets, problems = {}, []
    for split in splits or ("train", "val"):
        try:
            sets[split] = find_split(data, split, need_labels=split != "test")
        except DataError as error:
            is_only_val = "train" in sets and re.search("no (samples of )?split 'val'", str(error))
            advice = " With such a flag, give --splits to this command, for example --splits train." if is_only_val else ""
            problems.append(Problem("splits that cannot be used", split, f"{error}{advice}", fails=True))
    return sets, problems


def require_splits(data: DataConfig, splits: Sequence[str]) -> dict[str, Samples]:
    """Return the given splits by name.

    Raises:
      DataError: A split is unusable.
    """
    sets, problems = open_splits(data, splits)
    if problems:
        raise DataError(problems[0].text)
    return sets


def check(
    sets: Mapping[str, Samples],
    labels: LabelSet,
    problems: Sequence[Problem] = (),
    on_sample: Callable[[], None] = lambda: None,
    threads: int = 0,
) -> Report:
    """Read every sample in the given splits and report all problems.

    Args:
      sets: A dict mapping names to splits, with the training split first.
      labels: The label set that defines the label values.
      problems: Earlier problems to include in the report.
      on_sample: A progress callback that is called after each sample.
      threads: The number of samples to read in parallel. 0 uses one thread per usable CPU core.
    """
    problems = list(problems)
    tallies: dict[str, Tally] = {}
    by_hash: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, samples in sets.items():
        zeros = np.zeros(labels.num_classes, np.int64)
        tally = tallies[split] = Tally(
            samples.source, len(samples), zeros, zeros.copy(), Survey(is_color=samples.kind == "color")
        )
        table = make_value_table(samples.kind, labels)
        for sample in run_in_parallel(functools.partial(_inspect, samples), range(len(samples)), threads):
            problems += _add_to_tally(tally, split, samples, labels, table, sample)
            if sample.pixels_hash:
                by_hash[sample.pixels_hash].append((split, sample.name))
            on_sample()
        is_training_set = split == next(iter(sets))
        suspicions = find_suspicions(tally.survey, labels, samples.kind, is_training_set=is_training_set)
        problems += [Problem("suspicious masks", split, text, fails=True) for text in suspicions]
        questions = find_questions(tally.survey, labels, samples.kind)
        problems += [Problem("masks that may mean something else", split, text, fails=False) for text in questions]
        problems += [Problem("files", split, note, fails=False) for note in samples.notes]
    conflicts = compare_palettes(tally.survey for tally in tallies.values())
    problems += [Problem("suspicious masks", "+".join(sets), text, fails=True) for text in conflicts]
    problems += _report_duplicates(by_hash.values())
    problems += _report_missing_classes(sets, tallies, labels)
    return Report(tallies, sorted(problems, key=lambda problem: not problem.fails))


def check_masks(sets: Mapping[str, Samples], on_mask: Callable[[], None] = lambda: None, threads: int = 0) -> list[Problem]:
    """Read all masks of splits that have no label set yet, and report what would be wrong with any label set.

    Args:
      sets: A dict mapping names to splits.
      on_mask: A progress callback that is called after each mask.
      threads: The number of masks to read in parallel. 0 uses one thread per usable CPU core.
    """
    labelled = [samples for samples in sets.values() if samples.labels]
    if not labelled:
        return []
    names, unreadable = "+".join(sets), "masks that cannot be used"
    try:
        survey = survey_masks(labelled, on_mask, threads)
    except DataError as error:
        return [Problem(unreadable, names, str(error), fails=True)]
    suspicions = find_suspicions(survey, None, labelled[0].kind)
    texts = [("suspicious masks", text) for text in suspicions] + [(unreadable, text) for text in survey.problems]
    questions = find_questions(survey, None, labelled[0].kind)
    problems = [Problem(sort, names, text, fails=True) for sort, text in texts]
    return problems + [Problem("masks that may mean something else", names, text, fails=False) for text in questions]


def read_examples(
    sets: Mapping[str, Samples], labels: LabelSet, count: int = 8
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]]:
    """Yield (caption, image, train ids) for up to `count` evenly spaced samples from each split.

    Label values outside the label set get the train id 255. The train ids are None in a split without labels. Unreadable
    samples are skipped.
    """
    for split, samples in sets.items():
        table = make_value_table(samples.kind, labels)
        table = np.where(table == UNKNOWN, IGNORE, table).astype(np.uint8)
        for i in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)).tolist():
            try:
                image, values = read_sample(samples, i)
            except DataError:
                continue
            yield f"{split}: {samples.images[i]}", image, None if values is None else table[values]


def _inspect(samples: Samples, i: int) -> _Sample:
    sample = _Sample(samples.images[i], samples.labels[i] if samples.labels else "")
    try:
        image, values = read_sample(samples, i)
        samples.store.size(samples, i)  # evaluation reads the size separately, and this can also fail
    except DataError as error:
        sample.error = str(error)
        return sample
    sample.size = (image.shape[1], image.shape[0])
    # Hashing all pixels of a large image would take as long as decoding them, so about 1 MB of its rows is hashed.
    rows = image[:: 1 + (image.nbytes >> 20)]
    sample.pixels_hash = hashlib.sha256(str(image.shape).encode() + rows.tobytes()).hexdigest()
    if image.shape[2] != 3:
        bands = image.reshape(-1, image.shape[2]).astype(np.float64)
        sample.band_sums = np.stack([bands.sum(0), (bands**2).sum(0)])
    if values is not None:
        sample.mask = describe_sample_mask(samples, i, values)
    if isinstance(samples.store, ImageFiles):
        sample.image_mode, sample.orientation = _read_header(samples, samples.images[i])
        sample.omissions = find_clipping(image, samples.store.value_range) | samples.store.omissions(samples, i)
    return sample


def _read_header(samples: Samples, name: str) -> tuple[str, int]:
    """Return an image file's Pillow mode and EXIF orientation, where 1 means upright.

    If Pillow cannot read the file, return ("", 1).
    """
    try:
        with (epath.Path(samples.root) / name).open("rb") as file, Image.open(file) as picture:
            return picture.mode, find_orientation(picture)
    except Exception:  # not a problem, because training reads the file with TensorFlow
        return "", 1


def _add_to_tally(
    tally: Tally, split: str, samples: Samples, labels: LabelSet, table: np.ndarray, sample: _Sample
) -> Iterable[Problem]:
    """Add a sample to its split's tally, and yield the problems with the sample."""
    path = f"{samples.root}/{sample.name}"
    if sample.error:
        yield Problem("samples that cannot be used", split, sample.error, fails=True)
        return
    tally.sizes[sample.size] += 1
    if sample.band_sums is not None:
        tally.band_sums = sample.band_sums if tally.band_sums is None else tally.band_sums + sample.band_sums
    if sample.image_mode:
        tally.image_modes[sample.image_mode] += 1
    is_rgb = not isinstance(samples.store, ImageFiles) or samples.store.channels == 3
    yield from _report_unusual_image(split, path, sample, is_rgb=is_rgb)
    if sample.mask is None:
        return
    if sample.mask.mode:
        tally.label_modes[sample.mask.mode] += 1
    tally.survey.add(sample.label, sample.mask)
    unknown = {}
    by_class = np.zeros_like(tally.pixels)
    for value, pixels in sample.mask.values.items():
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
        values = summarize(f"{format_value(value, is_color)} ({pixels} pixels)" for value, pixels in unknown.items())
        advice = advise_on_unknown(sample.mask, unknown, samples.kind)
        text = f"{samples.root}/{sample.label} holds values outside the label set {labels.name}: {values}. {advice}"
        yield Problem("values outside the label set", split, text, fails=True)
    elif not by_class.any():
        text = (
            f"Every label pixel for {path} is ignored, so training learns nothing from it. Remove the image from the data set."
        )
        yield Problem("labels that are fully ignored", split, text, fails=False)


def _report_unusual_image(split: str, path: str, sample: _Sample, *, is_rgb: bool) -> Iterable[Problem]:
    if is_rgb and sample.image_mode and sample.image_mode not in USUAL_MODES:
        description = UNUSUAL_MODES.get(sample.image_mode, f"has the Pillow mode {sample.image_mode}. Save it as RGB.")
        yield Problem(f"images of mode {sample.image_mode}", split, f"{path} {description}", fails=False)
    for sort, omission in sample.omissions.items():
        yield Problem(sort, split, f"{path} {omission}", fails=False)
    if sample.orientation != 1:
        text = (
            f"{path} has the EXIF orientation {sample.orientation}, which training ignores. "
            "Save the image upright, with the same orientation as its label."
        )
        yield Problem("images with an EXIF orientation", split, text, fails=False)
    short, long = sorted(sample.size)
    size_text = f"{path} has {sample.size[0]}x{sample.size[1]} pixels"
    if short < MIN_SIDE:
        text = f"{size_text}, so the network sees little detail in it. Check that it is not a thumbnail."
        yield Problem("very small images", split, text, fails=False)
    elif long > MAX_ASPECT_RATIO * short:
        text = f"{size_text}. Crops are mostly fill colour or show only a small part of the image. Split the image into parts."
        yield Problem("very elongated images", split, text, fails=False)
    if short * long > MAX_PIXELS:
        text = f"{size_text}, and evaluation processes full images. Set --config.eval.window, or make the image smaller."
        yield Problem("very large images", split, text, fails=False)


def _report_duplicates(groups: Iterable[list[tuple[str, str]]]) -> Iterable[Problem]:
    """Yield a problem for each duplicate image. Each group lists the (split, name) pairs that share an image."""
    for group in groups:
        first_split, first = group[0]
        for split, name in group[1:]:
            if split == first_split:
                text = f"{name} is the same image as {first}, so it counts twice. Remove one of them from the data set."
                yield Problem("duplicate images in a split", split, text, fails=False)
            else:
                text = (
                    f"{name} in {split} is the same image as {first} in {first_split}, so scores may be measured on a training "
                    "image. Remove it from one of the splits."
                )
                yield Problem("duplicate images in two splits", split, text, fails=False)


def _report_missing_classes(sets: Mapping[str, Samples], tallies: Mapping[str, Tally], labels: LabelSet) -> Iterable[Problem]:
    first = next(iter(tallies), "")
    for split, tally in tallies.items():
        missing = [name for name, pixels in zip(labels.names, tally.pixels, strict=True) if not pixels]
        if missing and tally.pixels.any():
            consequence = "These classes are not scored in this split."
            if split == first:
                # Where values are positions, all later classes would get the values of others.
                are_positions = sets[split].kind == "labelTrainIds" or (sets[split].kind == "labelIds" and not labels.ids)
                consequence = f"Add images of these classes{'' if are_positions else ', or remove them from the label set'}."
            text = f"No pixel in {split} belongs to: {', '.join(missing)}. {consequence}"
            yield Problem("classes without pixels", split, text, fails=False)
