"""What network a state dict is of: switches from the names and shapes of its tensors, the rest from what the file says."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import Config, ModelConfig, from_dict
from deeplab_jax.config.validation import validate
from deeplab_jax.errors import CheckpointError, ConfigError, one_line
from deeplab_jax.labels import CITYSCAPES, VOC
from deeplab_jax.models.backbones.mobilenetv3 import LAST_EXPANSION, STAGES, STEM, scaled
from deeplab_jax.models.backbones.resnet import DEPTHS
from deeplab_jax.weights import names, published
from deeplab_jax.weights.state_dicts import RECORD, StateDict

# Fields that names and shapes tell.
FROM_TENSORS = ("backbone", "width", "stem", "shortcut", "aspp_width", "fusion", "aux_head")
USUAL = "not in the tensors: the reference's usual"
MOBILENETV3 = "15.block.2.fc1.weight"  # of the last block that torchvision's MobileNetV3-Large has


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
      CheckpointError: it is no backbone of ours with or without a DeepLabV3 head, or of another reference than `fmt`.
    """
    found = _format(state)
    expected = (fmt, "timm")  # all name a plain backbone alike
    if fmt != "auto" and found not in expected:
        raise CheckpointError(f"`{state.source}` has the names of {found}, not of {fmt}: use --from={found} or --from=auto")
    shapes = {name: value.shape for name, value in state.tensors.items()}
    switches = _backbone(state.source, shapes) | _head(state.source, found, shapes)
    num_classes = switches.pop("num_classes", 0)
    if num_classes and switches.get("shortcut") == "avgpool+1x1":
        raise CheckpointError(
            f"`{state.source}` has the pooled shortcuts of ResNetV1d, which mmsegmentation drops where it dilates: our network "
            "is another one, give the backbone's own weights"
        )
    try:
        config, origin = _recorded(state, switches) if RECORD in state.meta else _described(state, found, switches, num_classes)
        return Network(found, validate(config), num_classes, origin)
    # What a file says of itself may be anything.
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"`{state.source}` describes itself in a way that is not understood ({one_line(error)}): save its state dict alone"
        ) from None


def _recorded(state: StateDict, switches: dict[str, Any]) -> tuple[Config, dict[str, str]]:
    """The config that an export of ours wrote beside the tensors."""
    config = from_dict(state.meta[RECORD])
    told = {name: value for name, value in switches.items() if name in FROM_TENSORS}
    config.model = dataclasses.replace(config.model, **told, pretrained="")
    fields = [f"model.{field.name}" for field in dataclasses.fields(ModelConfig) if field.name not in FROM_TENSORS]
    return config, dict.fromkeys([*fields, "labels"], "the record in the file")


def _described(state: StateDict, fmt: str, switches: dict[str, Any], num_classes: int) -> tuple[Config, dict[str, str]]:
    config = Config(model=ModelConfig(**switches))
    if not num_classes:
        return config, {}
    named = published.label_set(state)
    config.labels = named or (VOC if fmt == "torchvision" else CITYSCAPES)
    origin = {"labels": "the file" if named else "assumed: of the published weights"}
    if config.model.backbone in DEPTHS:
        config.model.output_stride = 8
    else:  # torchvision dilates one stage, its first block included
        config.model = dataclasses.replace(config.model, output_stride=16, multi_grid=(1.0,) * 3, atrous_rates=(12, 24, 36))
    for field, (value, where) in (published.facts(state) if fmt == "mmseg" else {}).items():
        section, name = field.split(".")
        setattr(getattr(config, section), name, value)
        origin[field] = where
    return config, origin


def _format(state: StateDict) -> str:
    found = {name.removeprefix("backbone.") for name in state.tensors}
    for fmt, prefix in (
        ("mmseg", "decode_head."),
        # ImageNet networks have a "classifier." too.
        ("torchvision", ("classifier.0.convs.", "classifier.4.", "aux_classifier.")),
        ("mmseg", "stem."),  # of ResNetV1c alone; any other backbone has the names of timm and torchvision
        ("timm", ("layer1.0.conv1.", MOBILENETV3, f"features.{MOBILENETV3}")),
    ):
        if any(name.startswith(prefix) for name in found):
            return fmt
    some = ", ".join(sorted(found)[:3])
    raise CheckpointError(
        f"`{state.source}` is no DeepLabV3, no ResNet and no MobileNetV3-Large of torchvision (it has {some}, ...): give "
        "weights of one"
    )


def _backbone(source: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    shapes = {names.bare(name): shape for name, shape in shapes.items()}
    if MOBILENETV3 in shapes:
        return {"backbone": "mobilenetv3_large", "width": _mobilenet_width(source, shapes)}
    blocks = [re.match(r"layer(\d)\.(\d+)\.conv1\.weight", name) for name in shapes]
    counts = tuple(1 + max((int(m[2]) for m in blocks if m and m[1] == str(stage)), default=-1) for stage in (1, 2, 3, 4))
    kind = (counts, "layer1.0.conv3.weight" in shapes)
    depth = next((name for name, known in DEPTHS.items() if known == kind), None)
    width = _channels(source, shapes, "layer1.0.conv1.weight")
    if depth is None:
        block = "bottlenecks" if kind[1] else "basic blocks"
        raise CheckpointError(f"`{source}` has a backbone of {counts} {block} by stage: only {', '.join(DEPTHS)} are known")
    deep = "stem.0.weight" in shapes or "conv1.0.weight" in shapes
    pooled = "layer2.0.downsample.2.weight" in shapes  # the pool is layer 0
    return {
        "backbone": depth,
        "width": width,
        "stem": "3x3" if deep else "7x7",
        "shortcut": "avgpool+1x1" if pooled else "1x1",
    }


def _mobilenet_width(source: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The width whose blocks have these channels. All are multiples of 8, so that neighbours share most of them."""
    found = tuple(_channels(source, shapes, name) for name in ("0.0.weight", "15.block.0.0.weight", "16.0.weight"))
    last = STAGES[-1][-1]
    # The widest layer tells all even widths apart.
    width = max(2, 2 * round(found[1] * 64 / last.expanded / 2))
    if found != (scaled(STEM.features, width), scaled(last.expanded, width), LAST_EXPANSION * scaled(last.features, width)):
        stem, expanded, wide = found
        raise CheckpointError(
            f"`{source}` has a MobileNetV3-Large of {stem}, {expanded} and {wide} channels (stem, last expansion, last "
            "convolution), which no even model.width gives: give weights of another width"
        )
    return width


def _head(source: str, fmt: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Switches of the head, and the number of its classes; nothing for a backbone."""
    prefix, last, width, aux = {
        "torchvision": ("classifier.", "classifier.4.weight", "classifier.0.convs.0.0.weight", "aux_classifier."),
        "mmseg": ("decode_head.", "decode_head.conv_seg.weight", "decode_head.aspp_modules.0.conv.weight", "auxiliary_head."),
        "timm": ("-", "", "", ""),
    }[fmt]
    if not any(name.startswith(prefix) for name in shapes):
        return {}
    return {
        "aspp_width": _channels(source, shapes, width),
        "fusion": "3x3" if fmt == "mmseg" else "1x1+3x3",
        "dropout": 0.1 if fmt == "mmseg" else 0.5,
        "dilate_conv2": fmt != "mmseg" or "backbone.layer1.0.conv3.weight" in shapes,  # a switch of basic blocks alone
        "aux_head": any(name.startswith(aux) for name in shapes),
        "num_classes": _channels(source, shapes, last),
    }


def _channels(source: str, shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Output channels of a convolution."""
    shape = shapes.get(name, ())
    if len(shape) != 4:
        fault = f"has the shape {shape}" if name in shapes else "is missing"
        raise CheckpointError(f"`{source}` is no DeepLabV3 and no backbone of one: {name} {fault}")
    return shape[0]
