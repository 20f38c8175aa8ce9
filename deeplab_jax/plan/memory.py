"""Estimate the memory of a training step from the network's definition, and suggest ways to reduce it."""

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
    """The memory that a training step needs on one device, in bytes.

    Attributes:
      state: Parameters, their moving average, the optimizer state and the BatchNorm statistics.
      gradients: The gradients of the parameters. With micro-batches, this includes their running sum.
      activations: Everything that is held for the backward pass when the loss is computed.
    """

    state: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        """The sum of all parts, in bytes."""
        return self.state + self.gradients + self.activations


def estimate(config: Config, mesh: MeshConfig) -> Memory:
    """Estimate a lower bound of the memory that a training step needs on each device.

    Every convolution output counts twice, because the backward pass needs it before and after BatchNorm.

    Args:
      config: A validated config.
      mesh: The numbers of devices along the "data" and "spatial" axes. Neither may be 0.
    """
    network_layers = layers(config.model, config.labels.num_classes, config.data.crop_size)
    variables = abstract_variables(DeepLabV3(config.model, config.labels.num_classes))
    parameters = _count_bytes(variables["params"])
    average = parameters if config.optim.ema_decay else 0
    moments = _count_bytes(jax.eval_shape(make_optimizer(config.optim, 1).init, variables["params"]))
    height, width = config.data.crop_size
    # Each head has float32 logits at the size of the labels, and their gradient.
    logits = (1 + config.model.aux_head) * 2 * 4 * height * width * config.labels.num_classes
    images = config.data.batch_size / mesh.data / config.train.micro_batches / mesh.spatial
    return Memory(
        state=_count_bytes(variables) + average + moments,
        gradients=parameters * (2 if config.train.micro_batches > 1 else 1),
        activations=images * (_activation_bytes(network_layers, config.model.remat) + logits),
    )


def _count_bytes(arrays: Any) -> int:
    """Return the total size of all arrays, in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def _activation_bytes(network_layers: list[Layer], remat: tuple[int, ...]) -> int:
    """Return the bytes of activations that one image needs for the backward pass.

    This is the sum of the stored activations and those of the largest block that is recomputed.

    Args:
      network_layers: The layers of the network.
      remat: The backbone stages that are recomputed. Of their blocks, only the inputs are stored.
    """
    stored, recomputed = 0, {"": 0}
    for layer in network_layers:
        if layer.stage not in remat or not layer.block:
            stored += 2 * layer.outputs
            continue
        if layer.block not in recomputed:
            stored += layer.inputs  # the first layer's input is the block's input
            recomputed[layer.block] = 0
        recomputed[layer.block] += 2 * layer.outputs
    return stored + max(recomputed.values())


def suggest_savings(config: Config, mesh: MeshConfig) -> Iterator[tuple[str, float]]:
    """Yield config changes that save memory.

    Yields:
      (change, bytes that this change saves on each device by itself, according to `estimate`).
    """
    current = estimate(config, mesh).total
    data, train, model = config.data, config.train, config.model

    def saved(changed: Config, on: MeshConfig = mesh) -> float:
        return current - estimate(changed, on).total

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
