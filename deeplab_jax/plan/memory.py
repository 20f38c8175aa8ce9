"""Estimate a training step's memory use from the network definition, and suggest ways to reduce it."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from deeplab_jax.config import Config, MeshConfig, smallest_batch
from deeplab_jax.models import DeepLabV3
from deeplab_jax.models.cost import Layer, layers
from deeplab_jax.models.graph import abstract_variables
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.parts import Tree, list_paths, split

STAGES = (1, 2, 3, 4)


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """The memory needed by a training step on one device, in bytes.

    Attributes:
      state: The parameters, their moving average, the optimizer state and the BatchNorm statistics.
      gradients: The parameter gradients, plus their running sum if micro-batches are used.
      activations: All values held for the backward pass when the loss is computed.
    """

    state: float
    gradients: float
    activations: float

    @property
    def total(self) -> float:
        """The total memory, in bytes."""
        return self.state + self.gradients + self.activations


def estimate(config: Config, mesh: MeshConfig) -> Memory:
    """Estimate the memory that a training step needs on each device.

    Every convolution output counts twice, because the backward pass needs its values before and after BatchNorm. A program can
    need more, for temporary values, or less, if it does not hold all gradients or activations at the same time.

    Args:
      config: A validated config.
      mesh: The number of devices along the "data" and "spatial" axes. Neither can be 0.
    """
    network_layers = layers(config.model, config.labels.num_classes, config.data.crop_size)
    variables = abstract_variables(DeepLabV3(config.model, config.labels.num_classes))
    trained, _ = split(variables["params"], config.optim.frozen)
    average = _count_bytes(trained) if config.optim.ema_decay else 0
    moments = _count_bytes(jax.eval_shape(make_optimizer(config.optim, 1).init, trained))
    height, width = config.data.crop_size
    # Each head needs float32 logits at label resolution, plus their gradient.
    logits = (1 + config.model.aux_head) * 2 * 4 * height * width * config.labels.num_classes
    images = config.data.batch_size / mesh.data / config.train.micro_batches / mesh.spatial
    return Memory(
        state=_count_bytes(variables) + average + moments,
        gradients=_count_bytes(trained) * (2 if config.train.micro_batches > 1 else 1),
        activations=images * (_activation_bytes(_drop_frozen(network_layers, trained), config.model.remat) + logits),
    )


def _drop_frozen(network_layers: list[Layer], trained: Tree) -> list[Layer]:
    """Return the layers from the first trained one on. The backward pass needs no values of the layers before it."""
    names = {path.rpartition("/")[0] for path in list_paths(trained)}
    first = next(i for i, layer in enumerate(network_layers) if layer.name in names)
    return network_layers[first:]


def _count_bytes(arrays: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))


def _activation_bytes(network_layers: list[Layer], remat: tuple[int, ...]) -> int:
    """Return the activation memory, in bytes per image, needed for the backward pass.

    This is the memory for all stored activations, plus those recomputed in the largest block.

    Args:
      network_layers: The network's layers.
      remat: The backbone stages to recompute. In these stages, only block inputs are stored.
    """
    stored, recomputed = 0, {"": 0}
    for layer in network_layers:
        if layer.stage not in remat or not layer.block:
            stored += 2 * layer.outputs
            continue
        if layer.block not in recomputed:
            stored += layer.inputs  # the block's first layer takes the block's input
            recomputed[layer.block] = 0
        recomputed[layer.block] += 2 * layer.outputs
    return stored + max(recomputed.values())


def suggest_savings(config: Config, mesh: MeshConfig) -> Iterator[tuple[str, float]]:
    """Yield config changes that save memory.

    Yields:
      A (change, bytes) tuple for each change, where bytes is what it alone saves per device according to `estimate`.
    """
    current = estimate(config, mesh).total
    data, train, model = config.data, config.train, config.model

    def saved(changed: Config, on: MeshConfig = mesh) -> float:
        return current - estimate(changed, on).total

    parts = math.lcm(mesh.data * train.micro_batches, smallest_batch(data))
    smaller = data.batch_size // 2 // parts * parts
    if smaller >= 2 * train.micro_batches:  # BatchNorm needs two images at a time, also below
        changed = dataclasses.replace(config, data=dataclasses.replace(data, batch_size=smaller))
        yield f"data.batch_size={smaller}", saved(changed)
    counts = range(2 * train.micro_batches, data.batch_size // 2 + 1)
    more = next((k for k in counts if data.batch_size % (mesh.data * k) == 0), 0)
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
