"""Read annotation files, find images below ROOT, and name splits and colours."""

import csv
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from deeplab_jax.data.decode import IMAGE_SUFFIXES
from deeplab_jax.data.folders import list_files as list_visible_files
from deeplab_jax.data.split_names import SPLITS
from deeplab_jax.errors import DataError, one_line
from deeplab_jax.labels import Color

# The suffixes that an image can have if its annotation gives its name without one.
LIKELY_SUFFIXES = (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES))
OUTSIDE = "paths that leave ROOT (images left out; give the folder above both the images and the annotations)"
MISSING = "annotations whose image is missing"
MOVED = "images that were found without the folder in which their annotations place them"
UNREADABLE = "annotation files that cannot be read (left out)"
FEW_POINTS = "polygons with fewer than 3 points (not drawn)"
BAD_IMAGE = "images that cannot be read (left out)"
DAMAGED = "images with a damaged shape (left out)"
UNSUPPORTED = "shapes without an area or of an unsupported type (not drawn)"
UNKNOWN_CLASS = "shapes of unknown classes (their pixels are ignored)"
REPEATED = "class names that a file gives to several classes (merged into one)"
ONLY_BOXES = "images with boxes but no outlines (left out)"


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark.

    Raises:
      DataError: The file is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}). Export the annotations again, as UTF-8.") from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
      DataError: The file is unreadable or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({one_line(error)}). Export the annotations again.") from None


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with a header, with stripped keys and values.

    Raises:
      DataError: The file is unreadable or not CSV.
    """
    try:
        rows = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV ({one_line(error)}). Export the annotations again.") from None
    header = [cell.strip() for cell in rows[0]] if rows else []
    return [dict(zip(header, (cell.strip() for cell in row), strict=False)) for row in rows[1:] if row]


def find_files(root: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the visible files below `root` whose names end in one of `suffixes`, in lower case, sorted by path."""
    ends = tuple(suffixes)
    return [root / name for name in list_visible_files(root) if name.lower().endswith(ends)]


def locate(root: Path, base: Path, name: str) -> Path | None:
    """Return the path that `name` means below the folder `base`, or None if it leaves `root`.

    "." and ".." are resolved by name only, so symbolic links below `root` may lead elsewhere. Backslashes separate folders if
    there is no file whose name contains them.
    """
    path = Path(os.path.normpath(base / name))
    if "\\" in name and not path.exists():
        windows = PureWindowsPath(name)
        path = Path(os.path.normpath(base / windows.as_posix())) if not windows.drive else Path(windows.as_posix())
    return path if path.is_absolute() and path.is_relative_to(root) else None


def split_name(name: str) -> list[str]:
    """Return the folders and the file of a path or URL of any system."""
    return PureWindowsPath(name).as_posix().split("/")


def shared_folder(names: Iterable[str]) -> list[str]:
    """Return the folders with which all paths begin."""
    levels = zip(*(split_name(name)[:-1] for name in names), strict=False)
    return [level[0] for level in itertools.takewhile(lambda level: len({*level}) == 1, levels)]


def find_moved(root: Path, bases: Iterable[Path], name: str, shared: Sequence[str]) -> Path | None:
    """Return the image in one of the folders `bases` if its name there lacks the folder `shared`, or None.

    The folder with which all names in an annotation file begin can be one of another computer, or of the tool.
    """
    if not shared:
        return None
    paths = (locate(root, base, "/".join(split_name(name)[len(shared) :])) for base in bases)
    return next((path for path in paths if path and path.is_file()), None)


class Images:
    """The image files below a folder, found by the end of their paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] = {}

    def find(self, name: str, split: str, bases: Iterable[Path]) -> Path | None:
        """Return the file of an image.

        It is looked for in the folders `bases`. If it is in none of them, it is the only image below the root whose path ends
        in `name` and has no folder that is named like another split.

        Args:
          name: The path in the annotation file.
          split: The split of the annotation.
          bases: The folders to which the path could be relative.

        Returns:
          The file, or None if there is none or several.

        Raises:
          DataError: The path leads out of the root from each of the folders.
        """
        paths = [locate(self.root, base, name) for base in bases]
        if paths and not any(paths):
            raise DataError(f"{name!r} leads out of {self.root}")
        image = next((path for path in paths if path and path.is_file()), None)
        return image or self._find_by_name(PurePosixPath(PureWindowsPath(name).as_posix()), split)

    def _find_by_name(self, name: PurePosixPath, split: str) -> Path | None:
        if not self._by_name:
            by_name = defaultdict(list)
            for path in find_files(self.root, IMAGE_SUFFIXES):
                by_name[path.name].append(path)
            self._by_name = dict(by_name)
        end = [part for part in name.parts if part not in ("..", ".")]
        fits = []
        for path in self._by_name.get(name.name, ()):
            parts = path.relative_to(self.root).parts
            others = {find_split_in_name(part) for part in parts[:-1]} - {split, ""}
            if list(parts[-len(end) :]) == end and not others:
                fits.append(path)
        return fits[0] if len(fits) == 1 else None


def find_split_in_name(text: str) -> str:
    """Return the split that a name contains as a word, as in "instances_val2017", or "" if it contains none."""
    words = (word.lower() for word in re.findall("[A-Za-z]+", text))
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def find_split_in_folders(name: str, shared: Sequence[str]) -> str:
    """Return the split that a folder in an image's path means, or "".

    `shared` is the folder with which all paths begin. It says nothing about the split. See `shared_folder`.
    """
    folders = split_name(name)[len(shared) : -1]
    return next((SPLITS[folder.lower()] for folder in folders if folder.lower() in SPLITS), "")


def name_below_split(name: str, image: Path, split: str) -> str:
    """Return the image's path in its split, given its path in the annotation file.

    Folders stay, except those that a tool always writes: images and the split.
    """
    folders = [part for part in split_name(name)[:-1] if part not in ("", ".", "..")]
    while folders and (folders[0] == "images" or SPLITS.get(folders[0].lower()) == split):
        folders = folders[1:]
    return "/".join([*folders, image.name])


def split_path(path: Path, root: Path) -> tuple[str, str]:
    """Return the split and the name of an image whose first folder below `root` is a split, as train and the path if not."""
    parts = path.relative_to(root).parts
    split = SPLITS.get(parts[0].lower(), "") if len(parts) > 1 else ""
    return (split, "/".join(parts[1:])) if split else ("train", "/".join(parts))


def find_repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def parse_color(text: Any) -> Color | None:
    """Return the colour of "#rrggbb" or "#rgb", or None if `text` is neither."""
    match = re.fullmatch("#?([0-9a-fA-F]{6}|[0-9a-fA-F]{3})", text.strip()) if isinstance(text, str) else None
    if not match:
        return None
    digits = match[1] if len(match[1]) == 6 else "".join(2 * digit for digit in match[1])
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """Return (height, width) if both are positive whole numbers, or None."""
    try:
        size = int(height), int(width)
    except (TypeError, ValueError):
        return None
    return size if min(size) > 0 else None
