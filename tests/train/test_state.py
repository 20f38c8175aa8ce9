import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplab_jax.models import DeepLabV3
from deeplab_jax.train.optimizer import make_optimizer
from deeplab_jax.train.state import TrainState, init_state, state_digest, with_variables

CONFIG = tiny_config()


def initial(ema):
    optimizer = make_optimizer(CONFIG.optim, 10)
    return jax.jit(lambda: init_state(DeepLabV3(CONFIG.model, 19), optimizer, 0, ema))()


@pytest.fixture(scope="module")
def averaged():
    return initial(ema=True)


def small_state(**fields):
    state = TrainState(
        step=jnp.asarray(3, jnp.int32),
        params={"b": {"kernel": jnp.asarray([[1.0, 2.0]])}, "a": jnp.asarray([0.5], jnp.bfloat16)},
        batch_stats={},
        opt_state=(),
        skipped=jnp.asarray(2, jnp.int32),
    )
    return state.replace(**fields)


def test_there_is_an_average_where_one_is_asked_for(averaged):
    plain = initial(ema=False)
    assert plain.ema_params is None
    jax.tree.map(np.testing.assert_array_equal, averaged.params, plain.params)
    jax.tree.map(np.testing.assert_array_equal, averaged.ema_params, averaged.params)


def test_given_variables_are_the_average_too_and_share_no_memory_with_it(averaged):
    given = {"params": {"classifier": {"bias": jnp.arange(19.0)}}, "batch_stats": {}}
    state = with_variables(averaged, given)
    for params in (state.params, state.ema_params):
        np.testing.assert_array_equal(params["classifier"]["bias"], np.arange(19))
        np.testing.assert_array_equal(params["classifier"]["kernel"], averaged.params["classifier"]["kernel"])
    arrays = (state.params, state.ema_params, given["params"])
    assert len({tree["classifier"]["bias"].unsafe_buffer_pointer() for tree in arrays}) == 3


def test_the_digest_is_that_of_names_types_shapes_and_bytes():
    by_hand = hashlib.sha256()
    by_hand.update(b"params/a bfloat16 [1]\n" + bytes.fromhex("003f"))  # the upper half of float32's 0x3f000000
    by_hand.update(b"params/b/kernel float32 [1, 2]\n" + np.asarray([1, 2], "<f4").tobytes())
    by_hand.update(b"skipped int32 []\n" + bytes([2, 0, 0, 0]))
    by_hand.update(b"step int32 []\n" + bytes([3, 0, 0, 0]))
    assert state_digest(small_state()) == by_hand.hexdigest()


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
def test_the_digest_tells_any_other_state(fields):
    assert state_digest(small_state(**fields)) != state_digest(small_state())


def test_the_digest_does_not_know_where_arrays_are(averaged):
    mesh = Mesh(np.array(jax.devices()), "data")
    rows = NamedSharding(mesh, PartitionSpec("data"))
    digest = state_digest(averaged)
    assert state_digest(jax.device_get(averaged)) == digest
    assert state_digest(jax.device_put(averaged, NamedSharding(mesh, PartitionSpec()))) == digest
    split = jax.tree.map(lambda x: jax.device_put(x, rows) if x.ndim and x.shape[0] % 4 == 0 else x, averaged)
    assert state_digest(split) == digest
