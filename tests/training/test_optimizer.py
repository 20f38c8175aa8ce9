import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.optimizer import add_penalty, apply_where, make_optimizer

ADAMW = OptimConfig(name="adamw", schedule="cosine", lr=0.1, weight_decay=0.05, options=(("b2", 0.95),))


def apply_updates(config, params, grads, applies=None):
    """Return the parameters after each update, and the final optimizer state. `applies` selects the updates to apply."""
    optimizer = make_optimizer(config, steps=10)
    state, after = optimizer.init(params), []
    for update, should_apply in zip(grads, applies or [True] * len(grads), strict=True):
        params, state = apply_where(jnp.asarray(should_apply), optimizer, add_penalty(config, update, params), state, params)
        after.append(params)
    return after, state


def make_kernel(*values):
    return {"conv": {"kernel": jnp.array(values)}}


def test_two_sgd_steps_match_hand_computed_values():
    # PyTorch's order: add weight decay to the gradient, then apply momentum, then the learning rate.
    config = OptimConfig(lr=0.1, schedule="constant", momentum=0.5, weight_decay=0.1)
    after, _ = apply_updates(config, make_kernel(2.0), [make_kernel(1.0)] * 2)
    by_hand = [2 - 0.1 * (1 + 0.2), 1.88 - 0.1 * (0.5 * 1.2 + 1 + 0.188)]
    np.testing.assert_allclose([params["conv"]["kernel"][0] for params in after], by_hand, rtol=1e-6)


def test_five_adamw_steps_with_cosine_decay_match_the_paper():
    """Compare with Algorithm 2 in 1711.05101, in float64. Our learning rate includes the paper's schedule multiplier."""
    params = make_kernel(2.0, -3.0, 0.5)
    after, _ = apply_updates(ADAMW, params, [jax.tree.map(lambda p, k=k: jnp.sin(k + p), params) for k in range(5)])
    p = start = np.array([2.0, -3.0, 0.5])
    m = v = np.zeros(3)
    for t in range(1, 6):
        g = np.sin(t - 1 + start)
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        lr = 0.1 * (1 + np.cos(np.pi * (t - 1) / 10)) / 2
        p = p - lr * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + 0.05 * p)
        np.testing.assert_allclose(after[t - 1]["conv"]["kernel"], p, rtol=1e-6)


@pytest.mark.parametrize("config", [OptimConfig(), ADAMW, OptimConfig(name="lamb")], ids=lambda config: config.name)
def test_a_skipped_update_changes_only_the_schedule_counter(config):
    """The learning rate depends on the step number, which also counts skipped steps."""
    bad, params = make_kernel(jnp.nan), make_kernel(2.0)
    after, state = apply_updates(config, params, [make_kernel(1.0), bad, bad], [True, False, False])
    expected_params, expected_state = apply_updates(config, params, [make_kernel(1.0)])
    jax.tree.map(np.testing.assert_array_equal, after[1:], expected_params * 2)
    assert isinstance(state[0][-1], optax.ScaleByScheduleState)
    assert state[0][-1].count == 3
    jax.tree.map(np.testing.assert_array_equal, state[0][:-1], expected_state[0][:-1])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("decays", [True, False])
def test_decay_norm_and_bias_selects_the_parameters_that_decay(name, decays):
    config = OptimConfig(name=name, weight_decay=0.1, decay_norm_and_bias=decays)
    params = {"conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}, "bn": {"scale": jnp.ones(1)}}
    (after,), _ = apply_updates(config, params, [jax.tree.map(jnp.zeros_like, params)])
    assert after["conv"]["kernel"] < 1
    assert (after["conv"]["bias"] < 1) == decays
    assert (after["bn"]["scale"] < 1) == decays


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_the_structure_of_the_state_does_not_depend_on_the_fields(name):
    """Resuming a run after changing one of these fields requires the same state structure."""
    configs = [
        OptimConfig(name=name, decay_norm_and_bias=decays, weight_decay=decay, schedule=schedule, momentum=momentum)
        for decays, decay, schedule, momentum in (
            (True, 0.1, "poly", 0.9),
            (False, 0.1, "cosine", 0.0),
            (True, 0.0, "poly", 0.9),
        )
    ]
    trees = [jax.tree.structure(make_optimizer(config, 10).init(make_kernel(1.0))) for config in configs]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_auxiliary_head_has_its_own_learning_rate(name):
    config = OptimConfig(name=name, lr=0.1, aux_lr_factor=10.0)
    params = {"aux_conv": {"kernel": jnp.zeros(1)}, "classifier": {"kernel": jnp.zeros(1)}}
    (after,), _ = apply_updates(config, params, [jax.tree.map(jnp.ones_like, params)])
    np.testing.assert_allclose(after["aux_conv"]["kernel"], 10 * after["classifier"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(after["classifier"]["kernel"], -0.1, rtol=1e-5)  # in float32, 1 - b2 has few significant digits


@pytest.mark.parametrize("name", ["lion", "lamb", "rmsprop", "adafactor", "novograd", "radam", "yogi", "lars"])
def test_other_optax_optimizers_work_without_extra_code(name):
    (after,), _ = apply_updates(OptimConfig(name=name), make_kernel(2.0), [make_kernel(1.0)])
    assert after["conv"]["kernel"] < 2


def test_options_use_the_optax_names():
    (plain,), (nesterov,) = (
        apply_updates(
            OptimConfig(lr=0.1, weight_decay=0.0, momentum=0.5, options=options), make_kernel(2.0), [make_kernel(1.0)]
        )[0]
        for options in ((), (("nesterov", True),))
    )
    assert plain["conv"]["kernel"][0] == pytest.approx(2 - 0.1)
    assert nesterov["conv"]["kernel"][0] == pytest.approx(2 - 0.1 * (1 + 0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sdg"}, r"`optim.name` \(='sdg'\) is not an optax optimizer\. Choose one, such as sgd, adamw"),
        ({"name": "GradientTransformation"}, "`optim.name`"),
        (
            {"options": (("b1", 0.5),)},
            r"`optim.options` \(=\(\('b1', 0.5\),\)\).*optax.sgd does not accept 'b1' here\. .*nesterov",
        ),
        ({"options": (("learning_rate", 0.5),)}, "`optim.options`"),
        ({"options": (("mask", 1),), "name": "adamw"}, "`optim.options`"),
        ({"schedule": "step"}, "`optim.schedule`"),
    ],
)
def test_a_wrong_field_gives_a_one_line_error(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_optimizer(OptimConfig(**fields), steps=10)
    assert "\n" not in str(error.value)
