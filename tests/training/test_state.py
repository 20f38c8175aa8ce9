import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplab_jax.models import DeepLabV3
from deeplab_jax.training.optimizer import make_optimizer
from deeplab_jax.training.state import TrainState, init_state, make_key, replace_variables, state_digest

CONFIG = tiny_config()


def make_initial_state(ema):
    optimizer = make_optimizer(CONFIG.optim, 10)
    return jax.jit(lambda: init_state(DeepLabV3(CONFIG.model, 19), optimizer, 0, ema))()


@pytest.fixture(scope="module")
def averaged_state():
    return make_initial_state(ema=True)


def make_small_state(**fields):
    state = TrainState(
        step=jnp.asarray(3, jnp.int32),
        params={"b": {"kernel": jnp.asarray([[1.0, 2.0]])}, "a": jnp.asarray([0.5], jnp.bfloat16)},
        batch_stats={},
        opt_state=(),
        skipped=jnp.asarray(2, jnp.int32),
    )
    return state.replace(**fields)


def test_the_state_has_an_average_only_on_request(averaged_state):
    plain = make_initial_state(ema=False)
    assert plain.ema_params is None
    jax.tree.map(np.testing.assert_array_equal, averaged_state.params, plain.params)
    jax.tree.map(np.testing.assert_array_equal, averaged_state.ema_params, averaged_state.params)


def test_replaced_variables_also_replace_the_average_and_share_no_memory(averaged_state):
    variables = {"params": {"classifier": {"bias": jnp.arange(19.0)}}, "batch_stats": {}}
    state = replace_variables(averaged_state, variables)
    for params in (state.params, state.ema_params):
        np.testing.assert_array_equal(params["classifier"]["bias"], np.arange(19))
        np.testing.assert_array_equal(params["classifier"]["kernel"], averaged_state.params["classifier"]["kernel"])
    arrays = (state.params, state.ema_params, variables["params"])
    assert len({tree["classifier"]["bias"].unsafe_buffer_pointer() for tree in arrays}) == 3


def test_the_digest_covers_names_dtypes_shapes_and_bytes():
    by_hand = hashlib.sha256()
    by_hand.update(b"params/a bfloat16 [1]\n" + bytes.fromhex("003f"))  # 0.5 is 0x3f00 in bfloat16, stored little-endian
    by_hand.update(b"params/b/kernel float32 [1, 2]\n" + np.asarray([1, 2], "<f4").tobytes())
    by_hand.update(b"skipped int32 []\n" + bytes([2, 0, 0, 0]))
    by_hand.update(b"step int32 []\n" + bytes([3, 0, 0, 0]))
    assert state_digest(make_small_state()) == by_hand.hexdigest()


@pytest.mark.parametrize(
    "fields",
    [
        {"step": jnp.asarray(4, jnp.int32)},
        {"skipped": jnp.asarray(3, jnp.int32)},
        {"batch_stats": {"mean": jnp.zeros(1)}},
        {"opt_state": (jnp.zeros(1),)},
        {"ema_params": {"a": jnp.asarray([0.5], jnp.bfloat16)}},
        {"params": {"b": {"kernel": jnp.asarray([[1.0], [2.0]])}, "a": jnp.asarray([0.5], jnp.bfloat16)}},
        {"params": {"b": {"bias": jnp.asarray([[1.0, 2.0]])}, "a": jnp.asarray([0.5], jnp.bfloat16)}},
        {"params": {"b": {"kernel": jnp.asarray([[1.0, 2.0]])}, "a": jnp.asarray([0.5], jnp.float16)}},
        {"params": {"b": {"kernel": jnp.asarray([[1.0, -2.0]])}, "a": jnp.asarray([0.5], jnp.bfloat16)}},
    ],
)
def test_the_digest_differs_for_any_other_state(fields):
    assert state_digest(make_small_state(**fields)) != state_digest(make_small_state())


def test_the_digest_does_not_depend_on_the_placement_of_arrays(averaged_state):
    mesh = Mesh(np.array(jax.devices()), "data")
    rows = NamedSharding(mesh, PartitionSpec("data"))
    digest = state_digest(averaged_state)
    assert state_digest(jax.device_get(averaged_state)) == digest
    assert state_digest(jax.device_put(averaged_state, NamedSharding(mesh, PartitionSpec()))) == digest
    split = jax.tree.map(lambda x: jax.device_put(x, rows) if x.ndim and x.shape[0] % 4 == 0 else x, averaged_state)
    assert state_digest(split) == digest


def test_settings_of_jax_do_not_change_the_initial_parameters(averaged_state):
    with jax.default_prng_impl("rbg"), jax.threefry_partitionable(False), jax.enable_x64(True):
        state = make_initial_state(ema=True)
    jax.tree.map(np.testing.assert_array_equal, state.params, averaged_state.params)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_the_key_of_a_seed_is_that_of_jax(seed):
    np.testing.assert_array_equal(jax.random.key_data(make_key(seed)), [0, seed])
    np.testing.assert_array_equal(jax.random.key_data(jax.random.key(seed)), [0, seed])
