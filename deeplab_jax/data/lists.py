"""Read `.lst` files, which name the images and labels of a split."""

import functools
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from deeplab_jax.buckets import is_url
from deeplab_jax.data.decode import IMAGE_SUFFIXES, LOSSY_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.errors import DataError

BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_IMAGE, _MASK = ("|".join(map(re.escape, suffixes)) for suffixes in (IMAGE_SUFFIXES, MASK_SUFFIXES))
_QUOTED = re.compile(r'"([^"]+)"(?:[\s,;|]+"([^"]+)")?')
_SEPARATED = re.compile(rf'"?(.+(?:{_IMAGE}))"?\s*[,;|]\s*"?(.+(?:{_MASK}))"?', re.IGNORECASE)


def read_list(path: epath.Path, root: epath.Path) -> Iterator[tuple[str, str]]:
    """Yield an (image, label) pair of file names, relative to `root`, for each line in a `.lst` file.

    Columns are separated by tabs, or by spaces if the line has no tabs. A comma, semicolon or vertical bar between two file
    names also works. Names can have quotes. The label is "" if the line has only one column. Blank lines and lines that
    start with # are skipped. Names can have backslashes, and can start with a slash, with `root` itself or with the name of
    its last folder.

    Raises:
      DataError: The file is not text, a line has more than two columns or probably names the label first, or it names a file
        outside the root folder.
    """
    # A list can have 25,000 lines, so all that depends only on the root folder is done once.
    spellings = (os.fspath(root), os.path.abspath(root)) if not is_url(root) else (str(root),)
    prefixes = [f"{spelling.rstrip('/')}/" for spelling in spellings]
    exists = functools.cache(lambda name: (root / name).exists())
    for number, line in enumerate(read_lines(path), start=1):
        columns = _split_columns(line)
        if not columns or columns[0].startswith("#"):
            continue
        if len(columns) > 2:
            raise DataError(
                f"Line {number} of {path} has {len(columns)} columns. "
                "Write `image` or `image label`, or `image<TAB>label` if the names contain spaces."
            )
        names = [_make_relative(name, prefixes, root.name, exists) for name in columns]
        for name, column in zip(names, columns, strict=True):
            if name is None:
                raise DataError(
                    f"Line {number} of {path} names {column!r}, which is outside the root folder. "
                    "Write names relative to the root folder."
                )
        is_lossy = [column.lower().endswith(LOSSY_SUFFIXES) for column in columns]
        if is_lossy == [False, True]:
            raise DataError(
                f"Line {number} of {path} gives {columns[1]!r} as a label, but formats with lossy compression cannot hold "
                "labels. Write the image first and the label second."
            )
        yield names[0] or "", names[1] or "" if len(names) == 2 else ""


def _split_columns(line: str) -> list[str]:
    match = _QUOTED.fullmatch(line.strip()) or _SEPARATED.fullmatch(line.strip())
    if match:
        return [name for name in match.groups() if name]
    return [c.strip() for c in line.split("\t") if c.strip()] if "\t" in line else line.split()


def _make_relative(name: str, prefixes: Sequence[str], root_name: str, exists: Callable[[str], bool]) -> str | None:
    """Return a name relative to the root folder in its shortest form, or None if it is outside.

    Args:
      name: The name in the list.
      prefixes: The spellings of the root folder, each with a slash at the end.
      root_name: The root folder's own name.
      exists: A function that returns whether the root folder contains a file or folder.
    """
    name = name.replace("\\", "/")
    top = name.partition("/")[0]
    if top in ("", ".", "..") or not exists(top):  # otherwise, it is a folder in the root that is named like the root
        for prefix in prefixes:
            name = name.removeprefix(prefix)
    if name.startswith("/"):
        # DeepLab's lists for Cityscapes and VOC start names with a slash. An absolute path elsewhere has no such file in
        # `root`.
        if not exists(name.lstrip("/").partition("/")[0]):
            return None
        name = name.lstrip("/")
    name = posixpath.normpath(name)
    if name.startswith("../") or name == ".." or re.match(r"[A-Za-z]:/", name):
        return None
    first, _, rest = name.partition("/")
    return rest if rest and first == root_name and not exists(first) else name


def read_lines(path: epath.Path) -> list[str]:
    """Return the lines of a text file in UTF-8, or in UTF-16 with a byte order mark.

    The file can use `\\r\\n` line endings and start with a byte order mark.

    Raises:
      DataError: The file cannot be read, or has another encoding.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be read ({reason}). Make it a readable text file, or remove it.") from None
    encoding = BYTE_ORDER_MARKS.get(data[:2], "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
    if "\0" in text:  # as in UTF-16 without a byte order mark
        raise DataError(f"{path} is not UTF-8 text (zero at byte {data.index(0)}). Save it as UTF-8.")
    return text.splitlines()
