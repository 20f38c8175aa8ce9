import jax
import numpy as np
import pytest
from conftest import tiny_model

from deeplab_jax.config import MeshConfig, OptimConfig
from deeplab_jax.models import DeepLabV3
from deeplab_jax.sharding import make_mesh, place, replicated
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.state import init_state
from deeplab_jax.train.step import compile_train_step


def batch(seed=0, n=4, classes=3):
    """Coloured blocks whose colour is their class: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, classes, (n, 2, 1)), np.ones((1, 32, 32))).astype(np.uint8)
    image = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)[label]
    return {"image": image, "label": label, "valid": np.ones(n, bool), "index": np.arange(n)}


class Trainer:
    """A tiny network, its state and its compiled step on a mesh."""

    def __init__(self, mesh_config, lr=0.1, steps=100):
        self.mesh = make_mesh(mesh_config)
        self.model = DeepLabV3(tiny_model(output_stride=8, aux_head=True), 3)
        optimizer = make_optimizer(OptimConfig(lr=lr, weight_decay=0.0), steps)
        self.state = jax.jit(lambda: init_state(self.model, optimizer, 0), out_shardings=replicated(self.mesh))()
        self.step = compile_train_step(self.mesh, model=self.model, optimizer=optimizer, aux_weight=0.4, seed=0)

    def run(self, batch):
        self.state, scalars = self.step(self.state, place(batch, self.mesh))
        return {name: float(value) for name, value in scalars.items()}


@pytest.fixture(scope="module")
def on_one_device():
    return Trainer(MeshConfig(data=1))


def test_one_batch_is_learnt_to_near_zero_loss_with_one_compilation(on_one_device):
    fixed = batch()
    rows = [on_one_device.run(fixed) for _ in range(100)]
    assert rows[0]["loss"] > 1.0  # about 1.4 log 3, of both heads
    assert rows[-1]["loss"] < 0.1
    assert rows[-1]["accuracy"] > 0.97
    assert int(on_one_device.state.step) == 100
    assert on_one_device.step._cache_size() == 1


def test_nothing_to_learn_from_gives_finite_parameters(on_one_device):
    for empty in ({"label": np.full((4, 64, 32), 255, np.uint8)}, {"valid": np.zeros(4, bool)}):
        row = on_one_device.run(batch() | empty)
        assert row["loss"] == 0
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(on_one_device.state))


@pytest.mark.parametrize("mesh", [MeshConfig(data=4), MeshConfig(data=2, spatial=2)])
def test_the_same_run_on_four_devices(mesh):
    alone, together = Trainer(MeshConfig(data=1)), Trainer(mesh)
    for seed in range(3):
        a, b = alone.run(batch(seed)), together.run(batch(seed))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    difference, size = 0.0, 0.0
    for a, b in zip(jax.tree.leaves(alone.state.params), jax.tree.leaves(together.state.params), strict=True):
        difference += float(np.sum(np.square(np.asarray(a) - np.asarray(b))))
        size += float(np.sum(np.square(np.asarray(a))))
    assert np.sqrt(difference / size) < 1e-4  # float32, sums in another order through three steps
