"""Read `.lst` files, which name the images and labels of a split."""

import os
import posixpath
import re
from collections.abc import Iterator

from etils import epath

from deeplab_jax.data.decode import IMAGE_SUFFIXES, MASK_SUFFIXES
from deeplab_jax.errors import DataError

BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_IMAGE, _MASK = ("|".join(map(re.escape, suffixes)) for suffixes in (IMAGE_SUFFIXES, MASK_SUFFIXES))
_SEPARATED = re.compile(rf"(.+(?:{_IMAGE}))[,;|](.+(?:{_MASK}))", re.IGNORECASE)


def read_list(path: epath.Path, root: epath.Path) -> Iterator[tuple[str, str]]:
    """Yield an (image, label) pair of file names, relative to `root`, for each line in a `.lst` file.

    Columns are separated by tabs, or by spaces if the line has no tabs. A comma, semicolon or vertical bar between two file
    names also works. The label is "" if the line has only one column. Blank lines and lines that start with # are skipped.
    Names can have backslashes, and can start with a slash, with `root` itself or with the name of its last folder.

    Raises:
      DataError: The file is not text, a line has more than two columns, or a line names a file outside the root folder.
    """
    for number, line in enumerate(read_lines(path), start=1):
        columns = _split_columns(line)
        if not columns or columns[0].startswith("#"):
            continue
        if len(columns) > 2:
            raise DataError(
                f"Line {number} of {path} has {len(columns)} columns. "
                "Write `image` or `image label`, or `image<TAB>label` if the names contain spaces."
            )
        names = [_make_relative(name, root) for name in columns]
        for name, column in zip(names, columns, strict=True):
            if name is None:
                raise DataError(
                    f"Line {number} of {path} names {column!r}, which is outside the root folder. "
                    "Write names relative to the root folder."
                )
        yield names[0] or "", names[1] or "" if len(names) == 2 else ""


def _split_columns(line: str) -> list[str]:
    columns = [c.strip() for c in line.split("\t") if c.strip()] if "\t" in line else line.split()
    match = _SEPARATED.fullmatch(columns[0]) if len(columns) == 1 else None
    return list(match.groups()) if match else columns


def _make_relative(name: str, root: epath.Path) -> str | None:
    """Return a name relative to `root` in its shortest form, or None if it is outside."""
    name = name.replace("\\", "/")
    for prefix in (os.fspath(root), os.path.abspath(root)) if "://" not in str(root) else (str(root),):
        name = name.removeprefix(f"{prefix.rstrip('/')}/")
    if name.startswith("/"):
        # DeepLab's lists for Cityscapes and VOC start names with a slash. An absolute path elsewhere has no such file in
        # `root`.
        if not (root / name.lstrip("/").partition("/")[0]).exists():
            return None
        name = name.lstrip("/")
    name = posixpath.normpath(name)
    if name.startswith("../") or name == ".." or re.match(r"[A-Za-z]:/", name):
        return None
    first, _, rest = name.partition("/")
    return rest if rest and first == root.name and not (root / first).exists() else name


def read_lines(path: epath.Path) -> list[str]:
    """Return the lines of a text file in UTF-8, or in UTF-16 with a byte order mark.

    The file can use `\\r\\n` line endings and start with a byte order mark.

    Raises:
      DataError: The file has another encoding.
    """
    data = path.read_bytes()
    encoding = BYTE_ORDER_MARKS.get(data[:2], "utf-8-sig")
    try:
        return data.decode(encoding).splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.") from None
