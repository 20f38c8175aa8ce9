"""Finding what people name, images, folders, patterns and videos, and reading images as they are meant to be seen."""

import dataclasses
import glob
import pathlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from deeplab_jax.errors import ConfigError, DataError, one_line

IMAGES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"))
_TURNED = frozenset((5, 6, 7, 8))  # orientations of EXIF that exchange width and height


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """An image or a video.

    Attributes:
      path: of the file.
      name: of its results, which may lie in folders; no two inputs have the same.
    """

    path: pathlib.Path
    name: str

    @property
    def is_video(self) -> bool:
        """By its suffix."""
        return self.path.suffix.lower() in VIDEOS


def find(words: Sequence[str]) -> tuple[tuple[Input, ...], tuple[pathlib.Path, ...]]:
    """The inputs that `words` name, and the files in folders and patterns that are none by their suffix.

    Args:
      words: files, whatever their suffix; folders, with all that is below; patterns of `glob`, of which ** goes into folders.

    Raises:
      ConfigError: a word names nothing.
    """
    found: dict[pathlib.Path, str] = {}
    others = []
    for word in words:
        paths = list(_below(word))
        if not paths:
            raise ConfigError(f"`{word}` names no file: give images, videos, folders or patterns such as 'photos/*.jpg'")
        for path, base in paths:
            if base is None or path.suffix.lower() in IMAGES | VIDEOS:
                found.setdefault(path, str(path.relative_to(base or path.parent).with_suffix("")))
            else:
                others.append(path)
    count = Counter(found.values())
    # Results of a.jpg and a.png are a.jpg.png and a.png.png; of x/a.jpg and y/a.jpg, both named, with their folders.
    names = {path: name if count[name] == 1 else str(pathlib.Path(name).with_name(path.name)) for path, name in found.items()}
    count = Counter(names.values())
    inputs = tuple(
        Input(path, name if count[name] == 1 else "/".join(part for part in path.absolute().parts if part != path.anchor))
        for path, name in names.items()
    )
    return inputs, tuple(others)


def _below(word: str) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """Files, each with the folder that its name starts in; None of one that was named itself."""
    path = pathlib.Path(word).expanduser()
    if path.is_dir():
        yield from ((file, path) for file in _files(path.rglob("*")))
    elif path.exists():
        yield path, None
    else:
        fixed = pathlib.Path(*(part for part in path.parts[: _first_pattern(path)]))
        yield from ((file, fixed) for file in _files(map(pathlib.Path, glob.iglob(str(path), recursive=True))))


def _first_pattern(path: pathlib.Path) -> int:
    return next((i for i, part in enumerate(path.parts) if glob.has_magic(part)), len(path.parts) - 1)


def _files(paths: Iterator[pathlib.Path]) -> list[pathlib.Path]:
    """Those that are not hidden, in order."""
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def size(path: pathlib.Path) -> tuple[int, int]:
    """(height, width) as the image is meant to be seen, from the file's header.

    Raises:
      DataError: it is no image.
    """
    with _opened(path) as image:
        is_turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        return (image.width, image.height) if is_turned else (image.height, image.width)


def read(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB, turned as EXIF says; grey repeated, alpha dropped, of 16 bits the upper 8, of an animation the first image.

    Raises:
      DataError: the file cannot be read, or its values have no range.
    """
    with _opened(path) as image:
        try:
            image = ImageOps.exif_transpose(image)
            if image.mode == "F":
                raise DataError(f"{path} holds floating-point numbers, which have no range: save it with 8 or 16 bits")
            if image.mode.startswith("I"):
                image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({one_line(error)}): replace it") from None


def _opened(path: pathlib.Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large images are what windows are for; broken metadata is not our concern
            return Image.open(path)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({one_line(error)}): cut it up") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = "it is no image" if "cannot identify" in str(error) else one_line(error)
        raise DataError(f"{path} cannot be read ({reason}): replace it") from None
