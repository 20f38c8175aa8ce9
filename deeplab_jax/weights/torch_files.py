"""Read files written by torch.save, without PyTorch and without executing what they contain.

A file is a zip archive, the older format with several pickles in a row, or one pickle with NumPy arrays. Tensors are located
when the file is opened. Their values are read later, and only those that are needed.
"""

import dataclasses
import functools
import io
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import unpickle
from deeplab_jax.weights.tensors import Tensor, Unsupported, Value, parse_storage
from deeplab_jax.weights.unpickle import PERSISTENT, Stub

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_EXPANSION = 10  # the largest accepted ratio of an archive's content to its size
_MAX_SHARING = 2  # the largest accepted number of elements per byte, which is above 1 only if tensors share memory


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """The content of a file, with its tensors unread.

    Attributes:
      root: The object that was saved, as read by `unpickle.load`.
      read: A function of (key, size) that returns the data of a storage. It raises a ValueError or KeyError if the file has no
        such storage of this size in bytes.
      is_big_endian: The byte order of the storages.
      size: The number of bytes in the file, after decompression.
    """

    root: Any
    read: Callable[[str, int], bytes]
    is_big_endian: bool
    size: int


def open_zip(path: str) -> TorchFile:
    """Open a zip archive written by torch.save.

    Raises:
      CheckpointError: The archive contains something else. The message continues a sentence that starts with the file name.
      Exception: The archive is damaged. The type depends on the damage.
    """
    file = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in file.infolist()}
    size = sum(entry.file_size for entry in entries.values())
    if size > _MAX_EXPANSION * os.path.getsize(path):
        raise ValueError("its archive expands to far more than its size")
    folders = [name.removesuffix("data.pkl") for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if any(name.endswith(("constants.pkl", "bytecode.pkl")) or "/code/" in name for name in entries):
        raise CheckpointError(
            _describe_program("a TorchScript program", "torch.jit.load(FILE, map_location='cpu').state_dict()")
        )
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in entries):
        raise CheckpointError(_describe_program("a program of torch.export", "torch.export.load(FILE).state_dict"))
    if len(folders) != 1:
        names = ", ".join(repr(name[:60]) for name in list(entries)[:3])
        is_packed = any(name.endswith((".pth", ".pt", ".bin", ".ckpt", ".safetensors")) for name in entries)
        advice = "Extract it first." if is_packed else "Use a file with a state dict."
        raise CheckpointError(f"is a zip archive, but not one written by torch.save (it contains {names}). {advice}")
    root = unpickle.load(io.BytesIO(file.read(f"{folders[0]}data.pkl")))
    order = f"{folders[0]}byteorder"
    is_big_endian = order in entries and file.read(order) == b"big"
    return TorchFile(root, functools.partial(_read_entry, file, f"{folders[0]}data/"), is_big_endian, size)


def _describe_program(kind: str, state_dict: str) -> str:
    return (
        f"is {kind}, which contains code besides the weights. In Python with PyTorch, run "
        f"`torch.save({state_dict}, 'weights.pth')` and import weights.pth."
    )


def _read_entry(file: zipfile.ZipFile, folder: str, key: str, size: int) -> bytes:
    entry = file.getinfo(f"{folder}{key}")
    if entry.file_size != size:
        raise ValueError(f"storage {key[:40]!r} has another size")
    return file.read(entry)  # this checks the CRC


def open_pickle(path: str) -> TorchFile:
    """Open a file written by torch.save before PyTorch 1.6, or a pickle with NumPy arrays.

    Raises:
      Exception: The file is damaged. The type depends on the damage.
    """
    with open(path, "rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if buffer[: len(LEGACY_MAGIC)] != LEGACY_MAGIC:
        return TorchFile(unpickle.load(buffer), functools.partial(_read_span, path, {}), False, len(buffer))
    buffer.seek(len(LEGACY_MAGIC))
    if unpickle.load(buffer) != 1001:
        raise ValueError("it has an unknown version")
    system = unpickle.load(buffer)
    is_big_endian = isinstance(system, dict) and system.get("little_endian") is False
    root, keys = unpickle.load(buffer), unpickle.load(buffer)
    if not isinstance(keys, list):
        raise TypeError("it has no list of storages")
    sizes, spans, position = _storage_sizes(root), {}, buffer.tell()
    for key in keys:
        (count,) = struct.unpack_from(">q" if is_big_endian else "<q", buffer, position)
        size = count * sizes[key]
        spans[key] = position + 8, size
        position += 8 + size
        if count < 0 or position > len(buffer):
            raise ValueError("it ends before the last tensor")
    return TorchFile(root, functools.partial(_read_span, path, spans), is_big_endian, len(buffer))


def _read_span(path: str, spans: Mapping[str, tuple[int, int]], key: str, size: int) -> bytes:
    position, stored = spans[key]
    if stored != size:
        raise ValueError(f"storage {key[:40]!r} has another size")
    # Reading through the memory map would keep the file's pages in memory next to the values.
    with open(path, "rb") as file:
        file.seek(position)
        return file.read(size)


def _storage_sizes(root: Any) -> dict[str, int]:
    """Return the bytes of an element of each storage, which the data that follows does not repeat."""
    sizes = {}
    for stub in _iterate_stubs(root):
        if stub.name == PERSISTENT and isinstance(stub.args[0], tuple) and stub.args[0][0] == "storage":  # others are classes
            key, dtype, _ = parse_storage(stub)
            sizes[key] = dtype.itemsize
    return sizes


def _iterate_stubs(root: Any) -> Iterator[Stub]:
    """Yield each stub in an object once, without recursion."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if not isinstance(value, list | tuple | dict | Stub) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Stub):
            yield value
            stack += [value.args, value.state, value.items]
        else:
            stack += value.values() if isinstance(value, dict) else value


def read_tensors(file: TorchFile, tensors: Mapping[str, Value]) -> dict[str, np.ndarray]:
    """Return the values of tensors. Tensors that share a storage share memory.

    Raises:
      ValueError: The file does not have the tensors' data.
    """
    elements = sum(math.prod(value.shape) for value in tensors.values() if not isinstance(value, Unsupported))
    if elements > _MAX_SHARING * file.size:  # a stride of 0 repeats values
        raise ValueError("its tensors have far more values than its size allows")
    storages: dict[tuple[str, np.dtype[Any]], np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            place = value.key, value.dtype
            if place not in storages:
                stored = value.dtype.newbyteorder(">") if file.is_big_endian else value.dtype
                data = file.read(value.key, value.count * value.dtype.itemsize)
                storages[place] = np.frombuffer(data, stored).astype(value.dtype, copy=False)
            arrays[name] = _view(storages[place], value)
        elif isinstance(value, np.ndarray):
            # NumPy has no bfloat16, so PaddlePaddle stores its bits as integers.
            arrays[name] = value.view(ml_dtypes.bfloat16) if value.dtype == np.uint16 else value
    return arrays


def _view(storage: np.ndarray, tensor: Tensor) -> np.ndarray:
    strides = [step * storage.itemsize for step in tensor.strides]
    # This cannot reach outside the storage, because `parse_tensor` has checked the last element.
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
