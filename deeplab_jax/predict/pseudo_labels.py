"""Write a network's confident predictions as the labels of a new split (pseudo-labels).

A split consists of `ROOT/SPLIT/IMAGE_KIND.png`, the labels, and `ROOT/list/SPLIT.lst`, which names them with their images. Each
file contains a digest of its own contents, so files that were made or corrected by hand are recognised and never overwritten.
"""

import dataclasses
import functools
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int64, UInt8
from PIL import Image, PngImagePlugin

from deeplab_jax.errors import ConfigError, DataError
from deeplab_jax.evaluation import inference
from deeplab_jax.evaluation.pictures import name_results
from deeplab_jax.files import write_atomically
from deeplab_jax.labels import IGNORE, LabelSet
from deeplab_jax.predict.images import Output, Prediction
from deeplab_jax.predict.inputs import Input, turn_as_stored

_MARK = "deeplab-jax predict --as-labels"
_COMMENT = f"# {_MARK} "


@dataclasses.dataclass(frozen=True, slots=True)
class PseudoLabel:
    """A written label.

    Attributes:
      image, label: The files, relative to the root folder.
      predicted: The number of pixels that the network predicted as each class.
      kept: The number of these pixels that have a label.
    """

    image: str
    label: str
    predicted: Int64[np.ndarray, " k"]
    kept: Int64[np.ndarray, " k"]

    def to_json(self) -> list[Any]:
        """Return JSON values for `from_json`."""
        return [self.image, self.label, self.predicted.tolist(), self.kept.tolist()]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "PseudoLabel":
        """Return the label for the result of `to_json`."""
        image, label, predicted, kept = values
        return cls(image, label, np.array(predicted, np.int64), np.array(kept, np.int64))


def name_files(inputs: Sequence[Input], root: Path, split: str, kind: str) -> dict[Input, tuple[str, str]]:
    """Return the image and label file of each input, relative to `root`.

    Args:
      inputs: The images.
      root: The data set folder.
      split: The name of the new split.
      kind: How label files encode classes: "labelIds", "labelTrainIds" or "color".

    Raises:
      DataError: An image is not below `root`, or its name cannot be written to a list.
    """
    top = Path(os.path.abspath(root))
    images = {}
    for each in inputs:
        path = Path(os.path.abspath(each.path))
        if not path.is_relative_to(top):
            raise DataError(f"{each.path} is not below {root}. Move or link the images into the data set folder.")
        images[each] = path.relative_to(top).as_posix()
        _require_listable(images[each])
    results = name_results(list(images.values()))
    return {each: (image, f"{split}/{name}_{kind}.png") for (each, image), name in zip(images.items(), results, strict=True)}


def _require_listable(name: str) -> None:
    try:
        name.encode()
        is_text = True
    except UnicodeEncodeError:
        is_text = False
    if not is_text or name != name.strip() or len(name.splitlines()) > 1 or name.startswith("#") or {"\t", "\\"} & set(name):
        raise DataError(f"The file name {name!r} cannot be written to a list. Rename the file.")


def value_of_train_id(label_set: LabelSet, kind: str, data_labels: LabelSet | None = None) -> UInt8[np.ndarray, "256 ..."]:
    """Return the value in label files for each train id and for 255 (ignored): uint8 [256], or [256, 3] for colours.

    Args:
      label_set: The network's label set.
      kind: How label files encode classes: "labelIds", "labelTrainIds" or "color".
      data_labels: The data set's label set, if it has one. Its ignored value is used if the network's label set has none,
        because it can be added after the training.

    Raises:
      ConfigError: There is no value for ignored pixels.
    """
    if kind == "labelTrainIds":
        return np.arange(256, dtype=np.uint8)
    ignored = _list_ignored(label_set, kind) or (_list_ignored(data_labels, kind) if data_labels else [])
    if not ignored:
        raise ConfigError(
            f"The label set {label_set.name} ignores no value, so unsure pixels cannot be written as {kind}. "
            f"Add one to ignored_{'colors' if kind == 'color' else 'ids'} in the data set's labels.json."
        )
    if kind == "color":
        values = label_set.palette()
    else:
        values = np.zeros(256, np.uint8)
        values[: label_set.num_classes] = label_set.class_ids
    values[IGNORE] = ignored[0]
    return values


def _list_ignored(label_set: LabelSet, kind: str) -> list[Any]:
    """Return the ids or the colours that stand for ignored pixels, the best one first."""
    if kind == "color":
        colors = {color for group in label_set.colors_by_class for color in group}
        return [color for color in label_set.ignored_colors if color not in colors]
    # 255 if possible, because it stands for ignored pixels in most data sets.
    return sorted(label_set.ignored_ids, key=lambda value: value != IGNORE)


def make_output(
    files: dict[Input, tuple[str, str]],
    root: Path,
    values: UInt8[np.ndarray, "256 ..."],
    num_classes: int,
    min_confidence: float,
    written: list[PseudoLabel],
) -> Output:
    """Return an output for `images.run` that writes labels.

    Args:
      files: The result of `name_files`.
      root: The data set folder.
      values: The result of `value_of_train_id`.
      num_classes: The number of classes.
      min_confidence: The smallest probability of a pixel's class for which the pixel gets a label.
      written: Receives an entry for each written file, in any order.
    """

    def write(each: Input, image: UInt8[np.ndarray, "h w c"] | None, prediction: Prediction) -> None:
        ids, labels = prediction
        assert labels is not None  # `predict_labels` returns both
        stored = values[turn_as_stored(labels, each.path)]
        image_file, label_file = files[each]
        with write_atomically(epath.Path(root) / label_file) as file:
            file.write(_encode_label(stored))
        predicted, kept = (np.bincount(pixels.ravel(), minlength=256)[:num_classes] for pixels in (ids, labels))
        written.append(PseudoLabel(image_file, label_file, predicted, kept))

    def keep_confident(ids: UInt8[np.ndarray, "h w"], confidence: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        return np.where(confidence >= np.float32(min_confidence), ids, np.uint8(IGNORE))

    return Output(functools.partial(inference.predict_labels, min_confidence=min_confidence), keep_confident, write)


def _encode_label(pixels: UInt8[np.ndarray, "h w ..."]) -> bytes:
    marks, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    marks.add_text(_MARK, _digest_pixels(pixels))
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=marks)
    return buffer.getvalue()


def _digest_pixels(pixels: UInt8[np.ndarray, "h w ..."]) -> str:
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def write_list(root: Path, split: str, labels: Sequence[PseudoLabel]) -> None:
    """Write `list/<split>.lst`, sorted by image.

    Raises:
      ConfigError: The file cannot be written.
    """
    lines = "".join(f"{each.image}\t{each.label}\n" for each in sorted(labels, key=lambda each: each.image))
    with write_atomically(epath.Path(list_path(root, split))) as file:
        file.write(f"{_COMMENT}{_digest_text(lines)}\n{lines}".encode())


def list_path(root: Path, split: str) -> Path:
    """Return the list file of a split."""
    return root / "list" / f"{split}.lst"


def _digest_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def is_written_list(path: Path) -> bool:
    """Return whether `write_list` wrote a file and it is unchanged."""
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return first == _COMMENT + _digest_text(rest)


def require_replaceable(root: Path, labels: Sequence[str]) -> None:
    """Check that existing label files were written by `make_output` and are unchanged.

    Args:
      root: The data set folder.
      labels: The label files to write, relative to `root`.

    Raises:
      DataError: A label was made or corrected by other means.
    """
    for label in labels:
        path = root / label
        if path.exists() and not _is_written_label(path):
            raise DataError(
                f"{path} was not written by `predict --as-labels`, or was edited since, so it is not overwritten. "
                "Move it away, or choose another split in --out."
            )


def _is_written_label(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return getattr(picture, "text", {}).get(_MARK) == _digest_pixels(np.array(picture))
    except (OSError, ValueError, SyntaxError):  # Pillow's errors for files that are not images
        return False
