import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.optimizer import apply_where, make_optimizer, prepare_gradient
from deeplab_jax.training.parts import compute_lr_factor

ADAMW = OptimConfig(name="adamw", schedule="cosine", lr=0.1, weight_decay=0.05, options=(("b2", 0.95),))
CONFIGS = (OptimConfig(), ADAMW, OptimConfig(name="lamb"), OptimConfig(name="muon"))


def apply_updates(config, params, grads, applies=None):
    """Return the parameters after each update, and the final optimizer state. `applies` selects the updates to apply."""
    optimizer = make_optimizer(config, steps=10)
    state, after = optimizer.init(params), []
    for update, should_apply in zip(grads, applies or [True] * len(grads), strict=True):
        gradient = prepare_gradient(config, update, params, optax.tree.norm(update))
        params, state = apply_where(jnp.asarray(should_apply), optimizer, gradient, state, params)
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


@pytest.mark.parametrize(
    "config", [OptimConfig(), ADAMW, OptimConfig(name="lamb"), OptimConfig(name="muon")], ids=lambda config: config.name
)
def test_a_skipped_update_changes_only_the_schedule_counter(config):
    """The learning rate depends on the step number, which also counts skipped steps."""
    bad, params = make_kernel(jnp.nan), make_kernel(2.0)
    after, state = apply_updates(config, params, [make_kernel(1.0), bad, bad], [True, False, False])
    expected_params, expected_state = apply_updates(config, params, [make_kernel(1.0)])
    jax.tree.map(np.testing.assert_array_equal, after[1:], expected_params * 2)
    assert isinstance(state[0][-1], optax.ScaleByScheduleState)
    assert state[0][-1].count == 3
    jax.tree.map(np.testing.assert_array_equal, state[0][:-1], expected_state[0][:-1])


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "rmsprop", "muon"])
@pytest.mark.parametrize(
    ("patterns", "fixed"),
    [((), set()), ((".*/(scale|bias)",), {"conv/bias", "bn/scale"}), (("bn", "conv/k"), {"bn/scale", "conv/kernel"})],
)
def test_patterns_select_the_parameters_without_weight_decay(name, patterns, fixed):
    config = OptimConfig(name=name, weight_decay=0.1, no_decay=patterns)
    params = {"conv": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}, "bn": {"scale": jnp.ones(1)}}
    (after,), _ = apply_updates(config, params, [jax.tree.map(jnp.zeros_like, params)])
    arrays = {f"{layer}/{name}": x for layer, part in after.items() for name, x in part.items()}
    assert {path for path, x in arrays.items() if x == 1} == fixed


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_the_structure_of_the_state_does_not_depend_on_the_fields(name):
    """Resuming a run after changing one of these fields requires the same state structure."""
    configs = [
        OptimConfig(
            name=name, no_decay=no_decay, weight_decay=decay, schedule=schedule, momentum=momentum, lr_factors=lr_factors
        )
        for no_decay, decay, schedule, momentum, lr_factors in (
            ((), 0.1, "poly", 0.9, ()),
            ((".*/bias",), 0.1, "cosine", 0.9 if name == "adamw" else 0.0, (("conv", 0.1),)),
            ((), 0.0, "one_cycle", 0.9, ()),
        )
    ]
    trees = [jax.tree.structure(make_optimizer(config, 10).init(make_kernel(1.0))) for config in configs]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_part_has_its_own_learning_rate(name):
    config = OptimConfig(name=name, lr=0.1, lr_factors=(("aux_", 10.0),))
    params = {"aux_conv": {"kernel": jnp.zeros(1)}, "classifier": {"kernel": jnp.zeros(1)}}
    (after,), _ = apply_updates(config, params, [jax.tree.map(jnp.ones_like, params)])
    np.testing.assert_allclose(after["aux_conv"]["kernel"], 10 * after["classifier"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(after["classifier"]["kernel"], -0.1, rtol=1e-5)  # in float32, 1 - b2 has few significant digits


def test_the_last_pattern_that_matches_decides_the_rate():
    config = OptimConfig(lr_factors=(("backbone", 0.5), ("backbone/stage4", 2.0), (".*/bias", 3.0)))
    factors = {path: compute_lr_factor(path, config, [(0, 0), (4, 1)]) for path in (
        "backbone/stem_conv/kernel", "backbone/stage4_block1/conv1/kernel", "backbone/stem_conv/bias", "aspp/fuse/kernel"
    )}  # fmt: skip
    assert list(factors.values()) == [0.5, 2.0, 3.0, 1.0]


def test_layer_decay_shrinks_the_rate_by_one_factor_per_block():
    """The factors are decay ** (blocks + 1 - layer), as in BEiT's LayerDecayValueAssigner with the heads as its last layer."""
    config = OptimConfig(lr=1.0, weight_decay=0.0, momentum=0.0, layer_decay=0.5, lr_factors=(("backbone/stage2", 3.0),))
    names = ("stem_conv", "stage1_block1", "stage1_block2", "stage2_block1", "stage2_conv")
    params = {"backbone": {name: {"kernel": jnp.zeros(1)} for name in names}, "aspp": {"kernel": jnp.zeros(1)}}
    (after,), _ = apply_updates(config, params, [jax.tree.map(jnp.ones_like, params)])
    np.testing.assert_allclose([-after["backbone"][name]["kernel"][0] for name in names], [1 / 32, 1 / 16, 1 / 8, 0.75, 1.5])
    assert after["aspp"]["kernel"] == -1


@pytest.mark.parametrize("norm", [0.5, 20.0])
def test_clipping_comes_before_the_penalty_and_momentum(norm):
    config = OptimConfig(lr=1.0, momentum=0.0, weight_decay=0.5, clip_norm=2.0, schedule="constant")
    gradient = make_kernel(0.6 * norm, 0.8 * norm)
    (after,), _ = apply_updates(config, make_kernel(1.0, 1.0), [gradient])
    kept = min(1, 2 / norm)
    np.testing.assert_allclose(after["conv"]["kernel"], [0.5 - 0.6 * norm * kept, 0.5 - 0.8 * norm * kept], rtol=1e-5)


def test_muon_updates_hidden_kernels_as_orthogonal_matrices():
    """The update of a kernel with rows [height * width * inputs] and a column per output has singular values near 1.

    Muon's five Newton-Schulz steps leave them between 0.7 and 1.2.
    """
    rng = np.random.default_rng(0)
    shape, config = (3, 3, 4, 6), OptimConfig(name="muon", lr=1.0, schedule="constant", weight_decay=0.0)
    names = ("stage1_block1", "stem_conv")
    params = {"backbone": {name: {"kernel": jnp.zeros(shape)} for name in names}}
    gradient = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    (after,), _ = apply_updates(config, params, [gradient])
    hidden, first = (np.asarray(after["backbone"][name]["kernel"]).reshape(36, 6) for name in names)
    values = np.linalg.svd(hidden, compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.3
    # In its first step, Adam moves every value equally far.
    np.testing.assert_allclose(np.abs(first), np.abs(first[0, 0]), rtol=1e-4)


@pytest.mark.parametrize("name", ["lion", "lamb", "rmsprop", "adafactor", "novograd", "radam", "yogi", "lars", "muon"])
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
        (
            {"name": "sdg"},
            r"`optim.name` \(='sdg'\) is not an optax optimizer that can be used here\. Choose one",
        ),
        ({"name": "GradientTransformation"}, "`optim.name`"),
        (
            {"options": (("b1", 0.5),)},
            r"`optim.options` \(=\(\('b1', 0.5\),\)\).*optax.sgd does not accept 'b1' here\. .*nesterov",
        ),
        ({"options": (("learning_rate", 0.5),)}, "`optim.options`"),
        ({"options": (("mask", 1),), "name": "adamw"}, "`optim.options`"),
        ({"options": (("momentum", 0.5),), "momentum": 0.8}, r"`optim.momentum` \(=0.8\).*optim.options sets momentum=0.5"),
        ({"schedule": "step"}, "`optim.schedule`"),
        ({"name": "adamw", "momentum": 0.5}, r"`optim.momentum` \(=0.5\) has no effect.*optax.adamw"),
        ({"name": "schedule_free_sgd"}, r"`optim.name`.*evaluation would need other parameters"),
        ({"name": "noisy_sgd"}, "is not an optax optimizer that can be used here"),
        ({"name": "prodigy"}, r"`optim.name`.*would not follow the schedule"),
        ({"name": "adamw", "options": (("mu_dtype", 0.5),)}, r"`optim.options` \(=\(\('mu_dtype', 0.5\),\)\) cannot be used"),
        ({"name": "radam", "options": (("b2", 1),)}, r"`optim.options`.*with optax.radam \(float division by zero\)"),
        ({"name": "muon", "options": (("ns_coeffs", 3),)}, r"`optim.options`.*with optax.muon"),
        ({"name": "muon", "options": (("ns_steps", 0.5),)}, r"`optim.options`.*with optax.muon"),
    ],
)
def test_a_wrong_field_gives_a_one_line_error(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_optimizer(OptimConfig(**fields), steps=10)
    assert "\n" not in str(error.value)
