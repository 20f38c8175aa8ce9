"""Find the weights in what a training script saved: which entry, under which prefix, and which of them are moving averages.

The tensors' names and the owner's conventions decide, not a list of wrappers. A prefix is what precedes the name of a
backbone's first tensor.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_jax.errors import CheckpointError, summarize
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.weights.names import backbone_prefixes
from deeplab_jax.weights.tensors import Unsupported, Value, parse_array, parse_tensor
from deeplab_jax.weights.unpickle import Stub

# What DataParallel, torch.compile, FSDP and activation checkpointing insert into names, at any position.
_WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_AVERAGE = re.compile(r"(?<![A-Za-z])(?:ema|swa|avg|averaged?|averaging|polyak|shadow|EMA|Ema|SWA|Averaged?)(?![a-z])")
_RAW = re.compile(r"(?<![a-z])(?:online|student|raw|current)(?![a-z])", re.IGNORECASE)
_OPTIMIZER = re.compile(r"optimi[sz]er|optims?(?-i:(?![a-z]))|^opt$|sched|scaler|grads", re.IGNORECASE)  # not "optimal"
_COUNTERS = ("n_averaged", "steps", "step", "num_updates", "decay", "initted")  # scalars that averaged models add
_PROFILES = ("total_ops", "total_params")  # counters that thop, a profiler, adds to every module
_MAX_DEPTH = 8
_MAX_VALUES = 100_000  # in a file's metadata
_MAX_SETS = 50  # sets of weights in a file


@dataclasses.dataclass(frozen=True)
class Weights:
    """One set of weights in a file.

    Attributes:
      label: The keys and the prefix that lead to the weights, separated by dots. "" for a bare state dict.
      prefix: The prefix that was removed from the names.
      tensors: The tensors by name, without the prefix.
      others: The tensors next to them without this prefix.
      is_average: Whether the label, or a counter next to the weights, says that they are a moving average.
      is_module: Whether they come from a pickled module instead of a state dict.
      notes: How the names were changed.
    """

    label: str
    prefix: str
    tensors: dict[str, Value]
    others: tuple[str, ...] = ()
    is_average: bool = False
    is_module: bool = False
    notes: tuple[str, ...] = ()


def choose_weights(root: Any, *, ema: bool = False, entry: str = "") -> tuple[dict[str, Value], tuple[str, ...]]:
    """Choose a set of weights in the content of a file.

    Args:
      root: What `unpickle.load` read, or a dict of arrays.
      ema: Whether to choose the moving average.
      entry: The label of the weights, if the user gave one.

    Returns:
      The tensors by name, and notes that say which weights they are.

    Raises:
      CheckpointError: There are no weights, several that the file does not tell apart, or no moving average. The message
        continues a sentence that starts with the file name.
    """
    candidates, rest, nameless = _find_weights(root)
    if not candidates:
        raise CheckpointError("does not contain weights with names. Use a file with a state dict.")
    swapped = _find_swapping_owner(root)
    if entry and [each.label for each in candidates] == [""]:
        raise CheckpointError(f"contains one state dict, and no entry {entry!r}. Omit --entry.")
    if entry:
        chosen = _choose_only(
            [each for each in candidates if each.label == entry], candidates, f"contains no weights {entry!r}, only"
        )
    elif swapped:
        chosen = _choose_only(
            [each for each in candidates if f"{each.label}.".startswith("state_dict.")],
            candidates,
            "contains several sets of weights:",
        )
    elif ema:
        inline = any(name.startswith("ema_") for each in candidates for name in each.tensors)
        averages = [each for each in candidates if each.is_average] or (candidates if inline else [])
        if not averages:
            reason = f" (the values in {nameless[0]!r} have no names, so they cannot be used)" if nameless else ""
            raise CheckpointError(f"does not contain a moving average of its weights{reason}. Omit --ema.")
        chosen = _choose_only(averages, candidates, "contains several moving averages:")
    else:
        chosen = _choose_only(
            [each for each in candidates if not each.is_average] or candidates, candidates, "contains several sets of weights:"
        )
    return chosen.tensors, (*_describe(chosen, candidates, rest, swapped, entry), *_describe_unnamed(nameless))


def _choose_only(matches: Sequence[Weights], candidates: Sequence[Weights], fault: str) -> Weights:
    if len(matches) == 1:
        return matches[0]
    labels = summarize(repr(each.label) for each in candidates)
    raise CheckpointError(f"{fault} {labels}. Choose one: deeplab-jax weights import FILE --entry={candidates[0].label}")


def _describe(
    chosen: Weights, candidates: Sequence[Weights], rest: Mapping[str, int], swapped: str, entry: str
) -> Iterator[str]:
    if chosen.is_module:
        yield "the weights come from a pickled module. They are the tensors of its state_dict()"
    if chosen.label and chosen.label != chosen.prefix.rstrip("."):
        yield f"the weights come from the file's {chosen.label!r} entry"
    yield from chosen.notes
    others = [each for each in candidates if each is not chosen]
    averages = [repr(each.label) for each in others if each.is_average]
    plain = [repr(each.label) for each in others if not each.is_average]
    if swapped:
        averages, plain = [], [repr(each.label) for each in others]
        yield f"{swapped} saved the moving average under 'state_dict'" + ("" if entry else ", so the moving average is used")
    elif chosen.is_average:
        yield "the moving average of the weights is used"
    if averages:
        labels = ", ".join(averages)
        yield f"the file also contains a moving average of the weights: {labels} (use --ema or --entry to select it)"
    if plain:
        yield f"the file also contains other weights: {', '.join(plain)} (use --entry to select them)"
    if rest:
        entries = summarize(f"{label!r} ({count})" for label, count in rest.items())
        yield f"entries with tensors that are not used: {entries}"
    if chosen.others:
        names = summarize(chosen.others)
        yield f"tensors not used: {len(chosen.others)} (outside the prefix {chosen.prefix!r}: {names})"


def _describe_unnamed(labels: Sequence[str]) -> Iterator[str]:
    if labels:
        yield f"the moving average in {labels[0]!r} has no names and is not used"


def read_meta(root: Any) -> dict[str, Any]:
    """Return the file's "meta" entry with plain values. Other objects in it become None."""
    meta = _list_entries(root).get("meta")
    budget = [_MAX_VALUES]
    return {str(key): _to_plain(value, budget) for key, value in _list_entries(meta).items()}


def _to_plain(value: Any, budget: list[int], depth: int = 0) -> Any:
    budget[0] -= 1
    if depth > _MAX_DEPTH:
        return None
    if budget[0] < 0:
        raise CheckpointError("contains too much metadata. Save only its state dict to a new file.")
    if isinstance(value, list | tuple):
        return type(value)(_to_plain(each, budget, depth + 1) for each in value)
    if isinstance(value, Stub):
        array = parse_array(value)
        if array is not None and array.size <= _MAX_VALUES:
            return array.tolist()
        value = value.items
    if isinstance(value, dict):
        return {str(key): _to_plain(each, budget, depth + 1) for key, each in value.items()}
    return value if isinstance(value, str | int | float | None) else None


def _find_swapping_owner(root: Any) -> str:
    """Return the library that saved the moving average under "state_dict" and the raw weights elsewhere, or ""."""
    entries = _list_entries(root)
    if "state_dict" not in entries:
        return ""
    averages = _list_entries(entries.get("ema_state_dict"))
    if averages and ("steps" in averages or "mmengine_version" in _list_entries(entries.get("meta"))):
        return "mmengine"
    return "Lightning" if "current_model_state" in entries and "averaging_state" in entries else ""


def _list_entries(value: Any) -> dict[Any, Any]:
    """Return the entries of a dict, or of a stub for a kind of dict."""
    if isinstance(value, Stub):
        value = value.items
    return value if isinstance(value, dict) else {}


def _find_weights(root: Any) -> tuple[list[Weights], dict[str, int], list[str]]:
    """Return the sets of weights, the sizes of all other entries with tensors, and the lists of averages without names."""
    candidates: list[Weights] = []
    unused: list[tuple[str, dict[str, Value]]] = []
    nameless: list[str] = []
    for path, tensors, holder in _iterate_tensors(root):
        label = ".".join(path)
        if isinstance(holder, list | tuple):
            nameless += [label] if _AVERAGE.search(label) else []
            continue
        sets = [each for each in _split(label, tensors) if not _is_alias(each, candidates)]
        candidates += [dataclasses.replace(each, is_module=_is_module(holder)) for each in sets]
        unused += [] if sets else [(label, tensors)]
        if len(candidates) > _MAX_SETS:
            raise CheckpointError(f"contains more than {_MAX_SETS} sets of weights. Save one of them to a new file.")
    if not candidates:
        common = [_strip_common_prefix(label, tensors) for label, tensors in unused]
        largest = max((len(each.tensors) for each in common), default=0)
        candidates = [each for each in common if 2 * len(each.tensors) > largest]
        unused = [(label, tensors) for label, tensors in unused if 2 * len(tensors) <= largest]
    # Others are scores, counters and settings.
    with_kernels = [(label, tensors) for label, tensors in unused if any(_rank(value) > 1 for value in tensors.values())]
    rest = {label: len(tensors) for label, tensors in with_kernels}
    return candidates, rest, nameless


def _rank(value: Value) -> int:
    return 0 if isinstance(value, Unsupported) else len(value.shape)


def _is_alias(weights: Weights, candidates: Sequence[Weights]) -> bool:
    """Return whether the same tensors were found under a different label."""
    return any(
        each.tensors.keys() == weights.tensors.keys()
        and all(_identity(each.tensors[name]) == _identity(value) for name, value in weights.tensors.items())
        for each in candidates
    )


def _identity(value: Value) -> Any:
    return id(value) if isinstance(value, np.ndarray) else value


def _iterate_tensors(root: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Value], Any]]:
    """Yield the keys that lead to each dict, module or list with tensors, its tensors, and itself.

    Less nested ones come first.
    """
    seen: set[int] = set()
    queue: collections.deque[tuple[tuple[str, ...], Any]] = collections.deque([((), root)])
    while queue:
        path, value = queue.popleft()
        if not isinstance(value, dict | list | tuple | Stub) or id(value) in seen or len(path) > _MAX_DEPTH:
            continue
        seen.add(id(value))
        children = _list_children(value)
        values = {key: parse_tensor(child) for key, child in children.items()}
        tensors = {key: tensor for key, tensor in values.items() if tensor is not None}
        if tensors:
            yield path, tensors, value
        inner = (key for key in children if key not in tensors and not _OPTIMIZER.search(key))
        queue.extend(((*path, key), children[key]) for key in inner)


def _list_children(value: Any) -> dict[str, Any]:
    """Return what an object contains: entries, items, attributes, or the tensors of a pickled module."""
    if isinstance(value, list | tuple):
        return {str(i): each for i, each in enumerate(value)}
    if isinstance(value, dict):
        return {key: each for key, each in value.items() if isinstance(key, str)}
    if _is_module(value):
        return _make_state_dict(value)
    attributes = value.state if isinstance(value.state, dict) else {}
    arguments = {key: each for arg in value.args if isinstance(arg, dict) for key, each in arg.items()}
    children = {**arguments, **attributes, **(value.items or {})}
    return {key: each for key, each in children.items() if isinstance(key, str)}


def _is_module(value: Any) -> bool:
    return isinstance(value, Stub) and isinstance(value.state, dict) and {"_modules", "_parameters"} <= value.state.keys()


def _make_state_dict(module: Stub) -> dict[str, Any]:
    """Return the parameters and buffers of a pickled module, named as its state_dict() names them."""
    tensors: dict[str, Any] = {}
    stack = [("", module)]
    seen: set[int] = set()
    while stack:
        prefix, each = stack.pop()
        if not _is_module(each) or id(each) in seen or prefix.count(".") > 4 * _MAX_DEPTH:
            continue
        seen.add(id(each))
        state = each.state
        passing = state.get("_non_persistent_buffers_set")
        passing = passing.args[0] if isinstance(passing, Stub) and passing.args else passing
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _list_entries(state.get(kind)).items():
                if not (isinstance(passing, list) and name in passing):
                    tensors[f"{prefix}{name}"] = tensor
        children = _list_entries(state["_modules"]).items()
        stack += [(f"{prefix}{name}.", child) for name, child in reversed(list(children))]
    return tensors


def _split(label: str, tensors: Mapping[str, Value]) -> Iterator[Weights]:
    """Yield the sets of weights in one dict. Each has its own prefix before a backbone's first block."""
    names, notes = _remove_wrappers(tensors)
    firsts = {first for backbone in BACKBONES.values() for first in backbone.first_tensors}
    prefixes = []
    for name in names:
        first = max((each for each in firsts if name == each or name.endswith(f".{each}")), key=len, default="")
        if first:
            prefixes.append(_strip_backbone_prefix(name.removesuffix(first)))
    if len(set(prefixes)) > _MAX_SETS:
        raise CheckpointError(f"contains more than {_MAX_SETS} sets of weights. Save one of them to a new file.")
    for prefix in dict.fromkeys(prefixes):
        yield _select_under(label, prefix, names, notes, [other for other in set(prefixes) if other not in ("", prefix)])


def _strip_backbone_prefix(prefix: str) -> str:
    for each in backbone_prefixes():
        if prefix == each or prefix.endswith(f".{each}"):
            return prefix.removesuffix(each)
    return prefix


def _select_under(
    label: str, prefix: str, names: Mapping[str, Value], notes: tuple[str, ...], other_prefixes: Sequence[str] = ()
) -> Weights:
    full = ".".join(part for part in (label, prefix.rstrip(".")) if part)
    nested = tuple(other for other in other_prefixes if other.startswith(prefix))
    inside = {
        name.removeprefix(prefix): value
        for name, value in names.items()
        if name.startswith(prefix) and not name.startswith(nested)
    }
    counters = {name for name in _COUNTERS if name in inside and getattr(inside[name], "shape", None) == ()}
    profiles = {name for name in inside if name.rpartition(".")[2] in _PROFILES}
    inside = {name: value for name, value in inside.items() if name not in counters | profiles}
    is_raw = _RAW.search(full.rpartition(".")[2])
    is_average = "n_averaged" in counters or (_AVERAGE.search(full) is not None and not is_raw)
    others = tuple(sorted(name for name in names if not name.startswith((prefix, *other_prefixes))))
    if prefix:
        notes = (*notes, f"the prefix {prefix!r} was removed from the names")
    if profiles:
        notes = (*notes, f"tensors not used: {len(profiles)} ({' and '.join(_PROFILES)}, the counters of a profiler)")
    return Weights(full, prefix, inside, others, is_average, notes=notes)


def _strip_common_prefix(label: str, tensors: Mapping[str, Value]) -> Weights:
    """Return the weights of an unknown network, without the prefix that all kernels have in common."""
    names, notes = _remove_wrappers(tensors)
    kernels = [name for name, value in names.items() if _rank(value) > 1] or list(names)
    prefix = ""
    while kernels:
        first, dot, _ = kernels[0].removeprefix(prefix).partition(".")
        longer = f"{prefix}{first}{dot}"
        is_shared = all(name.startswith(longer) and "." in name.removeprefix(longer) for name in kernels)
        if not dot or f"{first}." in backbone_prefixes() or not is_shared:
            break
        prefix = longer
    return _select_under(label, prefix, names, notes)


def _remove_wrappers(tensors: Mapping[str, Value]) -> tuple[dict[str, Value], tuple[str, ...]]:
    short = {name: _WRAPPERS.sub("", name) for name in tensors}
    if len(set(short.values())) < len(short):
        return dict(tensors), ()
    removed = sorted({part for name in tensors for part in _WRAPPERS.findall(name)})
    return {short[name]: value for name, value in tensors.items()}, tuple(
        f"{part!r} was removed from the names" for part in removed
    )
