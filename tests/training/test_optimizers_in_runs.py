"""Runs with each optimizer and with frozen parts: killed and resumed, and on other numbers of devices."""

import jax
import numpy as np
import pytest
from conftest import tiny_config
from trainer import Pixels, Trainer, distance, make_batch

from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.config import Config, OptimConfig
from deeplab_jax.models.graph import abstract_variables
from deeplab_jax.training.begin import create_state, set_up
from deeplab_jax.training.parts import split
from deeplab_jax.training.state import from_trees, state_digest, to_trees

# Pixels compiles in a second, but only the full network has a backbone to freeze and kernels for Muon.
RECIPES = {
    "sgd": {"network": Pixels, "optim": (("schedule", "one_cycle"), ("clip_norm", 0.5))},
    "adamw": {"network": Pixels, "optim": (("name", "adamw"), ("lr", 0.01), ("lr_factors", (("aux_", 10.0),)))},
    "lion": {"network": Pixels, "optim": (("name", "lion"), ("lr", 0.001), ("no_decay", (".*/bias",)))},
    "lamb": {"network": Pixels, "optim": (("name", "lamb"), ("lr", 0.01), ("weight_decay", 0.1))},
    "muon, frozen statistics": {"optim": (("name", "muon"), ("lr", 0.01), ("frozen", (".*/(mean|var)",)))},
    "sgd, frozen stages": {"optim": (("frozen", ("backbone/stem", "backbone/stage[12]")), ("layer_decay", 0.9))},
}


def run(trainer, steps):
    for step in steps:
        trainer.run(make_batch(step))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=[pytest.mark.slow] * ("network" not in settings))
        for name, settings in RECIPES.items()
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(settings, tmp_path):
    straight, resumed = Trainer(**settings), Trainer(**settings)
    run(straight, range(4))
    run(resumed, range(2))
    with Checkpoints(str(tmp_path), Config()) as checkpoints:
        checkpoints.save(to_trees(resumed.state), 2)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), resumed.state)
    with Checkpoints(str(tmp_path), Config()) as checkpoints:
        resumed.put(from_trees(checkpoints.restore(to_trees(abstract))[1]))
    run(resumed, range(2, 4))
    assert state_digest(resumed.get()) == state_digest(straight.get())


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_a_run_is_the_same_on_more_devices(settings, devices):
    single, distributed = Trainer(**settings), Trainer(**settings, data=devices)
    start = single.get().params
    for trainer in (single, distributed):
        run(trainer, range(3))
    change, other = (jax.tree.map(np.subtract, trainer.get().params, start) for trainer in (single, distributed))
    # Float32 sums are computed in a different order on several devices. Lion moves each parameter by the sign of its gradient.
    assert distance(other, change) < 1e-3


@pytest.mark.slow
def test_an_optimizer_that_stores_the_first_parameters_starts_from_pretrained_ones():
    config = tiny_config(optim=OptimConfig(name="cocob", frozen=("backbone",)))
    setup = set_up(config, 4)
    weights = jax.tree.map(lambda x: np.full(x.shape, 5, x.dtype), abstract_variables(setup.model))
    state = create_state(setup, lambda: weights)
    expected = setup.optimizer.init(split(state.params, ("backbone",))[0])
    assert jax.tree.structure(state.opt_state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, expected)
    assert any((x == 5).all() for x in jax.tree.leaves(state.opt_state))
