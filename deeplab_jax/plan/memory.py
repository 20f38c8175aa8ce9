"""Memory of a training step by the network's definition, and what reduces it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from deeplab_jax.config import Config, MeshConfig
from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.cost import Layer, layers
from deeplab_jax.models.graph import abstract_variables
from deeplab_jax.train.optimizer import make_optimizer

STAGES = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device.

    Attributes:
      state: parameters, their moving average, what the optimizer keeps of them, statistics.
      gradients: of the parameters; with micro-batches also their sum.
      activations: kept for the backward pass, at the moment of the loss.
    """

    state: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.gradients + self.activations


def estimate(config: Config, mesh: MeshConfig) -> Memory:
    """Estimate the least that a step holds. The backward pass needs a convolution's output twice: before and after its norm.

    Args:
      config: validated.
      mesh: data and spatial devices, none of them 0.
    """
    network_layers = layers(config.model, config.labels.num_classes, config.data.crop_size)
    variables = abstract_variables(DeepLabV3(config.model, config.labels.num_classes))
    parameters = _size(variables["params"])
    average = parameters if config.optim.ema_decay else 0
    moments = _size(jax.eval_shape(make_optimizer(config.optim, 1).init, variables["params"]))
    height, width = config.data.crop_size
    # Logits at the labels' size, float32, and their gradient, of each head.
    logits = (1 + config.model.aux_head) * 2 * 4 * height * width * config.labels.num_classes
    images = config.data.batch_size / mesh.data / config.train.micro_batches / mesh.spatial
    return Memory(
        state=_size(variables) + average + moments,
        gradients=parameters * (2 if config.train.micro_batches > 1 else 1),
        activations=images * (_kept(network_layers, config.model.remat) + logits),
    )


def _size(arrays: Any) -> int:
    """Return the bytes of all arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def _kept(network_layers: list[Layer], remat: tuple[int, ...]) -> int:
    """Return the bytes of an image's features that the backward pass needs, and of the largest block that is recomputed."""
    kept, again = 0, {"": 0}
    for layer in network_layers:
        if layer.stage not in remat or not layer.block:
            kept += 2 * layer.outputs
            continue
        if layer.block not in again:
            kept += layer.inputs  # of the block
            again[layer.block] = 0
        again[layer.block] += 2 * layer.outputs
    return kept + max(again.values())


def remedies(config: Config, mesh: MeshConfig) -> Iterator[tuple[str, float]]:
    """Yield changes that would save memory, and the bytes that each alone saves a device by `estimate`."""
    now = estimate(config, mesh).total
    data, train, model = config.data, config.train, config.model

    def saved(changed: Config, on: MeshConfig = mesh) -> float:
        return now - estimate(changed, on).total

    parts = mesh.data * train.micro_batches
    smaller = data.batch_size // 2 // parts * parts
    if smaller:
        changed = dataclasses.replace(config, data=dataclasses.replace(data, batch_size=smaller))
        yield f"data.batch_size={smaller}", saved(changed)
    more = next((k for k in range(2 * train.micro_batches, data.batch_size + 1) if data.batch_size % (mesh.data * k) == 0), 0)
    if more and not config.loss.ohem_threshold:
        changed = dataclasses.replace(config, train=dataclasses.replace(train, micro_batches=more))
        yield f"train.micro_batches={more}", saved(changed)
    if not set(STAGES) <= set(model.remat):
        changed = dataclasses.replace(config, model=dataclasses.replace(model, remat=STAGES))
        yield "model.remat='(1,2,3,4)'", saved(changed)
    if model.dtype != "bfloat16":
        changed = dataclasses.replace(config, model=dataclasses.replace(model, dtype="bfloat16"))
        yield "model.dtype=bfloat16", saved(changed)
    wider = dataclasses.replace(mesh, spatial=2 * mesh.spatial)
    yield f"mesh.spatial={wider.spatial} on {wider.data * wider.spatial} devices", saved(config, wider)
