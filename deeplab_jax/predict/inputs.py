"""Find the user's images and videos, and read images in the orientation shown by image viewers."""

import contextlib
import dataclasses
import glob
import io
import itertools
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import UnidentifiedImageError

from deeplab_jax.buckets import SCHEMES
from deeplab_jax.data import decode
from deeplab_jax.data.folders import is_visible, list_files
from deeplab_jax.errors import ConfigError, DataError, one_line

IMAGES = frozenset((*decode.IMAGE_SUFFIXES, ".gif", ".pgm", ".ppm"))
_CAMERA = re.compile(r"\d{1,2}|/dev/video\d+")  # what OpenCV and FFmpeg take for cameras
RESULTS = ("color", "confidence", "overlay", "train_ids")  # the folders that `predict` writes to
VIDEOS = frozenset(
    (".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
)


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """An image or a video.

    Attributes:
      path: The file path.
      name: A unique name for the results, which can include folders. A video's name keeps the file suffix, because the name is
        also the folder for the video's frames and must not clash with an image's name.
    """

    path: pathlib.Path
    name: str

    @property
    def video_name(self) -> str:
        """Return the name of the overlay of a video, which is always an .mp4 file."""
        return self.name if self.name.endswith(".mp4") else f"{self.name}.mp4"


def is_video(path: pathlib.Path) -> bool:
    """Return whether the file has a video suffix."""
    return path.suffix.lower() in VIDEOS


def find_inputs(arguments: Sequence[str], out: str = "") -> tuple[tuple[Input, ...], tuple[pathlib.Path, ...]]:
    """Return the inputs for the given arguments, and the files skipped because of their suffix.

    Args:
      arguments: Files, folders and `glob` patterns. A file that is named directly can have any suffix. A folder stands for the
        files below it. Hidden files and the folders of other programs are left out, as in training (see `folders.list_files`).
        In a pattern, ** matches any number of folders.
      out: The results folder. Files in its RESULTS folders, and links to them, are skipped, because new results can replace
        them.

    Raises:
      ConfigError: An argument does not match any file but skipped ones, or two inputs would have the same results.
    """
    paths: dict[str, tuple[pathlib.Path, str]] = {}  # absolute path -> (path as given, result name)
    others = []
    for argument in arguments:
        for path, base in _leave_out_results(_find_files(argument), argument, out):
            where = os.path.abspath(path)
            if base is None or path.suffix.lower() in IMAGES | VIDEOS:
                short = path.relative_to(base) if base else pathlib.Path(path.name)
                paths.setdefault(where, (path, str(short if is_video(path) else short.with_suffix(""))))
            else:
                others.append(path)
    count = Counter(name for _, name in paths.values())
    # If two result names clash, keep the suffixes: a.jpg and a.png become a.jpg.png and a.png.png. If they still clash, as
    # with the arguments x/a.jpg and y/a.jpg, use the full path.
    names = {
        where: name if count[name] == 1 else str(pathlib.Path(name).with_name(path.name))
        for where, (path, name) in paths.items()
    }
    count = Counter(names.values())
    inputs = tuple(
        Input(paths[where][0], name if count[name] == 1 else str(pathlib.Path(where).relative_to(pathlib.Path(where).anchor)))
        for where, name in names.items()
    )
    _require_separate(inputs)
    return inputs, tuple(others)


def _leave_out_results(
    files: Sequence[tuple[pathlib.Path, pathlib.Path | None]], argument: str, out: str
) -> list[tuple[pathlib.Path, pathlib.Path | None]]:
    """Return the (file, base) pairs of an argument without those in the results folders of `out`.

    Raises:
      ConfigError: All files are in these folders.
    """
    folders = [os.path.join(out, folder) for folder in RESULTS if out]
    results = [os.path.realpath(folder) for folder in folders if os.path.isdir(folder)]
    rest = [(path, base) for path, base in files if not any(map(pathlib.Path(os.path.realpath(path)).is_relative_to, results))]
    if not rest:
        raise ConfigError(
            f"`{argument}` has only files in the folders {', '.join(RESULTS)} of `--out` (={out!r}), which results could "
            "replace. Choose another --out."
        )
    return rest


def _require_separate(inputs: Sequence[Input]) -> None:
    """Check that no file in the results of a video is also a result of another input."""
    videos = {each.name: each for each in inputs if is_video(each.path)}
    overlays: dict[str, Input] = {}
    for each in inputs:
        # The frames of a video are in a folder with the name of the video.
        others = [videos[name] for name in map(str, pathlib.PurePath(each.name).parents) if name in videos]
        if each.name in videos and (other := overlays.setdefault(each.video_name, each)) != each:
            others.append(other)
        if others:
            raise ConfigError(f"{others[0].path} and {each.path} would have results with the same names. Rename one of them.")


def _find_files(argument: str) -> list[tuple[pathlib.Path, pathlib.Path | None]]:
    if "://" in argument or (_CAMERA.fullmatch(argument) and not _is_file_or_folder(argument)):
        if argument.partition("://")[0] in SCHEMES:
            raise ConfigError(
                f"`{argument}` is in a bucket. `predict` only reads files on this machine. Copy them to a disk first."
            )
        what = "a web address" if argument.startswith("http") else "a camera or stream"
        raise ConfigError(
            f"`{argument}` is {what}. `predict` only reads files on this machine. Download files first. For cameras and "
            "streams, use the loop in docs/how-to/use-a-network.md."
        )
    try:
        paths = list(_list_files(argument)) if argument else []
    except (OSError, RuntimeError):  # the name is too long, or ~ names an unknown user
        paths = []
    if any(base is None and path.is_fifo() for path, base in paths):
        raise ConfigError(f"`{argument}` is a pipe, but `predict` reads files twice. Save the data to a file first.")
    if not paths:
        problem = "has no files" if os.path.isdir(os.path.expanduser(argument)) else "does not match any file"
        raise ConfigError(f"`{argument}` {problem}. Give files, folders or patterns such as 'photos/*.jpg'.")
    return paths


def _is_file_or_folder(argument: str) -> bool:
    path = pathlib.Path(argument)
    return path.is_file() or path.is_dir()


def _list_files(argument: str) -> Iterator[tuple[pathlib.Path, pathlib.Path | None]]:
    """Yield (file, base) pairs. Result names are relative to the folder `base`, which is None if the argument is a file."""
    path = pathlib.Path(argument).expanduser()
    if path.is_dir():
        yield from ((path / name, path) for name in list_files(path))
    elif path.exists():
        yield path, None
    else:
        fixed = pathlib.Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
        matches = sorted(map(pathlib.Path, glob.iglob(str(path), recursive=True)))
        yield from ((file, fixed) for file in matches if file.is_file() and all(map(is_visible, file.relative_to(fixed).parts)))


def read_size(path: pathlib.Path) -> tuple[int, int]:
    """Read an image's header and return its (height, width) after EXIF rotation.

    EXIF data stored after a PNG's pixels is ignored.

    Raises:
      DataError: The file is not an image.
    """
    with _translate_errors(path), path.open("rb") as file:
        height, width = decode.read_size(file)
        file.seek(0)
        return (width, height) if decode.read_orientation(file) in decode.TRANSPOSED else (height, width)


def read_image(path: pathlib.Path, channels: int = 3, value_range: tuple[float, ...] = ()) -> UInt8[np.ndarray, "h w channels"]:
    """Return an image as training reads it, but rotated according to its EXIF orientation.

    Args:
      path: The image file.
      channels: The number of bands to return. See `decode.decode_image`.
      value_range: The stored values that become 0 and 255, or (). See `decode.decode_image`.

    Raises:
      DataError: The file is unreadable or has the wrong number of bands, or its values have no fixed range.
    """
    with _translate_errors(path):
        data = path.read_bytes()
        return _turn_upright(decode.decode_image(data, channels, value_range), decode.read_orientation(io.BytesIO(data)))


def _turn_upright(image: UInt8[np.ndarray, "h w c"], orientation: int) -> UInt8[np.ndarray, "h2 w2 c"]:
    """Return an image with EXIF orientation 1, given its orientation. The result can be a view."""
    if orientation in decode.TRANSPOSED:
        image = image.transpose(1, 0, 2)
    rows, columns = _flips(orientation)
    return image[::rows, ::columns]


def turn_as_stored(pixels: UInt8[np.ndarray, "h w"], path: pathlib.Path) -> UInt8[np.ndarray, "h2 w2"]:
    """Return the labels of an upright image for the pixels as they are stored in its file, which is what training reads.

    Raises:
      DataError: The file is unreadable.
    """
    with _translate_errors(path), path.open("rb") as file:
        orientation = decode.read_orientation(file)
    rows, columns = _flips(orientation)
    turned = pixels[::rows, ::columns]
    return turned.T if orientation in decode.TRANSPOSED else turned


def _flips(orientation: int) -> tuple[int, int]:
    """Return the steps, 1 or -1, along rows and columns that make an image upright after its transposition."""
    return -1 if orientation in (3, 4, 7, 8) else 1, -1 if orientation in (2, 3, 6, 7) else 1


@contextlib.contextmanager
def _translate_errors(path: pathlib.Path) -> Iterator[None]:
    """Convert any decoder error to a DataError that names the file."""
    try:
        yield
    except decode.FormatError as error:
        fault, is_setting, _ = str(error).partition(" Set data.")  # the network was trained with another value of the field
        raise DataError(f"{path} {fault}{' Convert it to the format of the training images.' if is_setting else ''}") from None
    except Exception as error:
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise DataError(f"{path} cannot be read ({reason}). Replace the file.") from None
