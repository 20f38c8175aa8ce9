"""What network a state dict is of: switches from the names and shapes of its tensors, the rest from what the file says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from deeplab_jax.config import Config, ModelConfig, from_dict
from deeplab_jax.config.fields import names_of
from deeplab_jax.errors import CheckpointError, ConfigError, one_line
from deeplab_jax.models import validate
from deeplab_jax.models.backbones import BACKBONES
from deeplab_jax.models.stages import Shapes
from deeplab_jax.weights.names import without_prefix
from deeplab_jax.weights.source import Facts
from deeplab_jax.weights.sources import SOURCES
from deeplab_jax.weights.state_dicts import RECORD, StateDict

FROM_TENSORS = names_of(ModelConfig, changes=("shapes",))


@dataclasses.dataclass(frozen=True)
class Network:
    """The network that a state dict is of.

    Attributes:
      fmt: the source whose names it has, a key of `SOURCES`; "timm" is any backbone without a prefix.
      config: `model`, `labels` and `eval` as recognised.
      num_classes: channels of the logits; 0 for a backbone alone.
      origin: where fields of the config come from that names and shapes do not show.
    """

    fmt: str
    config: Config
    num_classes: int
    origin: dict[str, str]

    @property
    def is_backbone(self) -> bool:
        """Whether there is no segmentation head."""
        return self.num_classes == 0


def recognize(state: StateDict, fmt: str = "auto", asked: Mapping[str, Any] | None = None) -> Network:
    """Return the network of `state`.

    Args:
      state: what was read.
      fmt: "auto", or the source whose names are expected.
      asked: fields of `ModelConfig` that the user gave. A source's usual values of others can depend on them.

    Raises:
      CheckpointError: it is no backbone of ours with or without a DeepLabV3 head, or of another source than `fmt`.
    """
    shapes = {name: value.shape for name, value in state.tensors.items()}
    source = next(name for name, each in SOURCES.items() if each.has_names({without_prefix(name) for name in shapes}))
    if fmt not in ("auto", source) and not SOURCES[source].is_backbone_alone:
        raise CheckpointError(f"`{state.source}` has the names of {source}, not of {fmt}: use --from={source} or --from=auto")
    try:
        switches = _recognize_backbone(shapes) | SOURCES[source].read_head(shapes)
        num_classes = switches.pop("num_classes", 0)
        if RECORD in state.meta:
            config, origin = _read_record(state, switches)
        else:
            model = ModelConfig(**switches)
            facts = SOURCES[source].read_facts(state, model, asked or {}) if num_classes else {}
            config, origin = _apply(facts, model)
        return Network(source, validate(config), num_classes, origin)
    except CheckpointError as error:
        raise CheckpointError(f"`{state.source}` {error}") from None
    # What a file says of itself may be anything.
    except (ConfigError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"`{state.source}` describes itself in a way that is not understood ({one_line(error)}): save its state dict alone"
        ) from None


def _recognize_backbone(shapes: Shapes) -> dict[str, Any]:
    shapes = {without_prefix(name): shape for name, shape in shapes.items()}
    refusal = None
    for recognize_kind in dict.fromkeys(backbone.recognize for backbone in BACKBONES.values()):
        try:
            if (switches := recognize_kind(shapes)) is not None:
                return switches
        except CheckpointError as error:  # another kind may know it
            refusal = refusal or error
    if refusal:
        raise refusal
    some, known = ", ".join(sorted(shapes)[:3]), ", ".join(BACKBONES)
    raise CheckpointError(f"is no DeepLabV3 and no backbone of one (it has {some}, ...): give weights of {known}")


def _read_record(state: StateDict, switches: dict[str, Any]) -> tuple[Config, dict[str, str]]:
    """Return the config that an export of ours wrote beside the tensors."""
    config = from_dict(state.meta[RECORD])
    shown = {name: value for name, value in switches.items() if name in FROM_TENSORS}
    config.model = dataclasses.replace(config.model, **shown, pretrained="")
    fields = [f"model.{field.name}" for field in dataclasses.fields(ModelConfig) if field.name not in FROM_TENSORS]
    return config, dict.fromkeys([*fields, "labels"], "the record in the file")


def _apply(facts: Facts, model: ModelConfig) -> tuple[Config, dict[str, str]]:
    """Return the config that has the facts' values, and where each is from."""
    config = Config(model=model)
    for field, (value, _) in facts.items():
        section, _, name = field.rpartition(".")
        setattr(getattr(config, section) if section else config, name, value)
    return config, {field: where for field, (_, where) in facts.items()}
