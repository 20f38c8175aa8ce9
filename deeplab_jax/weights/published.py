"""What a checkpoint of mmsegmentation says of itself: the configuration in it, its published file name, its classes.

Shapes cannot tell a stride from a rate, so these are where output stride, rates, alignment and protocol come from. Nothing that
a file holds is run.
"""

import ast
import contextlib
import math
import re
from typing import Any

from deeplab_jax.config import ModelConfig, multi_grid_units
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.labels import CITYSCAPES, IGNORE, VOC, LabelSet, voc_color
from deeplab_jax.weights.state_dicts import StateDict

Facts = dict[str, tuple[Any, str]]  # field of a config -> its value, and where it comes from


def facts(state: StateDict) -> Facts:
    """Fields of `model` and `eval`: from the configuration, which says all, or where there is none from the file's name.

    Raises:
      CheckpointError: the configuration is of a network that ours is not.
    """
    settings = _literals(_text(state))
    if {"backbone", "decode_head"} <= set(settings.get("model") or ()):
        return {field: (value, "the configuration in the file") for field, value in _configured(state, settings).items()}
    return {field: (value, "the file's name") for field, value in _named(state.source).items()}


def label_set(state: StateDict) -> LabelSet | None:
    """The classes that the file names; None if it names none."""
    described = state.meta.get("dataset_meta") or {}
    names = tuple(map(str, state.meta.get("CLASSES") or described.get("classes") or ()))
    palette = state.meta.get("PALETTE") or described.get("palette") or ()
    known = [known for known in (CITYSCAPES, VOC) if known.names == names]
    if known or not names:
        return known[0] if known else None
    # The value 0 of such label files, ADE20K's among them, is ignored, and the first class is 1.
    shifted = "reduce_zero_label=True" in _text(state)
    ids, ignored = (tuple(range(1, len(names) + 1)), (0, IGNORE)) if shifted else ((), (IGNORE,))
    try:
        colors = tuple((int(r), int(g), int(b)) for r, g, b in palette)
        return LabelSet("imported", names, colors, ids, ignored, ignored_colors=())
    except ConfigError:
        # Some published palettes give one colour to several classes.
        return LabelSet("imported", names, tuple(voc_color(i + 1) for i in range(len(names))), ids, ignored)


def _text(state: StateDict) -> str:
    # "config" up to mmsegmentation 0.x, "cfg" since 1.0.
    text = state.meta.get("config") or state.meta.get("cfg")
    return text if isinstance(text, str) else ""


def _configured(state: StateDict, settings: dict[str, Any]) -> dict[str, Any]:
    model = settings["model"]
    backbone, head = model["backbone"], model["decode_head"]
    norm = settings.get("img_norm_cfg") or settings.get("data_preprocessor") or model.get("data_preprocessor") or {}
    stride = 4 * math.prod(backbone.get("strides", (1, 2, 2, 2)))
    _require_ours(state.source, stride, backbone, norm)
    rates, grid = list(head.get("dilations", (1, 6, 12, 18)))[1:], backbone.get("multi_grid")
    if any(rate * stride % 16 for rate in rates):
        raise CheckpointError(
            f"`{state.source}` has ASPP dilations {rates} at output stride {stride}: at 16 they are not whole"
        )
    test = model.get("test_cfg") or settings.get("test_cfg") or {}
    is_sliding = test.get("mode") == "slide"
    fields = {
        "model.output_stride": stride,
        "model.multi_grid": multi_grid_units(tuple(grid), stride) if grid else ModelConfig().multi_grid,
        "model.atrous_rates": tuple(rate * stride // 16 for rate in rates),
        "model.align_corners": head.get("align_corners", False),
        "model.dropout": head.get("dropout_ratio", 0.1),
        "eval.window": tuple(test["crop_size"]) if is_sliding else (0, 0),
        "eval.window_stride": tuple(test["stride"]) if is_sliding else (0, 0),
    }
    return fields | {f"model.{name}": tuple(map(float, norm[name])) for name in ("mean", "std") if name in norm}


def _require_ours(source: str, stride: int, backbone: dict[str, Any], norm: dict[str, Any]) -> None:
    """Raises CheckpointError for switches under which the same tensors are another network."""
    dilations = tuple(max(natural // stride, 1) for natural in (4, 8, 16, 32))
    needed = {
        "style": (backbone.get("style", "pytorch"), "pytorch"),
        "dilations": (tuple(backbone.get("dilations", (1, 1, 1, 1))), dilations),
        "contract_dilation": (stride == 32 or backbone.get("contract_dilation", False), True),
        "avg_down": (backbone.get("avg_down", False), False),
        "to_rgb": (norm.get("to_rgb", norm.get("bgr_to_rgb", True)), True),
    }
    for field, (value, ours) in needed.items():
        if value != ours:
            raise CheckpointError(f"`{source}` was trained with {field}={value!r}: our network has {ours!r} there")


def _named(source: str) -> dict[str, Any]:
    """deeplabv3_r101-d16-mg124_512x1024_..., deeplabv3_r50-d8_769x769_..."""
    name = source.replace("\\", "/").rsplit("/", 1)[-1].lower()
    if not name.startswith("deeplabv3_r"):
        return {}
    fields: dict[str, Any] = {"model.output_stride": 16} if re.search(r"[-_]d16[-_]", name) else {}
    if "mg124" in name:
        fields["model.multi_grid"] = (0.5, 1.0, 2.0)
    if "769x769" in name:
        fields |= {"model.align_corners": True, "eval.window": (769, 769), "eval.window_stride": (513, 513)}
    return fields


def _literals(text: str) -> dict[str, Any]:
    """The assignments of a Python file whose values are literals or nested `dict(...)`."""
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            with contextlib.suppress(ValueError, TypeError):
                values[statement.targets[0].id] = _literal(statement.value)
    return values


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _literal(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)
