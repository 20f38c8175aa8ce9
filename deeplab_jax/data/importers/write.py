"""Write imported annotations in the custom layout: images in input/SPLIT/, masks of ids in target/SPLIT/, and labels.json."""

import contextlib
import dataclasses
import glob
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from etils import epath
from PIL import Image

from deeplab_jax.data.decode import find_orientation
from deeplab_jax.data.importers import reading
from deeplab_jax.data.importers.annotation import Annotation, AnnotationSet, Notes, Shape
from deeplab_jax.errors import ConfigError, DataError, one_line
from deeplab_jax.files import advise_on_write_error, link_or_copy, report_write_errors, write_atomically
from deeplab_jax.labels import IGNORE
from deeplab_jax.runtime.machine import is_running

EMPTY = "images without shapes (left out; --keep-empty keeps them as background)"
SIZES = "images whose size is not that of their annotation (left out)"
FORMAT = f"images in a format that training cannot read, not one of {', '.join(reading.IMAGE_SUFFIXES)} (left out)"
DUPLICATE = "images with the name of another one (left out)"
AGAIN = "further annotations of an image (their shapes are missing in its mask; merge the annotation files)"
SHARED = "images of more than one split (their scores are not those of unseen images)"
UNCLEAR_TURN = "images with an EXIF orientation, drawn on the turned or the stored pixels (left out)"
TURNED = "images with an EXIF orientation (kept; their masks were turned to the stored pixels, which training reads)"
BEYOND = "shapes that reach beyond their image (cut off)"
MARGIN = 1.0  # in pixels; tools round coordinates at the edge of the image

# The transposition from the turned view to the stored pixels, by EXIF orientation.
TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Endings that give the kind of a mask (see `find.py`), which would be wrong for masks of ids of any label set.
KIND_ENDINGS = ("_labelids", "_labeltrainids", "_color")


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing:
    """How shapes become a mask.

    Attributes:
      ids: The id of each class. None is the id of ignored pixels.
      fill: The id of pixels without a shape.
      order: "file" to draw in the order of the annotations, or "area" to draw larger shapes first.
      keep_empty: Whether to keep images without shapes.
    """

    ids: Mapping[str | None, int]
    fill: int
    order: str = "file"
    keep_empty: bool = False


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `out`, and rename it to `out` when the block ends.

    After an error the temporary folder is removed. If the process is killed, it stays, and the next call removes it. Each
    process has its own, so that of two imports to the same folder, the first to end is complete, and the other one fails.

    Raises:
      ConfigError: The folder cannot be written.
    """
    start = f".{out.name}.importing."
    part = out.parent / f"{start}{os.getpid()}"
    try:
        for folder in out.parent.glob(f"{glob.escape(start)}*"):
            process = folder.name.removeprefix(start)
            if process.isdecimal() and not is_running(int(process)):
                shutil.rmtree(folder)
        part.mkdir(parents=True)
        yield part
        part.replace(out)
    except OSError as error:
        raise ConfigError(f"Cannot write {out}: {error.strerror or error}. {advise_on_write_error(error)}.") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_samples(
    source: AnnotationSet, folder: Path, drawing: Drawing, notes: Notes, advance: Callable[[], None]
) -> Counter[str]:
    """Write the images and masks of a data set.

    Args:
      source: The annotations.
      folder: The folder to write to.
      drawing: How to draw the masks.
      notes: Receives what was left out.
      advance: Called after each image.

    Returns:
      The number of samples of each split.

    Raises:
      ConfigError: A file cannot be written, or a package is missing.
    """
    counts: Counter[str] = Counter()
    written: dict[str, tuple[Path, str]] = {}
    splits: dict[Path, str] = {}
    for annotation in source.annotations:
        name = _make_output_name(annotation)
        stem = f"{annotation.split}/{PurePosixPath(name).with_suffix('')}"
        if stem in written:
            is_same = written[stem] == (annotation.image, annotation.name)
            notes.add(AGAIN if is_same else DUPLICATE, f"{annotation.image}: {annotation.split} already has {name}")
        elif _write_sample(annotation, source.is_turned, folder, name, drawing, notes):
            written[stem] = annotation.image, annotation.name
            counts[annotation.split] += 1
            first = splits.setdefault(annotation.image, annotation.split)
            if first != annotation.split:
                notes.add(SHARED, f"{annotation.image} in {first} and {annotation.split}")
        advance()
    return counts


def _write_sample(
    annotation: Annotation, is_turned: bool | None, folder: Path, name: str, drawing: Drawing, notes: Notes
) -> bool:
    """Write an image and its mask. Return False if the image is left out."""
    problem = annotation.unusable or ("" if annotation.shapes or drawing.keep_empty else EMPTY)
    if problem:
        notes.add(problem, annotation.image)
        return False
    try:
        data = annotation.embedded() if annotation.embedded else annotation.image.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            stored, orientation = (picture.height, picture.width), find_orientation(picture)
            image_format = picture.format or ""
    except Exception as error:  # Pillow raises many error types
        notes.add(reading.BAD_IMAGE, f"{annotation.image} ({one_line(error)})")
        return False
    if annotation.embedded:
        name = str(PurePosixPath(name).with_suffix({"JPEG": ".jpg"}.get(image_format, f".{image_format.lower()}")))
    if PurePosixPath(name).suffix.lower() not in reading.IMAGE_SUFFIXES:
        notes.add(FORMAT, annotation.image)
        return False
    mask = _draw_stored(annotation, stored, orientation, is_turned, drawing, notes)
    if mask is None:
        return False
    image_path = folder / "input" / annotation.split / name
    with report_write_errors(epath.Path(image_path)):
        image_path.parent.mkdir(parents=True, exist_ok=True)
        if annotation.embedded:
            image_path.write_bytes(data)
        else:
            link_or_copy(annotation.image.resolve(), image_path)
    mask_path = folder / "target" / annotation.split / PurePosixPath(name).with_suffix(".png")
    with write_atomically(epath.Path(mask_path)) as file:
        Image.fromarray(mask).save(file, "PNG")
    return True


def _draw_stored(
    annotation: Annotation,
    stored: tuple[int, int],
    orientation: int,
    is_turned: bool | None,
    drawing: Drawing,
    notes: Notes,
) -> np.ndarray | None:
    """Return the mask for the stored pixels of an image, uint8 [h, w], or None if the image has to be left out."""
    size = stored
    transposition = TO_STORED.get(orientation)
    if transposition is not None:
        turned = stored[::-1] if orientation >= 5 else stored
        view = find_view(stored, turned, annotation.size, is_turned)
        if view is None:
            notes.add(UNCLEAR_TURN, annotation.image)
            return None
        size = turned if view else stored
        transposition = transposition if view else None
    if annotation.size and annotation.size != size:
        sizes = f"{size[1]}x{size[0]} pixels, annotated as {annotation.size[1]}x{annotation.size[0]}"
        notes.add(SIZES, f"{annotation.image}, {sizes}")
        return None
    try:
        mask = draw_mask(annotation.shapes, size, drawing)
    except DataError as error:
        notes.add(reading.DAMAGED, f"{error} on {annotation.image}")
        return None
    for shape in annotation.shapes:
        if _is_beyond(shape, size):
            notes.add(BEYOND, f"{shape.name} on {annotation.image}")
    if transposition is None:
        return mask
    notes.add(TURNED, annotation.image)
    return np.array(Image.fromarray(mask).transpose(transposition))


def find_view(
    stored: tuple[int, int], turned: tuple[int, int], annotated: tuple[int, int] | None, is_turned: bool | None
) -> bool | None:
    """Return whether shapes were drawn on the image as its EXIF orientation turns it, or None if that is unclear.

    Args:
      stored: The (height, width) of the stored pixels.
      turned: The (height, width) of the turned image.
      annotated: The (height, width) that the tool recorded, or None.
      is_turned: Whether the tool turns images, or None if that is unknown. It decides where the sizes do not.
    """
    if stored != turned and annotated in (stored, turned):
        return annotated == turned
    return is_turned


def draw_mask(shapes: tuple[Shape, ...], size: tuple[int, int], drawing: Drawing) -> np.ndarray:
    """Return the mask of an image, uint8 [h, w].

    Args:
      shapes: The shapes in the order of the file. Where shapes overlap, the one that is drawn last is on top.
      size: The image's (height, width).
      drawing: The ids and the order.

    Raises:
      DataError: A shape is damaged.
    """
    mask = np.full(size, drawing.fill, np.uint8)
    if drawing.order == "area":  # each shape is drawn twice, because the pixels of all shapes may not fit into memory
        shapes = tuple(sorted(shapes, key=lambda shape: -np.count_nonzero(shape.figure.draw(*size))))
    for shape in shapes:
        mask[shape.figure.draw(*size)] = drawing.ids[shape.name]
    return mask


def _is_beyond(shape: Shape, size: tuple[int, int]) -> bool:
    extent = shape.figure.extent()
    if extent is None:
        return False
    left, top, right, bottom = extent
    return min(left, top) < -MARGIN or right > size[1] + MARGIN or bottom > size[0] + MARGIN


def _make_output_name(annotation: Annotation) -> str:
    """Return the image's path below the split folder. Bytes that are not UTF-8 become %XX, because lists are UTF-8."""
    name = re.sub("[\ud800-\udfff]", lambda match: f"%{ord(match[0]) & 0xFF:02X}", annotation.name)
    path = PurePosixPath(name)
    return str(path.with_stem(f"{path.stem}_image")) if path.stem.lower().endswith(KIND_ENDINGS) else str(path)


def fill_value(unlabelled: str) -> int:
    """Return the id of pixels without a shape for "background" or "ignored"."""
    return 0 if unlabelled == "background" else IGNORE


def require_output(root: Path, out: Path) -> None:
    """Check that `out`, a path without symbolic links, is a new or empty folder outside `root`, and can be replaced.

    Raises:
      ConfigError: It is not.
    """
    if out.is_relative_to(os.path.realpath(root)):
        raise ConfigError(f"`--out` (={str(out)!r}) is inside ROOT ({root}). Choose a folder outside it.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"`--out` (={str(out)!r}) already exists and is not an empty folder. Choose a new folder.")
    if os.path.ismount(out):  # the finished import is renamed to `out`
        raise ConfigError(f"`--out` (={str(out)!r}) is a mount point, which cannot be replaced. Choose a folder inside it.")
