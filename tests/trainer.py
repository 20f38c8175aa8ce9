"""Train tiny networks on batches that are drawn in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tiny import smallest_model

from deeplab_jax.config import Config, DataConfig, LossConfig, MeshConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3, Outputs
from deeplab_jax.runtime.mesh import make_mesh, place, replicated_sharding
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.state import init_state
from deeplab_jax.training.step import compile_train_step

LABELS = LabelSet("plain", ("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
LR = 0.1


def make_batch(seed=0, n=4, classes=3, height=64):
    """Return a batch of coloured blocks. Each class has its own colour, so a few steps are enough to learn it."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, classes, (n, 2, 1)), np.ones((1, 33, 32))).astype(np.uint8)[:, :height]
    image = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)[label]
    return {"image": image, "label": label, "valid": np.ones(n, bool), "index": np.arange(n)}


class Pixels(DeepLabV3):
    """A model that applies two linear classifiers to every eighth pixel.

    Its training step compiles in a second, and it has no batch statistics that would couple the images.
    """

    @nn.compact
    def __call__(self, x, train):
        self.variable("batch_stats", "none", jnp.zeros, ())
        x = x[:, ::8, ::8]
        return Outputs(nn.Dense(self.num_classes, name="classifier")(x), nn.Dense(self.num_classes, name="aux_classifier")(x))


@functools.cache
def compile_trainer(
    data=1,
    spatial=1,
    height=64,
    micro_batches=1,
    network=DeepLabV3,
    loss=(),
    optim=(),
    photometric=False,
    mixing=(),
    **switches,
):
    """Return (mesh, initial state, training step) for a tiny network.

    The results are cached, because these tests spend most of their time compiling.
    """
    mesh = make_mesh(MeshConfig(data, spatial))
    config = Config(
        labels=LABELS,
        model=smallest_model(**{"output_stride": 8, "aux_head": True, "dropout": 0.0, "aux_dropout": 0.0} | switches),
        data=DataConfig(crop_size=(height, 32), photometric=photometric, **dict(mixing)),
        optim=OptimConfig(**{"lr": LR, "weight_decay": 0.0, "ema_decay": 0.15} | dict(optim)),
        train=TrainConfig(micro_batches=micro_batches),
        loss=LossConfig(**dict(loss)),
    )
    model, optimizer = network(config.model, 3), make_optimizer(config.optim, 100)
    init = functools.partial(init_state, model, optimizer, 0, ema=True, frozen=config.optim.frozen)
    state = jax.jit(init, out_shardings=replicated_sharding(mesh))()
    return mesh, jax.device_get(state), compile_train_step(mesh, config=config, model=model, optimizer=optimizer)


class Trainer:
    """A fresh training state and its compiled training step."""

    def __init__(self, **settings):
        self.mesh, state, self.step = compile_trainer(**settings)
        self.put(state)

    def put(self, state):
        self.state = jax.device_put(state, replicated_sharding(self.mesh))

    def get(self):
        return jax.device_get(self.state)

    def run(self, batch):
        self.state, scalars = self.step(self.state, place(batch, self.mesh, 8))
        return {name: float(value) for name, value in scalars.items()}


def distance(a, b):
    """Return |a - b| / |b| over all leaves."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)
