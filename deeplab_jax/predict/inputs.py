"""Finding the images and videos that people name, and reading images as they are meant to be seen."""

import contextlib
import dataclasses
import glob
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deeplab_jax.errors import ConfigError, DataError, one_line

IMAGES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"))
_TURNED = frozenset((5, 6, 7, 8))  # orientations of EXIF that exchange width and height


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """An image or a video.

    Attributes:
      path: of the file.
      name: of its results, which may lie in folders; no two inputs have the same. A video's has its suffix: it is the folder of
        its frames, which no image's results lie in.
    """

    path: pathlib.Path
    name: str


def is_video(path: pathlib.Path) -> bool:
    """Check whether the file is a video, by its suffix."""
    return path.suffix.lower() in VIDEOS


def find_inputs(words: Sequence[str], out: str = "") -> tuple[tuple[Input, ...], tuple[pathlib.Path, ...]]:
    """Return the inputs that `words` name, and the files in folders and patterns whose suffix is no input's.

    Args:
      words: files, whatever their suffix; folders, with everything below them that is not hidden; patterns of `glob`, where **
        goes into folders.
      out: folder of results, whose files are no inputs.

    Raises:
      ConfigError: A word names nothing.
    """
    paths: dict[str, tuple[pathlib.Path, str]] = {}  # path and name by absolute path
    others = []
    for word in words:
        for path, base in _find_files(word):
            where = os.path.abspath(path)
            if base and out and pathlib.Path(where).is_relative_to(os.path.abspath(out)):
                continue
            if base is None or path.suffix.lower() in IMAGES | VIDEOS:
                short = path.relative_to(base) if base else pathlib.Path(path.name)
                paths.setdefault(where, (path, str(short if is_video(path) else short.with_suffix(""))))
            else:
                others.append(path)
    count = Counter(name for _, name in paths.values())
    # Results of a.jpg and a.png are a.jpg.png and a.png.png; of x/a.jpg and y/a.jpg, both named, with their folders.
    names = {
        where: name if count[name] == 1 else str(pathlib.Path(name).with_name(path.name))
        for where, (path, name) in paths.items()
    }
    count = Counter(names.values())
    inputs = tuple(
        Input(paths[where][0], name if count[name] == 1 else str(pathlib.Path(where).relative_to(pathlib.Path(where).anchor)))
        for where, name in names.items()
    )
    return inputs, tuple(others)


def _find_files(word: str) -> list[tuple[pathlib.Path, pathlib.Path | None]]:
    try:
        paths = list(_below(word)) if word else []
    except (OSError, RuntimeError):  # a name that no file can have; ~ of nobody
        paths = []
    if not paths:
        raise ConfigError(f"`{word}` names no file: give images, videos, folders or patterns such as 'photos/*.jpg'")
    return paths


def _below(word: str) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """Yield files, each with the folder that its name is relative to; None for a file that was named itself."""
    path = pathlib.Path(word).expanduser()
    if path.is_dir():
        yield from ((file, path) for file in _files(path.rglob("*"), path))
    elif path.exists():
        yield path, None
    else:
        fixed = pathlib.Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
        yield from ((file, fixed) for file in _files(map(pathlib.Path, glob.iglob(str(path), recursive=True)), fixed))


def _files(paths: Iterator[pathlib.Path], base: pathlib.Path) -> list[pathlib.Path]:
    """Return those that are not hidden below `base`, in order."""
    return sorted(
        path for path in paths if path.is_file() and not any(part.startswith(".") for part in path.relative_to(base).parts)
    )


def read_size(path: pathlib.Path) -> tuple[int, int]:
    """Return (height, width) as the image is meant to be seen, from the file's header; EXIF after a PNG's pixels is ignored.

    Raises:
      DataError: It is no image.
    """
    with _translate_errors(path), Image.open(path) as image:
        # Pillow turns TIFFs itself; to look for a PNG's EXIF behind the pixels it would decode them.
        has_exif = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
        is_turned = has_exif and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return (image.width, image.height) if is_turned else (image.height, image.width)


def read_image(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """Return RGB, turned as EXIF says. Grey is repeated, alpha dropped, 16 bits are cut to the upper 8, animations to an image.

    Raises:
      DataError: The file cannot be read, or its values have no range.
    """
    with _translate_errors(path), Image.open(path) as image:
        turned = ImageOps.exif_transpose(image)
        if turned.mode == "F":
            raise DataError(f"{path} holds floating-point numbers, which have no range: save it with 8 or 16 bits")
        if turned.mode.startswith("I"):
            return np.repeat((np.asarray(turned).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)
        return np.asarray(turned.convert("RGB"))


@contextlib.contextmanager
def _translate_errors(path: pathlib.Path) -> Iterator[None]:
    """Turn whatever a decoder raises about a broken file into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({one_line(error)}): cut it up") from None
    except Exception as error:
        reason = "it is no image" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise DataError(f"{path} cannot be read ({reason}): replace it") from None
