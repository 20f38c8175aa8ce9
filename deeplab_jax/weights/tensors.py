"""Interpret the stubs in a pickle that stand for PyTorch tensors and NumPy arrays. Their values are not read here."""

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights.unpickle import PERSISTENT, Global, Stub

_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "float32": np.float32,
        "float64": np.float64,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex64": np.complex64,
        "complex128": np.complex128,
    }.items()
}
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "UntypedStorage": "uint8",
    "BoolStorage": "bool",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor whose values have not been read yet.

    Attributes:
      key: The name of its storage in the file.
      count: The number of elements of its storage.
      dtype: The type of its elements.
      offset: The position of its first element in the storage.
      shape, strides: In elements.
    """

    key: str
    count: int
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """A tensor of a kind that cannot be read, such as a sparse one."""

    kind: str


Value = Tensor | Unsupported | np.ndarray


def parse_tensor(value: Any) -> Value | None:
    """Return the tensor or array that an object stands for, or None if it is not one.

    Raises:
      CheckpointError: Its data is in a form that cannot be read. The caller prefixes the message with the file name.
      ValueError, TypeError, IndexError: Its description is invalid.
    """
    for _ in range(4):  # parameters and subclasses wrap a tensor
        if not isinstance(value, Stub):
            return value if isinstance(value, np.ndarray) else None
        package, _, name = value.name.rpartition(".")
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            value = value.args[0]
        elif value.name in ("builtins.tuple", "__builtin__.tuple"):  # how paddle.save writes a tensor inside other objects
            pair = value.args[0] if value.args else ()
            value = pair[1] if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) else None
        elif name == "_rebuild_from_type_v2":
            value = Stub(_name(value.args[0]), value.args[2])
        elif name in ("_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor", "_rebuild_mlc_tensor"):
            value = value.args[0]
        elif name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return _parse_view(value.args, _name(value.args[6]) if name == "_rebuild_tensor_v3" else "")
        elif package.startswith("torch") and name.startswith("_rebuild"):
            return Unsupported(name.removeprefix("_rebuild_").replace("_", " "))
        else:
            return None if name == "scalar" else parse_array(value)
    raise ValueError("it has tensors inside tensors")


def _name(value: Any) -> str:
    return value.name if isinstance(value, Global) else ""


def parse_storage(stub: Any) -> tuple[str, np.dtype[Any], int]:
    """Return the key of a storage, the type of its elements and their number."""
    if isinstance(stub, Stub) and stub.name == "torch.storage._load_from_bytes":
        raise CheckpointError("contains tensors written by pickle.dump. Write them with torch.save instead.")
    if not isinstance(stub, Stub) or stub.name != PERSISTENT:
        raise TypeError("a tensor without a storage")
    if not isinstance(stub.args[0], tuple):
        raise TypeError("an invalid storage")
    kind, storage, key, _, count, *view = stub.args[0]
    dtype = _STORAGES.get(_name(storage).rpartition(".")[2])
    if kind != "storage" or dtype is None or not isinstance(key, str) or not _is_size(count) or any(view):
        raise ValueError("an invalid or unsupported storage")
    return key, _DTYPES[dtype], count


def _parse_view(args: tuple[Any, ...], dtype_name: str) -> Tensor:
    storage, offset, shape, strides = args[:4]
    key, dtype, count = parse_storage(storage)
    if isinstance(shape, Stub) and shape.name == "torch.Size":
        shape = tuple(shape.args[0])
    if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 32):
        raise ValueError("an invalid shape")
    if not all(map(_is_size, (offset, *shape, *strides))):
        raise ValueError("an invalid shape")
    if dtype_name:  # only this form has untyped storages, which are counted in bytes
        wanted = _DTYPES[dtype_name.removeprefix("torch.")]
        count, dtype = count * dtype.itemsize // wanted.itemsize, wanted
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 not in shape and last >= count:
        raise ValueError("a tensor outside its storage")
    return Tensor(key, count, dtype, offset, shape, strides)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def parse_array(stub: Stub) -> np.ndarray | None:
    """Return the NumPy array or scalar that a stub stands for, or None if it stands for something else.

    Raises:
      ValueError, TypeError, IndexError: The array is invalid.
    """
    if stub.name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"):
        data, dtype, shape, order = stub.args[1], stub.args[0], (), "C"
    elif stub.name in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
        _, shape, dtype, is_fortran, data = stub.state
        order = "F" if is_fortran else "C"
    elif stub.name in ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"):
        data, dtype, shape, order = stub.args
    else:
        return None
    parsed = _parse_dtype(dtype)
    if parsed is None:
        return None
    if isinstance(data, Stub) and data.name == "_codecs.encode":
        data = data.args[0]
    if isinstance(data, str):  # Python 2, and pickle protocols before 3
        data = data.encode("latin-1")
    if not isinstance(data, bytes | bytearray) or not isinstance(shape, tuple) or not all(map(_is_size, shape)):
        raise TypeError("an invalid array")
    return np.frombuffer(data, parsed).reshape(shape, order="F" if order == "F" else "C")


def _parse_dtype(stub: Any) -> np.dtype[Any] | None:
    if not isinstance(stub, Stub) or stub.name != "numpy.dtype" or not isinstance(stub.args[0], str):
        raise TypeError("an array without a type")
    order = stub.state[1] if isinstance(stub.state, tuple) and len(stub.state) > 1 else "<"
    if stub.args[0][:1] not in tuple("biufc") or len(stub.args[0]) > 3:
        return None  # text, dates and objects
    dtype = np.dtype(stub.args[0])
    return dtype.newbyteorder(">") if order == ">" else dtype
