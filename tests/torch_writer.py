"""Write PyTorch files without PyTorch, including files that torch.save would never write."""

import struct
import zipfile
from typing import Any, NamedTuple

import numpy as np

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {"f4": "FloatStorage", "f2": "HalfStorage", "i8": "LongStorage", "u1": "ByteStorage", "b1": "BoolStorage"}


class Name(str):
    """A function or class: its module, a space and its name."""


class Call(NamedTuple):
    """A call that builds an object, and the state and entries that the object gets afterwards."""

    name: Name
    args: Any = ()
    state: Any = None
    items: Any = None


class Persistent(NamedTuple):
    """An object outside the pickle."""

    id: Any


class Raw(bytes):
    """Operations that push a value."""


def dump(value) -> bytes:
    return b"\x80\x02" + _encode(value) + b"."


def _encode(value) -> bytes:
    match value:
        case Raw():
            return bytes(value)
        case Name():
            module, name = value.split(" ")
            return f"c{module}\n{name}\n".encode()
        case Call():
            state = b"" if value.state is None else _encode(value.state) + b"b"
            items = b"" if value.items is None else b"(" + _encode_pairs(value.items) + b"u"
            return _encode(value.name) + _encode(value.args) + b"R" + items + state
        case Persistent():
            return _encode(value.id) + b"Q"
        case bool() | None:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode()
            return b"X" + struct.pack("<I", len(data)) + data
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(_encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_encode, value)) + b"e"
        case dict():
            return b"}(" + _encode_pairs(value) + b"u"
    raise TypeError(value)


def _encode_pairs(value) -> bytes:
    return b"".join(_encode(key) + _encode(item) for key, item in value.items())


def view(storage: str, count: int, offset, shape, strides, key="0") -> Call:
    """Return a tensor in the storage `key`, which has `count` elements."""
    place = Persistent(("storage", Name(f"torch {storage}"), key, "cpu", count))
    return Call(Name("torch._utils _rebuild_tensor_v2"), (place, offset, shape, strides, False, ordered({})))


def ordered(items: dict) -> Call:
    return Call(Name("collections OrderedDict"), items=items)


class Storages(dict):
    """The data of tensors by key: bytes, and the bytes of an element."""

    def tensor(self, array, parameter=False) -> Call:
        array = np.asarray(array)
        key = str(len(self))
        self[key] = array.tobytes(), array.itemsize
        strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides[: array.ndim])
        tensor = view(STORAGES[array.dtype.str[1:]], array.size, 0, array.shape, strides, key)
        return Call(Name("torch._utils _rebuild_parameter"), (tensor, True, ordered({}))) if parameter else tensor

    def state_dict(self, arrays: dict) -> Call:
        return ordered({name: self.tensor(array) for name, array in arrays.items()})


def write_zip(path, root, storages=None, compression=zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", dump(root))
        for key, (data, _) in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", "3\n")
    return str(path)


def write_legacy(path, root, storages=None) -> str:
    storages = storages or {}
    system = {"protocol_version": 1001, "little_endian": True}
    data = dump(LEGACY_MAGIC) + dump(1001) + dump(system) + dump(root) + dump(list(storages))
    for content, item_size in storages.values():
        data += struct.pack("<q", len(content) // item_size) + content
    path.write_bytes(data)
    return str(path)
