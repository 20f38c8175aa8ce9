import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from deeplab_jax.config import Config, DataConfig, MeshConfig, OptimConfig, TrainConfig
from deeplab_jax.labels import LabelSet
from deeplab_jax.models import DeepLabV3
from deeplab_jax.sharding import make_mesh, place, replicated
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.state import init_state
from deeplab_jax.train.step import compile_train_step

LABELS = LabelSet("plain", ("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def batch(seed=0, n=4, classes=3, height=64):
    """Coloured blocks whose colour is their class: learnable in a few steps."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, classes, (n, 2, 1)), np.ones((1, 33, 32))).astype(np.uint8)[:, :height]
    image = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)[label]
    return {"image": image, "label": label, "valid": np.ones(n, bool), "index": np.arange(n)}


class Trainer:
    """A tiny network, its state and its compiled step on a mesh."""

    def __init__(self, mesh_config, lr=0.1, ema_decay=0.0, height=64, micro_batches=1, **switches):
        self.mesh = make_mesh(mesh_config)
        config = Config(
            labels=LABELS,
            model=tiny_model(output_stride=8, aux_head=True, **switches),
            data=DataConfig(crop_size=(height, 32)),
            optim=OptimConfig(lr=lr, weight_decay=0.0, aux_weight=0.4, ema_decay=ema_decay),
            train=TrainConfig(micro_batches=micro_batches),
        )
        model, optimizer = DeepLabV3(config.model, 3), make_optimizer(config.optim, 100)
        self.state = jax.jit(lambda: init_state(model, optimizer, 0, ema_decay > 0), out_shardings=replicated(self.mesh))()
        self.step = compile_train_step(self.mesh, config=config, model=model, optimizer=optimizer)

    def run(self, batch):
        self.state, scalars = self.step(self.state, place(batch, self.mesh, 8))
        return {name: float(value) for name, value in scalars.items()}


def distance(a, b):
    """|a - b| / |b| over all leaves."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


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


def assert_only_counters_moved(before, after):
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new, old + 1 if old.dtype == np.int32 else old)


def test_a_batch_without_a_pixel_that_counts_changes_nothing_but_the_step(on_one_device):
    on_one_device.run(batch())  # momentum and statistics that would move on by themselves
    for empty in ({"label": np.full((4, 64, 32), 255, np.uint8)}, {"valid": np.zeros(4, bool)}):
        before = jax.device_get(on_one_device.state)
        row = on_one_device.run(batch() | empty)
        assert row["loss"] == row["grad_norm"] == 0
        assert_only_counters_moved(before, jax.device_get(on_one_device.state))


def test_an_update_that_is_not_finite_is_not_applied(on_one_device):
    good = jax.device_get(on_one_device.state)
    # A single weight: the forward pass already overflows.
    kernel = good.params["classifier"]["kernel"].copy()
    kernel[0, 0, 0, 0] = np.inf
    params = good.params | {"classifier": good.params["classifier"] | {"kernel": kernel}}
    on_one_device.state = jax.device_put(good.replace(params=params), replicated(on_one_device.mesh))
    row = on_one_device.run(batch())
    assert not np.isfinite([row["loss"], row["grad_norm"]]).all()
    assert_only_counters_moved(good.replace(params=params), jax.device_get(on_one_device.state))
    on_one_device.state = jax.device_put(good, replicated(on_one_device.mesh))


def test_the_norm_is_that_of_the_whole_gradient():
    trainer = Trainer(MeshConfig(data=1))
    before = jax.device_get(trainer.state.params)
    row = trainer.run(batch())
    moved = jax.tree.map(
        lambda old, new: (old - new) / 0.1, before, jax.device_get(trainer.state.params)
    )  # the first step's lr
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(moved)))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-3)  # differences of float32 parameters


@pytest.mark.parametrize(
    ("mesh", "height"), [(MeshConfig(data=4), 64), (MeshConfig(data=2, spatial=2), 64), (MeshConfig(data=1, spatial=4), 65)]
)
def test_the_same_run_on_four_devices(mesh, height):
    alone, together = Trainer(MeshConfig(data=1), height=height), Trainer(mesh, height=height)
    for seed in range(3):
        a, b = alone.run(batch(seed, height=height)), together.run(batch(seed, height=height))
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert distance(together.state.params, alone.state.params) < 1e-4  # float32, sums in another order through three steps


def test_rematerialised_stages_change_nothing():
    plain, again = Trainer(MeshConfig(data=1)), Trainer(MeshConfig(data=1), remat=(1, 2, 3, 4))
    assert jax.tree.structure(plain.state) == jax.tree.structure(again.state)
    assert plain.run(batch())["loss"] == pytest.approx(again.run(batch())["loss"], rel=1e-6)
    assert distance(again.state.params, plain.state.params) < 1e-6


@pytest.mark.parametrize("devices", [1, 2])
def test_micro_batches_of_equal_statistics_are_the_whole_batch(devices):
    twice = {name: x.repeat(2, 0) for name, x in batch(n=4).items()}  # part r % 2 of both is the same
    # What counts differs between the parts, so that a normaliser a part would show.
    twice["label"][::2, 10:] = 255
    twice["valid"][3] = False
    whole = Trainer(MeshConfig(data=1), dropout=0.0, aux_dropout=0.0)
    parts = Trainer(MeshConfig(data=devices), dropout=0.0, aux_dropout=0.0, micro_batches=2)
    a, b = whole.run(twice), parts.run(twice)
    assert a == pytest.approx(b, rel=1e-5)
    assert distance(parts.state.params, whole.state.params) < 1e-6
    means = [[stats["mean"] for stats in (state.batch_stats["aspp"]["fuse"]["bn"],)] for state in (parts.state, whole.state)]
    assert distance(*means) < 1e-5


def test_micro_batches_do_not_depend_on_the_devices():
    alone, together = (Trainer(MeshConfig(data=data), micro_batches=2) for data in (1, 4))
    rows = batch(n=8)
    assert alone.run(rows) == pytest.approx(together.run(rows), rel=1e-4)
    assert distance(together.state.params, alone.state.params) < 1e-5


def test_the_moving_average_by_hand():
    trainer = Trainer(MeshConfig(data=1), ema_decay=0.15)
    seen = [jax.device_get(trainer.state.params)]
    for seed in range(2):
        trainer.run(batch(seed))
        seen.append(jax.device_get(trainer.state.params))
    # Decays min(0.15, 1 / 10) and min(0.15, 2 / 11).
    expected = jax.tree.map(lambda a, b, c: 0.15 * (0.1 * a + 0.9 * b) + 0.85 * c, *seen)
    assert distance(trainer.state.ema_params, expected) < 1e-6
    empty = batch() | {"valid": np.zeros(4, bool)}
    before = jax.device_get(trainer.state.ema_params)
    trainer.run(empty)
    assert distance(trainer.state.ema_params, before) == 0


def test_bfloat16_learns():
    trainer = Trainer(MeshConfig(data=2, spatial=2), dtype="bfloat16")
    rows = [trainer.run(batch()) for _ in range(30)]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(trainer.state))
