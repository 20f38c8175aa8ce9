"""What network a state dict is of: switches from the names and shapes of its tensors, and from what the file says of itself.

Shapes cannot tell a stride from a rate: output stride, multi-grid and the alignment of corners come from the configuration
that a checkpoint of mmsegmentation holds, else from its published file name, else they are assumed, and the caller is told.
"""

import ast
import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import Config, ModelConfig, from_dict
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.labels import CITYSCAPES, VOC, LabelSet, voc_color
from deeplab_jax.models.resnet import DEPTHS
from deeplab_jax.weights.state_dicts import RECORD, StateDict

# Fields that names and shapes tell.
FROM_TENSORS = ("backbone", "width", "stem", "aspp_width", "fusion", "aux_head")
USUAL = "not in the tensors: the reference's usual"
Facts = dict[str, tuple[Any, str]]  # field of a config -> its value, and where it comes from


@dataclasses.dataclass(frozen=True)
class Network:
    """What a state dict is of.

    Attributes:
      fmt: the reference whose names it has, one of `names.FORMATS`; "timm" is any backbone without a prefix.
      config: `model`, `labels` and `eval` as recognised.
      num_classes: channels of the logits; 0 for a backbone alone.
      origin: where the fields of the config come from that names and shapes do not tell; `USUAL` for the others.
    """

    fmt: str
    config: Config
    num_classes: int
    origin: dict[str, str]

    @property
    def is_backbone(self) -> bool:
        """Whether there is no segmentation head."""
        return self.num_classes == 0


def recognize(state: StateDict, fmt: str = "auto") -> Network:
    """The network of `state`.

    Args:
      state: what was read.
      fmt: "auto", or the reference whose names are expected.

    Raises:
      CheckpointError: it is no ResNet with or without a DeepLabV3 head, or of another reference than `fmt`.
    """
    found = _format(state)
    expected = (fmt, "timm")  # all name a plain backbone alike
    if fmt != "auto" and found not in expected:
        raise CheckpointError(f"`{state.source}` has the names of {found}, not of {fmt}: use --from={found} or --from=auto")
    shapes = {name: value.shape for name, value in state.tensors.items()}
    head = _head(state.source, found, shapes)
    num_classes = head.pop("num_classes", 0)
    if RECORD in state.meta:
        config = from_dict(state.meta[RECORD])
        fields = [f"model.{field.name}" for field in dataclasses.fields(ModelConfig)]
        return Network(found, config, num_classes, dict.fromkeys(fields, "the record in the file"))
    config = Config(model=ModelConfig(**(_backbone(state.source, shapes) | head)), labels=_label_set(state, found))
    facts = {"model.output_stride": (8, USUAL)} | _from_file_name(state.source) | _from_meta(state) if num_classes else {}
    for field, (value, _) in facts.items():
        section, name = field.split(".")
        setattr(getattr(config, section), name, value)
    return Network(found, config, num_classes, {field: origin for field, (_, origin) in facts.items()})


def _format(state: StateDict) -> str:
    names = {name.removeprefix("backbone.") for name in state.tensors}
    for fmt, prefix in (
        ("mmseg", "decode_head."),
        ("torchvision", ("classifier.", "aux_classifier.")),
        ("mmseg", "stem."),  # of ResNetV1c alone; any other backbone has the names of timm and torchvision
        ("timm", "layer1.0.conv1."),
    ):
        if any(name.startswith(prefix) for name in names):
            return fmt
    some = ", ".join(sorted(names)[:3])
    raise CheckpointError(f"`{state.source}` is no ResNet and no DeepLabV3 (it has {some}, ...): give weights of one")


def _backbone(source: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    shapes = {name.removeprefix("backbone."): shape for name, shape in shapes.items()}
    blocks = [re.match(r"layer(\d)\.(\d+)\.conv1\.weight", name) for name in shapes]
    counts = tuple(1 + max((int(m[2]) for m in blocks if m and m[1] == str(stage)), default=-1) for stage in (1, 2, 3, 4))
    kind = (counts, "layer1.0.conv3.weight" in shapes)
    depth = next((name for name, known in DEPTHS.items() if known == kind), None)
    first = shapes.get("layer1.0.conv1.weight")
    if depth is None or first is None:
        block = "bottlenecks" if kind[1] else "basic blocks"
        raise CheckpointError(f"`{source}` has a backbone of {counts} {block} by stage: only {', '.join(DEPTHS)} are known")
    deep = "stem.0.weight" in shapes or "conv1.0.weight" in shapes
    return {"backbone": depth, "width": first[0], "stem": "3x3" if deep else "7x7"}


def _head(source: str, fmt: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Switches of the head, and the number of its classes; nothing for a backbone."""
    prefix, last, width, aux = {
        "torchvision": ("classifier.", "classifier.4.weight", "classifier.0.convs.0.0.weight", "aux_classifier."),
        "mmseg": ("decode_head.", "decode_head.conv_seg.weight", "decode_head.aspp_modules.0.conv.weight", "auxiliary_head."),
        "timm": ("-", "", "", ""),
    }[fmt]
    if not any(name.startswith(prefix) for name in shapes):
        return {}
    missing = [name for name in (last, width) if name not in shapes]
    if missing:
        raise CheckpointError(f"`{source}` has no DeepLabV3 head: {', '.join(missing)} is missing")
    return {
        "aspp_width": shapes[width][0],
        "fusion": "3x3" if fmt == "mmseg" else "1x1+3x3",
        "dropout": 0.1 if fmt == "mmseg" else 0.5,
        "dilate_conv2": fmt != "mmseg",
        "aux_head": any(name.startswith(aux) for name in shapes),
        "num_classes": shapes[last][0],
    }


def _from_file_name(source: str) -> Facts:
    """What mmsegmentation's published names say: deeplabv3_r101-d16-mg124_512x1024_..., deeplabv3_r50-d8_769x769_..."""
    name = source.replace("\\", "/").rsplit("/", 1)[-1].lower()
    facts: Facts = {}
    if not name.startswith("deeplabv3_r"):
        return facts
    if re.search(r"[-_]d16[-_]", name):
        facts["model.output_stride"] = (16, "the file's name")
    if "mg124" in name:
        facts["model.multi_grid"] = ((0.5, 1.0, 2.0), "the file's name")
    if "769x769" in name:
        facts |= _aligned_and_sliding((769, 769), (513, 513), "the file's name")
    return facts


def _aligned_and_sliding(window: tuple[int, int], stride: tuple[int, int], origin: str) -> Facts:
    return {
        "model.align_corners": (True, origin),
        "eval.window": (window, origin),
        "eval.window_stride": (stride, origin),
    }


def _from_meta(state: StateDict) -> Facts:
    """What the configuration in a checkpoint of mmsegmentation says ("config" up to 0.x, "cfg" since 1.0)."""
    text = state.meta.get("config") or state.meta.get("cfg")
    if not isinstance(text, str):
        return {}
    settings = _literals(text)
    model = settings.get("model")
    if not isinstance(model, dict):
        return {}
    backbone, head = model.get("backbone") or {}, model.get("decode_head") or {}
    found: dict[str, Any] = {}
    if "strides" in backbone:
        found["model.output_stride"] = 4 * math.prod(backbone["strides"])
    stride = found.get("model.output_stride", 8)
    if head.get("dilations"):
        found["model.atrous_rates"] = tuple(rate * stride // 16 for rate in head["dilations"][1:])
    if backbone.get("multi_grid"):
        # There the rates themselves, here in units of the stage's own.
        found["model.multi_grid"] = tuple(rate * stride / 32 for rate in backbone["multi_grid"])
    elif stride < 32 and not backbone.get("contract_dilation", False):
        raise CheckpointError(f"`{state.source}` was trained with contract_dilation=False: that network is not ours")
    found |= {f"model.{ours}": head[name] for ours, name in _HEAD_FIELDS.items() if name in head}
    test = model.get("test_cfg") or settings.get("test_cfg") or {}
    if test.get("mode") == "slide":
        found |= {"eval.window": tuple(test["crop_size"]), "eval.window_stride": tuple(test["stride"])}
    norm = settings.get("img_norm_cfg") or settings.get("data_preprocessor") or {}
    found |= {f"model.{name}": tuple(norm[name]) for name in ("mean", "std") if name in norm}
    return {field: (value, "the configuration in the file") for field, value in found.items()}


_HEAD_FIELDS = {"align_corners": "align_corners", "dropout": "dropout_ratio"}


def _literals(text: str) -> dict[str, Any]:
    """The assignments of a Python file whose values are literals or nested `dict(...)`; nothing is run."""
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return {}
    values: dict[str, Any] = {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            with contextlib.suppress(ValueError):
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


def _label_set(state: StateDict, fmt: str) -> LabelSet:
    """The classes that the file names, else those of the reference's published weights."""
    published = VOC if fmt == "torchvision" else CITYSCAPES
    described = state.meta.get("dataset_meta") or {}
    names = state.meta.get("CLASSES") or described.get("classes")
    if not names or tuple(names) == published.names:
        return published
    palette = state.meta.get("PALETTE") or described.get("palette") or ()
    name, names = "imported", tuple(map(str, names))
    try:
        return LabelSet(name, names, tuple((int(r), int(g), int(b)) for r, g, b in palette), ignored_colors=())
    except ConfigError:
        # Some published palettes give one colour to several classes.
        return LabelSet(name, names, tuple(voc_color(i + 1) for i in range(len(names))))
