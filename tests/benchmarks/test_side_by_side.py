"""Tests for the benchmark harness, using sides that compute almost nothing."""

import argparse
import functools

import numpy as np
import pytest
import side_by_side

ARGS = argparse.Namespace(rounds=2, warm_up=1, repeat=1, one_at_a_time=False)


def make_side(args, *, value):
    """Return a side whose result is `value`, or raise `value` if it is an exception."""
    if isinstance(value, Exception):
        raise value
    return side_by_side.Side(lambda: {"loss": np.array(value)}, lambda: None, lambda: None, {"numpy": np.__version__})


def measure_values(args=ARGS, **values):
    sides = {name: functools.partial(make_side, value=value) for name, value in values.items()}
    return side_by_side.measure(sides, args, {"loss": 1e-3})


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_sides_that_agree_are_timed_in_every_round(one_at_a_time):
    results = measure_values(argparse.Namespace(**vars(ARGS) | {"one_at_a_time": one_at_a_time}), ours=1.0, theirs=1.0005)
    for entry in results.values():
        assert len(entry["seconds"]) == len(entry["peak"]) == 2
        assert min(entry["peak"]) > 1e6


def test_a_side_that_fails_or_does_different_work_is_not_measured():
    results = measure_values(ours=1.0, other=1.1, nothing=float("nan"), short=[1.0, 1.0], broken=ValueError("no such device"))
    assert "seconds" in results.pop("ours")
    assert "not the same work" in results["other"]["failed"]
    assert "not the same work" in results["nothing"]["failed"]
    assert "not the same work" in results["short"]["failed"]
    assert "no such device" in results["broken"]["failed"]


@pytest.mark.parametrize("word", ["0", "-1", "x"])
def test_a_count_below_1_is_reported_in_one_line(word, capsys):
    parser = argparse.ArgumentParser()
    side_by_side.add_flags(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", word])
    assert f"argument --rounds: invalid positive value: '{word}'" in capsys.readouterr().err.splitlines()[-1]


def test_the_error_is_relative_or_the_share_of_labels_that_differ():
    assert side_by_side.relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == pytest.approx(0.1)
    assert side_by_side.relative_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
