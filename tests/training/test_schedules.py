import math

import jax.numpy as jnp
import pytest

from deeplab_jax.config import OptimConfig
from deeplab_jax.errors import ConfigError
from deeplab_jax.training.schedules import SCHEDULES, check_schedule, describe_long_warmup, make_schedule


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


def test_one_cycle_matches_hand_computed_values():
    """The peak is at step 0.3 * 10 - 1 and the end at step 9, as in torch.optim.lr_scheduler.OneCycleLR."""
    middle = 0.1 + 0.9 * (1 + math.cos(math.pi * 3 / 7)) / 2
    by_hand = [1 / 25, 13 / 25, 1.0, middle, 0.1, 0.1]
    assert compute_rates((0, 1, 2, 5, 9, 12), lr=1.0, lr_end=0.1, schedule="one_cycle") == pytest.approx(by_hand)


def test_piecewise_multiplies_the_rate_at_each_milestone():
    rates = compute_rates((0, 5, 6, 8, 9), lr=1.0, schedule="piecewise", milestones=(0.6, 0.9), gamma=0.5)
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.25]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "cosine", "power": 2.0}, r"`optim.power` \(=2.0\) has no effect.*poly"),
        ({"schedule": "constant", "lr_end": 0.001}, "`optim.lr_end`"),
        ({"milestones": (0.5,)}, r"`optim.milestones`.*piecewise"),
        ({"schedule": "piecewise"}, r"`optim.milestones` \(=\(\)\) is empty"),
    ],
)
def test_a_field_that_the_schedule_does_not_read_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        check_schedule(OptimConfig(**fields))


def test_constant_is_the_same_rate_at_every_step():
    assert compute_rates((0, 5, 12), lr=0.25, schedule="constant") == [0.25] * 3


def test_warm_up_scales_the_schedule_linearly():
    by_hand = [0.25, 0.9 * 0.5, 0.8 * 0.75, 0.7, 0.6]
    assert compute_rates(range(5), lr=1.0, power=1.0, warmup_steps=4) == pytest.approx(by_hand)
    assert compute_rates(range(3), lr=1.0, warmup_steps=2, schedule="constant") == pytest.approx([0.5, 1.0, 1.0])


def test_a_warm_up_that_is_longer_than_the_run_is_reported():
    config = OptimConfig(lr=0.5, warmup_steps=20)
    assert describe_long_warmup(config, 20) == ""
    assert "`optim.warmup_steps` (=20) is more than the 19 steps of the run" in describe_long_warmup(config, 19)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_accepts_a_step_on_the_device(schedule):
    lr = make_schedule(OptimConfig(lr=0.5, schedule=schedule), steps=10)(jnp.asarray(0, jnp.int32))
    assert lr == pytest.approx(0.5 / 25 if schedule == "one_cycle" else 0.5)
    assert (lr.shape, lr.dtype) == ((), jnp.float32)


def test_an_unknown_schedule_is_reported_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"`optim.schedule` \(='step'\).*Use one of poly, cosine, one_cycle, piecewise"):
        make_schedule(OptimConfig(schedule="step"), steps=10)
