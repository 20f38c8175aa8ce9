"""Read state dicts from weights files, and write them."""

import collections
import dataclasses
import importlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors import safe_open
from safetensors.numpy import save

from deeplab_jax.buckets import is_url
from deeplab_jax.checkpoints.paths import find_weights, is_safetensors
from deeplab_jax.errors import CheckpointError, one_line
from deeplab_jax.files import write_atomically
from deeplab_jax.weights import folders
from deeplab_jax.weights.contents import choose_weights, read_meta
from deeplab_jax.weights.source import StateDict
from deeplab_jax.weights.tensors import Tensor, Unsupported, parse_tensor
from deeplab_jax.weights.torch_files import ZIP_MAGIC, TorchFile, open_pickle, open_zip, read_tensors
from deeplab_jax.weights.unpickle import UnsafePickleError

RECORD = "deeplab_jax"  # the safetensors header key for the config stored by `deeplab-jax weights export`


def read(path: str, source: str = "", *, ema: bool = False, entry: str = "") -> StateDict:
    """Read a state dict from a safetensors file, a file written by torch.save, a pickle with NumPy arrays, or a folder.

    The file's content decides what it is, not its suffix. Nothing in it is executed, and PyTorch is not needed. A folder is as
    Hugging Face's libraries write it, with one weights file or several, and settings next to them.

    Args:
      path: The path of the file or folder.
      source: The name to show in messages. Defaults to `path`.
      ema: Whether to read the exponential moving average that some training scripts store alongside the weights.
      entry: The keys that lead to the weights, separated by dots, if the file contains several sets of weights.

    Raises:
      CheckpointError: The file is missing, damaged, suspicious or in an unsupported format, or lacks the weights that `ema` or
        `entry` asks for.
    """
    source = source or path
    weights = os.fspath(find_weights(epath.Path(path)) or path)
    if is_url(weights):
        raise CheckpointError(
            f"`{source}` is in a bucket. Weights files are only read on this machine. Copy it to a disk first."
        )
    if not os.path.isfile(weights):
        raise CheckpointError(f"`{source}` is not a file. Use a weights file, a folder with one, or hf:OWNER/NAME.")
    try:
        state = _read(weights, source, ema=ema, entry=entry)
        if weights == path:
            return state
        config, preprocessing = (folders.read_settings_file(path, name) for name in (folders.CONFIG, folders.PREPROCESSING))
        return dataclasses.replace(state, config=config, preprocessing=preprocessing)
    except CheckpointError as error:
        raise CheckpointError(f"`{source}` {error}") from None
    except UnsafePickleError as error:
        raise CheckpointError(
            f"`{source}` was not read, because it calls {error}, which can run code. Do not load it with PyTorch either. Use a "
            "file from a source that you trust."
        ) from None
    # The type of error depends on the damage, and on the library that finds it.
    except Exception as error:
        raise CheckpointError(
            f"`{source}` cannot be read ({one_line(error)}). It is damaged or truncated. Download or save it again."
        ) from None


def write(path: str, tensors: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
    """Write a state dict to a `.safetensors`, `.pth`, `.pt` or `.pdparams` file.

    The file is written under a temporary name and then renamed, so `path` never holds an incomplete file.

    Args:
      path: The file path.
      tensors: The tensors by name.
      record: JSON values to store in the header of a `.safetensors` file. Other files contain only the tensors.

    Raises:
      CheckpointError: The suffix is not supported, or PyTorch is not installed.
      ConfigError: The file cannot be written.
    """
    target = epath.Path(path)
    if target.suffix == ".safetensors":
        content = save(dict(tensors), {"format": "pt", RECORD: json.dumps(record)})
        with write_atomically(target) as file:
            file.write(content)
    elif target.suffix == ".pdparams":
        # paddle.save writes the same: a pickle of a dict of NumPy arrays.
        content = pickle.dumps({name: np.ascontiguousarray(value) for name, value in tensors.items()}, protocol=4)
        with write_atomically(target) as file:
            file.write(content)
    elif target.suffix in (".pth", ".pt"):
        torch = _import_torch(path)
        state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        with write_atomically(target) as file:
            torch.save(state, file)
    else:
        raise CheckpointError(
            f"`--out` (={path!r}) has the suffix {target.suffix!r}. Use .safetensors, .pth, .pt or .pdparams."
        )


def _read(path: str, source: str, *, ema: bool, entry: str) -> StateDict:
    if path.endswith(".index.json"):
        root, meta, file = _read_shards(path), dict[str, Any](), None
    else:
        root, meta, file = _open(path)
    chosen, notes = choose_weights(root, ema=ema, entry=entry)
    unusable = next((f"{name} ({value.kind})" for name, value in chosen.items() if isinstance(value, Unsupported)), None)
    if unusable:
        raise CheckpointError(f"contains an unsupported kind of tensor in {unusable}. Use dense tensors.")
    if not all(name.isprintable() for name in chosen):
        raise CheckpointError("contains tensors whose names are not printable. Use a different file.")
    arrays = (
        read_tensors(file, chosen) if file else {name: value for name, value in chosen.items() if isinstance(value, np.ndarray)}
    )
    plain, average = _split_average(arrays)
    if average:
        used = "the moving average of the weights is used"
        notes = (*notes, used if ema else "the file also contains a moving average of the weights (use --ema to select it)")
    tensors, dtype_notes = _to_float32(plain | average if ema else plain)
    return StateDict(source, tensors, meta, (*notes, *dtype_notes))


def _open(path: str) -> tuple[Any, dict[str, Any], TorchFile | None]:
    """Return a file's content and its metadata, and a PyTorch file as a `TorchFile`, with which its tensors can be read."""
    with open(path, "rb") as stream:
        start = stream.read(512)
    if is_safetensors(start):
        return *_read_safetensors(path), None
    file = _open_torch_file(path, start)
    return file.root, read_meta(file.root), file


def _read_shards(index: str) -> dict[str, np.ndarray]:
    """Return the tensors of several files, which an index lists."""
    tensors: dict[str, np.ndarray] = {}
    for name, wanted in folders.list_shards(index).items():
        path = os.path.join(os.path.dirname(index), name)
        if not os.path.isfile(path):
            raise CheckpointError(f"lacks {name}, which {os.path.basename(index)} lists. Download it as well.")
        try:
            root, _, file = _open(path)
            dense = {key: value for key in wanted if isinstance(value := parse_tensor(root[key]), Tensor | np.ndarray)}
            if missing := wanted - dense.keys():
                raise ValueError(f"{min(missing)} is not a dense tensor")
            tensors |= read_tensors(file, dense) if file else {key: root[key] for key in wanted}
        except UnsafePickleError:
            raise
        except Exception as error:
            raise CheckpointError(f"has a damaged {name} ({one_line(error)}). Download it again.") from None
    return tensors


def _open_torch_file(path: str, start: bytes) -> TorchFile:
    if not start:
        raise CheckpointError("is empty. Download or save it again.")
    if start.startswith(ZIP_MAGIC):
        return open_zip(path)
    kind = next((kind for pattern, kind in _OTHER_FILES if re.match(pattern, start, re.DOTALL | re.IGNORECASE)), None)
    if re.search(r"\.data-\d{5}-of-\d{5}$", path):  # the values of a TensorFlow checkpoint have no header
        kind = _TENSORFLOW
    if kind:
        raise CheckpointError(f"is {kind}")
    # Pickles start with the byte 0x80, or with one of the other characters in protocols 0 and 1.
    if start[:1] not in (b"\x80", b"(", b"}", b"]", b"c"):
        raise CheckpointError(
            "is neither a safetensors file nor a file written by torch.save. It may be damaged. Download it again."
        )
    return open_pickle(path)


_TENSORFLOW = "a TensorFlow file. Use PyTorch weights. `deeplab-jax weights list` shows those that can be downloaded."
_OTHER_FILES = (
    (rb"\s*<(!doctype|html|\?xml)", "a web page and not a weights file. Download the file itself, for example with a browser."),
    (rb"version https://git-lfs", "a Git LFS pointer and not the weights file. Run `git lfs pull` in its repository."),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\(\xb5/\xfd", "a compressed file. Extract it, and use the weights file inside."),
    (rb".{257}ustar", "a tar archive. Extract it, and use the weights file inside."),
    (rb"\x89HDF", "an HDF5 file, as written by Keras. Use PyTorch weights, as written by torchvision or timm."),
    (
        # A program starts with its first block, whose number is 0 and whose parent is -1. A tensor starts with its version, 0.
        rb"\n[\x80-\xff]*[\0-\x7f]\x08\0\x10\xff{9}\x01|\0{16}.\0{3}\x08",
        "a PaddlePaddle inference model (.pdmodel or .pdiparams), whose tensors have no usable names. Use the .pdparams file.",
    ),
    # Its first field is a version number. The name of the program that wrote the file follows, or the network.
    (rb"\x08[\x03-\x20][\x12:]", "an ONNX file, whose weights have lost their names. Use those from which it was exported."),
    # A saved model or a frozen graph, whose first node follows with its name, and the index of a checkpoint.
    (rb"\x08\x01\x12|\n[\x80-\xff]*[\0-\x7f]\n.[\w./-]+\x12|\0\0[\x01-\x7f]\x08", _TENSORFLOW),
    (rb"[\x81-\x8f][\xa1-\xbf]", "a msgpack file, as written by Flax. Use PyTorch weights, as written by torchvision or timm."),
    (rb"\x93NUMPY", "a NumPy array. Use a file with a state dict."),
    (rb"\s*\{", "a JSON file. Use a weights file, or the folder with the file."),
)


def _read_safetensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with safe_open(path, framework="numpy") as file:
        header = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  `file` is not a dict
    return tensors, {RECORD: json.loads(header[RECORD])} if RECORD in header else {}


def _import_torch(path: str) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise CheckpointError(
            f"`--out` (={path!r}) needs PyTorch. Run `pip install torch`, or write a .safetensors file."
        ) from None


def _split_average(content: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Separate the weights from the moving average that mmcv's hook stores next to them. Return both, keyed by weight name.

    The hook stores the average of `a.b` as `ema_a_b`, and does not average running statistics.
    """
    averages = {name: value for name, value in content.items() if name.startswith("ema_")}
    plain = {name: value for name, value in content.items() if name not in averages}
    averaged = {name: averages.get("ema_" + name.replace(".", "_")) for name in plain}
    return plain, {name: value for name, value in averaged.items() if value is not None}


def _to_float32(tensors: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    complex_name = next((name for name, value in tensors.items() if value.dtype.kind == "c"), None)
    if complex_name:
        raise CheckpointError(f"contains complex numbers in {complex_name}. Use real-valued weights.")
    counts = collections.Counter(str(v.dtype) for v in tensors.values() if v.dtype != np.float32 and v.ndim)
    notes = tuple(f"tensors converted from {dtype} to float32: {count}" for dtype, count in sorted(counts.items()))
    return {name: value.astype(np.float32, copy=False) for name, value in tensors.items()}, notes
