"""Select a network's variables by patterns on their paths, such as "backbone/stage1_block1/bn1/scale".

A pattern is a regular expression that must match the start of the path, so "backbone" selects the backbone, and
".*/(scale|bias)" selects all scales and biases.
"""

import re
from collections.abc import Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError

Tree = dict[str, Any]  # nested dicts of arrays

_BLOCK = re.compile(r"backbone/stage(\d+)_(?:block(\d+))?")


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns matches the start of a path."""
    return any(re.match(pattern, path) for pattern in patterns)


def list_paths(tree: Tree) -> list[str]:
    """Return the paths of all arrays in a tree."""
    return list(flatten_dict(tree, sep="/"))


def split(tree: Tree, patterns: Sequence[str]) -> tuple[Tree, Tree]:
    """Return the arrays of a tree whose paths no pattern matches, and the others. Each is a tree of its own."""
    arrays = flatten_dict(tree, sep="/")
    rest, selected = (
        {path: x for path, x in arrays.items() if matches(path, patterns) == is_match} for is_match in (False, True)
    )
    return unflatten_dict(rest, sep="/"), unflatten_dict(selected, sep="/")


def merge(first: Tree, second: Tree) -> Tree:
    """Return a tree with the arrays of both. If both have an array, the second one is used."""
    return unflatten_dict(flatten_dict(first, sep="/") | flatten_dict(second, sep="/"), sep="/")


def restrict(tree: Tree, like: Tree) -> Tree:
    """Return the arrays of a tree that `like` also has."""
    return {name: restrict(tree[name], part) if isinstance(part, dict) else tree[name] for name, part in like.items()}


def compute_lr_factor(path: str, config: OptimConfig, blocks: Sequence[tuple[int, int]]) -> float:
    """Return the factor of a parameter's learning rate.

    Args:
      path: The parameter's path.
      config: The config. The last pattern in `lr_factors` that matches decides. As in BEiT (Bao et al. 2021, arXiv:2106.08254,
        section 3.3), the factor is multiplied by `layer_decay` once for each block from the parameter's own to the last one.
      blocks: The backbone's blocks, from `list_blocks`.
    """
    factor = next((factor for pattern, factor in reversed(config.lr_factors) if re.match(pattern, path)), 1.0)
    block = _find_block(path)
    return factor if block is None else factor * config.layer_decay ** (len(blocks) - blocks.index(block))


def list_blocks(paths: Sequence[str]) -> list[tuple[int, int]]:
    """Return the backbone's blocks that have parameters, as sorted (stage, block) pairs. The stem is (0, 0)."""
    return sorted({block for path in paths if (block := _find_block(path)) is not None})


def _find_block(path: str) -> tuple[int, int] | None:
    if not path.startswith("backbone/"):
        return None
    if match := _BLOCK.match(path):
        return int(match[1]), int(match[2] or 1000)  # layers without a block follow the stage's blocks
    return 0, 0


def check_patterns(config: OptimConfig, variables: dict[str, Tree]) -> None:
    """Raise a ConfigError if a pattern in the config matches nothing, or if the patterns leave nothing to train.

    Args:
      config: The config.
      variables: The network's "params" and "batch_stats", as arrays or shapes.
    """
    params, statistics = list_paths(variables["params"]), list_paths(variables["batch_stats"])
    _require_matches("frozen", config, config.frozen, params + statistics, "arrays")
    trained = [path for path in params if not matches(path, config.frozen)]
    if not trained:
        raise ConfigError(f"`optim.frozen` (={config.frozen!r}) matches all parameters, so nothing would be trained.")
    _require_matches("no_decay", config, config.no_decay, trained, "trained parameters")
    _require_matches("lr_factors", config, [pattern for pattern, _ in config.lr_factors], trained, "trained parameters")
    if config.layer_decay < 1 and not list_blocks(trained):
        raise ConfigError(f"`optim.layer_decay` (={config.layer_decay}) has no effect, because the whole backbone is frozen.")
    fixed = {path for path in statistics if matches(path, config.frozen)}
    for path in sorted(fixed):
        pair = re.sub("(mean|var)$", lambda match: "var" if match[1] == "mean" else "mean", path)
        if pair in statistics and pair not in fixed:
            raise ConfigError(
                f"`optim.frozen` (={config.frozen!r}) matches {path}, but not {pair}. Match both, for example with "
                "'.*/(mean|var)'."
            )


def _require_matches(field: str, config: OptimConfig, patterns: Sequence[str], paths: Sequence[str], what: str) -> None:
    parts = ", ".join(sorted({path.split("/")[0] for path in paths}))
    for pattern in patterns:
        if not any(re.match(pattern, path) for path in paths):
            raise ConfigError(
                f"`optim.{field}` (={getattr(config, field)!r}) contains {pattern!r}, which matches none of the network's "
                f"{what}. Their paths start with {parts}, such as {paths[0]}."
            )
