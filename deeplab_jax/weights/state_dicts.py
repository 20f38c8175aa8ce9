"""State dicts on disk: safetensors, and PyTorch's pickles without running code that they hold. No names are interpreted
beyond the wrappers that training scripts put around a state dict.
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

import ml_dtypes  # it teaches NumPy bfloat16, which both formats have
import numpy as np
from etils import epath
from safetensors import safe_open
from safetensors.numpy import save

from deeplab_jax.errors import CheckpointError, one_line
from deeplab_jax.files import replacing

PICKLES = (".pth", ".pt", ".bin")
RECORD = "deeplab_jax"  # key of our own entry in a safetensors header
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema")
EXCHANGED = "it is the moving average of the weights, as mmengine saves it"
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclasses.dataclass(frozen=True)
class StateDict:
    """What a weights file holds.

    Attributes:
      source: where it comes from, for messages.
      tensors: float32 by name, wrappers taken off.
      meta: what the file says about itself: mmsegmentation's "meta", or our own record under `RECORD`.
      notes: what was done to it on the way, for people.
    """

    source: str
    tensors: dict[str, np.ndarray]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()


def read(path: str, source: str = "", *, ema: bool = False) -> StateDict:
    """The state dict of a `.safetensors`, `.pth`, `.pt` or `.bin` file; the last three need PyTorch.

    Args:
      path: the file.
      source: what messages call it; the path by default.
      ema: take the exponential moving average of the weights that training scripts keep beside them.

    Raises:
      CheckpointError: the file is missing, damaged, of another kind, holds code, or has no such copy.
    """
    source, suffix = source or path, epath.Path(path).suffix
    if not epath.Path(path).is_file():
        raise CheckpointError(f"`{source}` is no file: give one of weights, or hf:OWNER/NAME")
    plain: Mapping[str, Any]
    average: Mapping[str, Any] | None = None
    meta: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if suffix == ".safetensors":
        plain, meta = _read_safetensors(path, source)
    elif suffix in PICKLES:
        plain, average, meta, notes = _unwrap(_read_pickle(path, source), source)
    else:
        raise CheckpointError(f"`{source}` has the suffix {suffix!r}: give a .safetensors, {', '.join(PICKLES)} file")
    content, without = _without_prefixes(average if ema and average is not None else plain)
    content, inner = _split_average(content)
    if average is not None or inner:
        taken = "the moving average of the weights was taken"
        notes = (*notes, taken if ema else "the file also holds a moving average of the weights: --ema takes it")
    elif ema and EXCHANGED not in notes:
        raise CheckpointError(f"`{source}` holds no moving average of its weights: leave --ema out")
    tensors, converted = _to_float32(_arrays(content | inner if ema else content, source), source)
    if not tensors:
        raise CheckpointError(f"`{source}` holds no tensors: give a state dict")
    return StateDict(source, tensors, meta, (*without, *notes, *converted))


def write(path: str, tensors: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
    """Writes a state dict, beside and renamed: `.safetensors` with `record` in its header, or a bare `.pth` or `.pt`.

    Raises:
      CheckpointError: the suffix is another, or PyTorch is missing.
      ConfigError: the file cannot be written.
    """
    target = epath.Path(path)
    if target.suffix == ".safetensors":
        content = save(dict(tensors), {"format": "pt", RECORD: json.dumps(record)})
        with replacing(target) as file:
            file.write(content)
    elif target.suffix in (".pth", ".pt"):
        torch = _torch(path)
        state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
        with replacing(target) as file:
            torch.save(state, file)
    else:
        raise CheckpointError(f"`out` (={path!r}) has the suffix {target.suffix!r}: use .safetensors, .pth or .pt")


def _read_safetensors(path: str, source: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        record = {RECORD: json.loads(header[RECORD])} if RECORD in header else {}
    # Besides its own error, those of NumPy for dtypes that it does not know.
    except Exception as error:
        raise CheckpointError(
            f"`{source}` cannot be read ({one_line(error)}): it is cut short, damaged or no safetensors file"
        ) from None
    return tensors, record


def _read_pickle(path: str, source: str) -> Any:
    torch = _torch(source)
    try:
        # A Namespace holds values alone: torchvision's training script saves its arguments in one.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of old pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's message fills a page; the global that it stopped at is what the user can mend.
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {found[1]}" if found else "it is damaged, or holds more than tensors and plain values"
        raise CheckpointError(
            f"`{source}` is not read, since reading could run code ({reason}): give a file of "
            "torch.save(model.state_dict(), FILE)"
        ) from None
    # What torch.load raises of damaged files follows from where they are cut.
    except Exception as error:
        raise CheckpointError(f"`{source}` cannot be read ({one_line(error)}): it is damaged or cut short") from None


def _torch(source: str) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise CheckpointError(
            f"`{source}` is a PyTorch file, which needs PyTorch: pip install torch, or use .safetensors"
        ) from None


def _unwrap(whole: Any, source: str) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, dict[str, Any], tuple[str, ...]]:
    """A training script's checkpoint: the weights, their moving average if it has one, its "meta", and a note."""
    if not isinstance(whole, Mapping):
        raise CheckpointError(f"`{source}` holds a {type(whole).__name__}: give a state dict")

    def first(keys: tuple[str, ...]) -> Mapping[str, Any] | None:
        return next((whole[key] for key in keys if isinstance(whole.get(key), Mapping)), None)

    key = next((key for key in _WRAPPERS if isinstance(whole.get(key), Mapping)), "")
    plain, meta = first((key,)), first(("meta",))
    # mmengine exchanges the two before it saves, so that what is loaded is the average.
    exchanged = plain is not None and first(("ema_state_dict",)) is not None
    notes = (*([f"the state dict is the file's {key!r}"] if key else []), *([EXCHANGED] if exchanged else []))
    return whole if plain is None else plain, first(_EMA_WRAPPERS), dict(meta or {}), notes


def _without_prefixes(content: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Names as the network has them: DataParallel, torch.compile and Lightning put a prefix before every one."""
    notes: tuple[str, ...] = ()
    # The counters of averaged models have no prefix.
    content = {str(name): value for name, value in content.items() if name not in ("n_averaged", "steps")}
    while prefix := next((p for p in _PREFIXES if content and all(name.startswith(p) for name in content)), ""):
        content = {name.removeprefix(prefix): value for name, value in content.items()}
        notes += (f"the prefix {prefix!r} was taken off every name",)
    return content, notes


def _split_average(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights, and by the same names the moving average that mmcv's hook keeps of `a.b` as `ema_a_b` among them.

    The running statistics have no average.
    """
    averages = {name: value for name, value in content.items() if name.startswith("ema_")}
    plain = {name: value for name, value in content.items() if name not in averages}
    averaged = {name: averages.get("ema_" + name.replace(".", "_")) for name in plain}
    return plain, {name: value for name, value in averaged.items() if value is not None}


def _to_float32(tensors: dict[str, np.ndarray], source: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    imaginary = next((name for name, value in tensors.items() if value.dtype.kind == "c"), None)
    if imaginary:
        raise CheckpointError(f"`{source}` holds complex numbers in {imaginary}: give real weights")
    others = collections.Counter(str(v.dtype) for v in tensors.values() if v.dtype != np.float32 and v.ndim)
    notes = tuple(f"{count} tensors were converted from {dtype} to float32" for dtype, count in sorted(others.items()))
    return {name: value.astype(np.float32, copy=False) for name, value in tensors.items()}, notes


def _arrays(content: Mapping[str, Any], source: str) -> dict[str, np.ndarray]:
    """The tensors among the values, as arrays."""
    arrays = {name: value for name, value in content.items() if isinstance(value, np.ndarray)}
    for name, value in content.items():
        if hasattr(value, "detach"):
            try:
                arrays[name] = _array(value.detach().cpu())
            except (TypeError, RuntimeError, ValueError) as error:
                raise CheckpointError(
                    f"`{source}` holds no plain tensor in {name} ({one_line(error)}): give dense ones"
                ) from None
    return arrays


def _array(tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16 of its own; every other dtype is kept, so that it can be told.
    is_bfloat16 = str(tensor.dtype) == "torch.bfloat16"
    return tensor.float().numpy().astype(ml_dtypes.bfloat16) if is_bfloat16 else tensor.numpy()
