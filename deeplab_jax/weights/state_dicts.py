"""Read and write state dicts in safetensors files and PyTorch pickles.

Code inside a pickle is never run. Wrappers and name prefixes added by training scripts are removed, but tensor names are not
otherwise interpreted.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # adds the NumPy dtype bfloat16, which both file formats can contain
import numpy as np
from etils import epath
from safetensors import safe_open
from safetensors.numpy import save

from deeplab_jax.errors import CheckpointError, one_line
from deeplab_jax.files import write_atomically

PICKLES = (".pth", ".pt", ".bin")
RECORD = "deeplab_jax"  # the safetensors header key for the config stored by `deeplab-jax weights export`
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema")
SWAPPED = "mmengine saved the moving average in place of the weights, so the moving average is used"
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclasses.dataclass(frozen=True)
class StateDict:
    """The contents of a weights file.

    Attributes:
      source: The file's path or name, used in messages.
      tensors: The tensors as float32 arrays, keyed by name. Wrappers and name prefixes are removed.
      meta: The file's metadata: mmsegmentation's "meta" entry, or our own record under the key `RECORD`.
      notes: Messages telling the user how the tensors were read and converted.
    """

    source: str
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()


def read(path: str, source: str = "", *, ema: bool = False) -> StateDict:
    """Read a state dict from a `.safetensors`, `.pth`, `.pt` or `.bin` file. All but `.safetensors` need PyTorch.

    Args:
      path: The file path.
      source: The file name to show in messages. Defaults to `path`.
      ema: Whether to read the exponential moving average that some training scripts store alongside the weights.

    Raises:
      CheckpointError: The file is missing, damaged or in an unsupported format, contains code, or lacks the moving average
        requested by `ema`.
    """
    source, suffix = source or path, epath.Path(path).suffix
    if not epath.Path(path).is_file():
        raise CheckpointError(f"`{source}` is not a file. Use a weights file, or hf:OWNER/NAME.")
    plain: Mapping[str, Any]
    average: Mapping[str, Any] | None = None
    meta: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if suffix == ".safetensors":
        plain, meta = _read_safetensors(path, source)
    elif suffix in PICKLES:
        plain, average, meta, notes = _unwrap(_read_pickle(path, source), source)
    else:
        raise CheckpointError(f"`{source}` has the suffix {suffix!r}. Use a .safetensors, .pth, .pt or .bin file.")
    content, prefix_notes = _strip_prefixes(average if ema and average is not None else plain)
    content, inner = _split_average(content)
    if average is not None or inner:
        used = "the moving average of the weights is used"
        notes = (*notes, used if ema else "the file also contains a moving average of the weights (use --ema to select it)")
    elif ema and SWAPPED not in notes:
        raise CheckpointError(f"`{source}` does not contain a moving average of its weights. Omit --ema.")
    tensors, dtype_notes = _to_float32(_to_arrays(content | inner if ema else content, source), source)
    if not tensors:
        raise CheckpointError(f"`{source}` does not contain tensors. Use a file with a state dict.")
    return StateDict(source, tensors, meta, (*prefix_notes, *notes, *dtype_notes))


def write(path: str, tensors: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
    """Write a state dict to a `.safetensors`, `.pth` or `.pt` file.

    The file is written under a temporary name and then renamed, so `path` never holds an incomplete file.

    Args:
      path: The file path.
      tensors: The tensors by name.
      record: JSON values to store in the header of a `.safetensors` file. PyTorch files contain only the tensors.

    Raises:
      CheckpointError: The suffix is not supported, or PyTorch is not installed.
      ConfigError: The file cannot be written.
    """
    target = epath.Path(path)
    if target.suffix == ".safetensors":
        content = save(dict(tensors), {"format": "pt", RECORD: json.dumps(record)})
        with write_atomically(target) as file:
            file.write(content)
    elif target.suffix in (".pth", ".pt"):
        torch = _import_torch(path)
        state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        with write_atomically(target) as file:
            torch.save(state, file)
    else:
        raise CheckpointError(f"`--out` (={path!r}) has the suffix {target.suffix!r}. Use .safetensors, .pth or .pt.")


def _read_safetensors(path: str, source: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  `file` is not a dict
        record = {RECORD: json.loads(header[RECORD])} if RECORD in header else {}
    # safetensors raises its own error type, and NumPy raises various errors for unsupported dtypes.
    except Exception as error:
        raise CheckpointError(
            f"`{source}` cannot be read ({one_line(error)}). It is truncated, damaged or not a safetensors file. "
            "Download or save it again."
        ) from None
    return tensors, record


def _read_pickle(path: str, source: str) -> Any:
    torch = _import_torch(source)
    try:
        # torchvision's training script saves its arguments as a Namespace, which is safe to load because it only holds values.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about old pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's message is very long. Users only need to know which class or function PyTorch refused to load.
        match = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it contains {match[1]}" if match else "it is damaged, or contains more than tensors and plain values"
        raise CheckpointError(
            f"`{source}` was not loaded, because loading it could run code ({reason}). Use a file saved with "
            "torch.save(model.state_dict(), FILE)."
        ) from None
    # For a truncated file, the type of error raised by torch.load depends on where the file ends.
    except Exception as error:
        raise CheckpointError(
            f"`{source}` cannot be read ({one_line(error)}). It is damaged or truncated. Download or save it again."
        ) from None


def _import_torch(source: str) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise CheckpointError(
            f"`{source}` is a PyTorch file, which needs PyTorch. Run `pip install torch`, or use a .safetensors file."
        ) from None


def _unwrap(content: Any, source: str) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, dict[str, Any], tuple[str, ...]]:
    """Split a training script's checkpoint into weights, their moving average (or None), the "meta" entry and notes."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"`{source}` contains a {type(content).__name__}. Use a file with a state dict.")

    def find_mapping(keys: tuple[str, ...]) -> Mapping[str, Any] | None:
        return next((content[key] for key in keys if isinstance(content.get(key), Mapping)), None)

    key = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), "")
    plain, meta = find_mapping((key,)), find_mapping(("meta",))
    # mmengine swaps the weights and their average before saving, so the average is loaded by default.
    is_swapped = plain is not None and find_mapping(("ema_state_dict",)) is not None
    notes = (*([f"the weights come from the file's {key!r} entry"] if key else []), *([SWAPPED] if is_swapped else []))
    return content if plain is None else plain, find_mapping(_EMA_WRAPPERS), dict(meta or {}), notes


def _strip_prefixes(content: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Remove name prefixes added by DataParallel, torch.compile and Lightning. Return the tensors and notes for the user."""
    notes: tuple[str, ...] = ()
    # Averaged models add counters without a prefix, so drop these first.
    content = {str(name): value for name, value in content.items() if name not in ("n_averaged", "steps")}
    while prefix := next((p for p in _PREFIXES if content and all(name.startswith(p) for name in content)), ""):
        content = {name.removeprefix(prefix): value for name, value in content.items()}
        notes += (f"the prefix {prefix!r} was removed from every name",)
    return content, notes


def _split_average(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the weights from the moving average that mmcv's hook stores next to them. Return both, keyed by weight name.

    The hook stores the average of `a.b` as `ema_a_b`, and does not average running statistics.
    """
    averages = {name: value for name, value in content.items() if name.startswith("ema_")}
    plain = {name: value for name, value in content.items() if name not in averages}
    averaged = {name: averages.get("ema_" + name.replace(".", "_")) for name in plain}
    return plain, {name: value for name, value in averaged.items() if value is not None}


def _to_float32(tensors: dict[str, np.ndarray], source: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    complex_name = next((name for name, value in tensors.items() if value.dtype.kind == "c"), None)
    if complex_name:
        raise CheckpointError(f"`{source}` contains complex numbers in {complex_name}. Use real-valued weights.")
    counts = collections.Counter(str(v.dtype) for v in tensors.values() if v.dtype != np.float32 and v.ndim)
    notes = tuple(f"tensors converted from {dtype} to float32: {count}" for dtype, count in sorted(counts.items()))
    return {name: value.astype(np.float32, copy=False) for name, value in tensors.items()}, notes


def _to_arrays(content: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """Return the tensor entries as NumPy arrays, and skip all other values."""
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    for name, value in content.items():
        if hasattr(value, "detach"):
            try:
                arrays[name] = _to_array(value.detach().cpu())
            except (TypeError, RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"`{source}` contains an unsupported kind of tensor in {name} ({one_line(error)}). Use dense tensors."
                ) from None
    return arrays


def _to_array(tensor: Any) -> np.ndarray:
    # PyTorch cannot convert bfloat16 tensors to NumPy, so convert via float32. Keep the dtype for a later note.
    is_bfloat16 = str(tensor.dtype) == "torch.bfloat16"
    return tensor.float().numpy().astype(ml_dtypes.bfloat16) if is_bfloat16 else tensor.numpy()
