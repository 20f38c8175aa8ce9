"""Recognise which network a state dict belongs to.

The architecture is inferred from tensor names and shapes. Other settings come from the file's metadata or name, or are the
library's defaults.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import IMAGENET_MEAN, IMAGENET_STD, MAX_CHANNELS, Config, ModelConfig, adapt_to_channels, from_dict
from deeplab_jax.config.fields import field_names
from deeplab_jax.errors import CheckpointError, ConfigError, one_line, summarize
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import validate
from deeplab_jax.models.backbones import BACKBONES, find_backbone
from deeplab_jax.models.stages import FIRST_LAYERS, Shapes
from deeplab_jax.weights.foreign import name_backbone
from deeplab_jax.weights.names import strip_backbone_prefix
from deeplab_jax.weights.source import Facts, OtherHeadError, StateDict, last_parts
from deeplab_jax.weights.sources import SOURCES
from deeplab_jax.weights.state_dicts import RECORD

# The classes of a network with one logit.
BINARY = LabelSet("binary", ("background", "foreground"), ((0, 0, 0), (255, 255, 255)), ignored_colors=())

# The `ModelConfig` fields that are inferred from tensor names and shapes.
FROM_TENSORS = field_names(ModelConfig, changes=("shapes",))


@dataclasses.dataclass(frozen=True)
class Network:
    """The network recognised in a state dict.

    Attributes:
      fmt: The library whose tensor names the file uses, a key of `SOURCES`. For a file with only a backbone, this is "timm"
        unless only one library names its tensors that way, as mmsegmentation does in its deep stem.
      config: A config whose `model`, `labels` and `eval` sections describe the network.
      num_classes: The number of classes, or 0 if only the file's backbone can be used.
      origin: A dict that describes, for each config field not inferred from the tensors, where its value comes from.
      is_sigmoid: Whether the network has one logit channel. It then has two classes, and the first one's logit is 0.
      threshold: The probability above which the library predicts the second class, if the network has one logit channel.
      assumption: What the tensors do not show about the backbone and is assumed, or "".
      other_head: What the head is, such as "has the head of a DeepLabV3+", if it is not a DeepLabV3's.
    """

    fmt: str
    config: Config
    num_classes: int
    origin: dict[str, str]
    is_sigmoid: bool = False
    threshold: float = 0.5
    assumption: str = ""
    other_head: str = ""

    @property
    def is_backbone(self) -> bool:
        """Whether only the file's backbone can be used."""
        return self.num_classes == 0

    @property
    def shift(self) -> float:
        """What to add to the one logit, so that it is above 0 where its sigmoid is above `threshold`."""
        return math.log((1 - self.threshold) / self.threshold)


def recognize(state: StateDict, fmt: str = "auto", overrides: Mapping[str, Any] | None = None) -> Network:
    """Recognise which network a state dict belongs to.

    Args:
      state: The state dict.
      fmt: The expected library, a key of `SOURCES`, or "auto" for any library.
      overrides: The `ModelConfig` fields set by the user. A library's defaults can depend on them.

    Raises:
      CheckpointError: The file contains neither a DeepLabV3 nor a supported backbone, its tensor names do not match `fmt`, or
        its metadata is invalid.
    """
    shapes = {name: value.shape for name, value in state.tensors.items()}
    source = next(name for name, each in SOURCES.items() if each.has_names({strip_backbone_prefix(name) for name in shapes}))
    if fmt not in ("auto", source) and not SOURCES[source].is_backbone_only:
        raise CheckpointError(
            f"`{state.source}` has {source} tensor names, not {fmt} names. Use --from={source} or --from=auto."
        )
    try:
        switches, other_head = _recognize_backbone(shapes, source), ""
        record = state.meta[RECORD].get("model", {}) if RECORD in state.meta else {}
        switches["backbone"], assumption = _choose_variant(state, source, switches["backbone"], overrides or {}, record)
        try:
            switches |= SOURCES[source].read_head(shapes)
        except OtherHeadError as error:
            other_head = str(error)
        logits = switches.pop("num_classes", 0)
        num_classes = 2 if logits == 1 else logits
        assumption = "" if num_classes else assumption  # a head shows whose network it is
        if RECORD in state.meta:
            config, origin = _read_record(state, switches)
        else:
            SOURCES[source].check_settings(state)
            model = ModelConfig(**switches)
            model = _expect_published_images(model, source, _count_channels(shapes, model, source))
            has_facts = num_classes or SOURCES[source].is_backbone_only
            facts = SOURCES[source].read_facts(state, model, overrides or {}) if has_facts else {}
            config, origin = _apply_facts(facts, model)
        if logits == 1 and config.labels.num_classes != 2:
            config.labels, origin["labels"] = BINARY, "assumed: the network has one logit"
        config.data.channels = _count_channels(shapes, config.model, source)
        threshold = SOURCES[source].read_threshold(state) if logits == 1 else 0.5
        return Network(source, validate(config), num_classes, origin, logits == 1, threshold, assumption, other_head)
    except CheckpointError as error:
        raise CheckpointError(f"`{state.source}` {error}") from None
    # A file's metadata can contain anything, so reading it can raise many kinds of errors.
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        fault, advice = "contains invalid metadata", "Save only its state dict to a new file."
        if state.config or state.preprocessing:
            fault, advice = "has invalid settings in its JSON files", "Correct them, or use the weights file alone."
        raise CheckpointError(f"`{state.source}` {fault} ({one_line(error)}). {advice}") from None


def name_network(decoder_width: int) -> str:
    """Return the name of the network with this decoder."""
    return "DeepLabV3+" if decoder_width else "DeepLabV3"


def _recognize_backbone(shapes: Shapes, source: str) -> dict[str, Any]:
    stripped = {strip_backbone_prefix(name): shape for name, shape in shapes.items()}
    first_error = None
    for recognize_kind in dict.fromkeys(backbone.recognize for backbone in BACKBONES.values()):
        try:
            if (switches := recognize_kind(stripped)) is not None:
                return switches
        except CheckpointError as error:  # the tensors might still fit a different kind of backbone
            first_error = first_error or error
    kind = name_backbone(stripped)
    if first_error and not kind:
        raise first_error
    own = {name for name in shapes if strip_backbone_prefix(name) != name} or shapes
    names = ", ".join(sorted(own)[:3])
    try:
        fields = SOURCES[source].read_head(shapes)
        network = name_network(fields.get("decoder_width", 0))
        head = f"is a {network} for {fields['num_classes']} classes, but" if fields else ""
    except OtherHeadError as error:
        head = f"{error}, and"
    except CheckpointError:
        head = ""
    if head:
        fault = f"{head} its backbone{f', {kind},' if kind else ''} is not supported"
    else:
        fault = f"is not a DeepLabV3 network or a supported backbone{f', but contains {kind}' if kind else ''}"
    raise CheckpointError(
        f"{fault} (its tensors include {names}). Use weights for {summarize(BACKBONES)} (docs/reference/networks.md)."
    )


def _choose_variant(
    state: StateDict, source: str, backbone: str, overrides: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[str, str]:
    """Return which of the backbones with these tensors the file has, and what is assumed about it, or "".

    A recorded config decides, then the library and the file name, and then the user.
    """
    variants, choose = find_backbone(backbone).variants, find_backbone(backbone).choose_variant
    if choose is None:
        return backbone, ""
    if record.get("backbone") in variants:
        return record["backbone"], ""
    # The config.json of timm and of segmentation_models.pytorch names the network.
    name = str(state.config.get("architecture") or state.config.get("encoder_name") or last_parts(state.source, 2))
    backbone, assumption = choose(name, source)
    return (overrides["backbone"], "") if assumption and overrides.get("backbone") in variants else (backbone, assumption)


def _count_channels(shapes: Shapes, model: ModelConfig, fmt: str) -> int:
    """Return the number of channels in the images that the network reads, from the shape of its first convolution.

    Raises:
      CheckpointError: The network reads more channels than are supported.
    """
    layers = find_backbone(model.backbone).tensor_names(model, fmt)
    names = {strip_backbone_prefix(f"{layers[layer]}.weight") for layer in FIRST_LAYERS if layer in layers}
    kernels = [shape for name, shape in shapes.items() if strip_backbone_prefix(name) in names and len(shape) == 4]
    if not kernels:
        return 3  # the missing tensor is reported later, with all others
    channels = kernels[0][1]
    if channels > MAX_CHANNELS:
        raise CheckpointError(f"reads images with {channels} channels, more than {MAX_CHANNELS}. Use different weights.")
    return channels


def _expect_published_images(model: ModelConfig, source: str, channels: int) -> ModelConfig:
    """Return the config with the mean and standard deviation of the images that the library's published weights expect."""
    fields = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **find_backbone(model.backbone).images(source)}
    adapted: dict[str, Any] = {field: adapt_to_channels(values, channels) for field, values in fields.items()}
    return dataclasses.replace(model, **adapted)


def _read_record(state: StateDict, switches: dict[str, Any]) -> tuple[Config, dict[str, str]]:
    """Return the config that `export_weights` stored in the file, and a dict saying where each field's value comes from."""
    config = from_dict(state.meta[RECORD])
    from_tensors = {name: value for name, value in switches.items() if name in FROM_TENSORS}
    config.model = dataclasses.replace(config.model, **from_tensors, pretrained="")
    fields = [f"model.{field.name}" for field in dataclasses.fields(ModelConfig) if field.name not in FROM_TENSORS]
    return config, dict.fromkeys([*fields, "labels"], "the config stored in the file")


def _apply_facts(facts: Facts, model: ModelConfig) -> tuple[Config, dict[str, str]]:
    """Return a config built from `model` and `facts`, and a dict saying where the value of each field in `facts` comes from."""
    config = Config(model=model)
    for field, (value, _) in facts.items():
        section, _, name = field.rpartition(".")
        setattr(getattr(config, section) if section else config, name, value)
    return config, {field: origin for field, (_, origin) in facts.items()}
