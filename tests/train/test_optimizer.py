import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.config import OptimConfig
from deeplab_jax.train.optimizer import make_optimizer, poly_schedule


def test_poly_schedule_against_values_worked_out_by_hand():
    lr = poly_schedule(OptimConfig(lr=0.01, lr_end=0.001, power=2.0), steps=10)
    assert [float(lr(s)) for s in (0, 5, 10, 12)] == pytest.approx([0.01, 0.001 + 0.009 / 4, 0.001, 0.001])


def test_warm_up_rises_linearly_under_the_poly_curve():
    lr = poly_schedule(OptimConfig(lr=1.0, power=1.0, warmup_steps=4), steps=10)
    assert [float(lr(s)) for s in range(5)] == pytest.approx([0.25, 0.9 * 0.5, 0.8 * 0.75, 0.7, 0.6])


def test_two_steps_of_sgd_against_values_worked_out_by_hand():
    # PyTorch's order: decay joins the gradient, then momentum, then the rate. Constant rate 0.1 (power tiny over many steps).
    optimizer = make_optimizer(OptimConfig(lr=0.1, power=1e-9, momentum=0.5, weight_decay=0.1), steps=1000)
    params = {"kernel": jnp.array([2.0])}
    state = optimizer.init(params)
    for expected in (2 - 0.1 * (1 + 0.2), 1.88 - 0.1 * (0.5 * 1.2 + 1 + 0.188)):
        updates, state = optimizer.update({"kernel": jnp.array([1.0])}, state, params)
        params = {"kernel": params["kernel"] + updates["kernel"]}
        np.testing.assert_allclose(params["kernel"], [expected], rtol=1e-6)


def test_an_update_that_does_not_apply_leaves_the_momentum_and_counts():
    optimizer = make_optimizer(OptimConfig(weight_decay=0.1), steps=10)
    params = {"kernel": jnp.array([2.0])}
    _, state = optimizer.update({"kernel": jnp.array([1.0])}, optimizer.init(params), params)
    _, after = optimizer.update({"kernel": jnp.array([jnp.nan])}, state, params, applies=jnp.array(False))
    (momentum,), (expected,) = ([x for x in jax.tree.leaves(tree) if x.dtype == jnp.float32] for tree in (after, state))
    np.testing.assert_array_equal(momentum, expected)
    assert [int(x) for x in jax.tree.leaves(after) if x.dtype == jnp.int32] == [2]


@pytest.mark.parametrize("decays", [True, False])
def test_norm_and_bias_decay_by_switch(decays):
    optimizer = make_optimizer(OptimConfig(weight_decay=0.1, decay_norm_and_bias=decays), steps=10)
    params = {"conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}, "bn": {"scale": jnp.ones(1)}}
    zeros = {"conv": {"kernel": jnp.zeros(1), "bias": jnp.zeros(1)}, "bn": {"scale": jnp.zeros(1)}}
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert updates["conv"]["kernel"] < 0
    assert (updates["conv"]["bias"] < 0) == decays
    assert (updates["bn"]["scale"] < 0) == decays


def test_the_auxiliary_head_has_a_rate_of_its_own():
    optimizer = make_optimizer(OptimConfig(lr=0.1, aux_lr_factor=10.0), steps=10)
    params = {"aux_conv": {"kernel": jnp.zeros(1)}, "classifier": {"kernel": jnp.zeros(1)}}
    ones = {"aux_conv": {"kernel": jnp.ones(1)}, "classifier": {"kernel": jnp.ones(1)}}
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    np.testing.assert_allclose(updates["aux_conv"]["kernel"], [-1.0], rtol=1e-6)
    np.testing.assert_allclose(updates["classifier"]["kernel"], [-0.1], rtol=1e-6)
