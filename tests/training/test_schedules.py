import jax.numpy as jnp
import pytest

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.schedules import SCHEDULES, make_schedule


def compute_rates(steps_to_check, **fields):
    lr = make_schedule(OptimConfig(**fields), steps=10)
    return [float(lr(step)) for step in steps_to_check]


def test_poly_matches_hand_computed_values():
    by_hand = [0.01, 0.001 + 0.009 / 4, 0.001, 0.001]
    assert compute_rates((0, 5, 10, 12), lr=0.01, lr_end=0.001, power=2.0) == pytest.approx(by_hand)


def test_cosine_matches_hand_computed_values():
    # The cosine of 0, pi / 2 and pi is 1, 0 and -1. The cosine of 2 pi / 10 is (1 + sqrt 5) / 4.
    by_hand = [0.01, 0.001 + 0.009 * (5 + 5**0.5) / 8, 0.0055, 0.001, 0.001]
    assert compute_rates((0, 2, 5, 10, 12), lr=0.01, lr_end=0.001, schedule="cosine") == pytest.approx(by_hand)


def test_constant_is_the_same_rate_at_every_step():
    assert compute_rates((0, 5, 12), lr=0.25, schedule="constant") == [0.25] * 3


def test_warm_up_scales_the_schedule_linearly():
    by_hand = [0.25, 0.9 * 0.5, 0.8 * 0.75, 0.7, 0.6]
    assert compute_rates(range(5), lr=1.0, power=1.0, warmup_steps=4) == pytest.approx(by_hand)
    assert compute_rates(range(3), lr=1.0, warmup_steps=2, schedule="constant") == pytest.approx([0.5, 1.0, 1.0])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_accepts_a_step_on_the_device(schedule):
    lr = make_schedule(OptimConfig(lr=0.5, schedule=schedule), steps=10)(jnp.asarray(0, jnp.int32))
    assert lr == 0.5
    assert (lr.shape, lr.dtype) == ((), jnp.float32)


def test_an_unknown_schedule_is_reported_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"`optim.schedule` \(='step'\).*Use one of poly, cosine, constant"):
        make_schedule(OptimConfig(schedule="step"), steps=10)
