"""Tests for the check for slow processes."""

import numpy as np
import pytest

from deeplab_jax.runtime import hosts, slow_processes
from deeplab_jax.runtime.slow_processes import SlowProcess, SlowProcessCheck, find_slow_process


@pytest.mark.parametrize(
    ("waits", "seconds", "slow"),
    [
        ([0.01, 0.02, 0.4, 0.0], [1.0, 1.1, 1.0, 1.2], SlowProcess(2, "data")),
        ([0.0, 0.12], [1.0, 1.0], SlowProcess(1, "data")),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.6], SlowProcess(2, "devices")),
        ([0.0, 0.5], [1.0, 1.6], SlowProcess(1, "devices")),  # what slows the devices also slows the reading of data
        ([0.6, 0.61], [1.0, 1.0], None),  # all wait for the storage that they share
        ([0.0, 0.05], [1.0, 1.4], None),
        ([0.9], [5.0], None),
    ],
)
def test_the_process_that_the_others_wait_for_is_found(waits, seconds, slow):
    assert find_slow_process(waits, seconds) == slow


@pytest.fixture
def check(monkeypatch):
    """Return a check in process 0 of three. Process 1 needs twice as long for its products."""
    monkeypatch.setattr(slow_processes.jax, "process_count", lambda: 3)
    monkeypatch.setattr(hosts, "gather_bytes", lambda text: [b"node1", b"node2", b"node3"])
    monkeypatch.setattr(hosts, "gather", lambda row: np.array([row, row * np.array([1, 2]), row]))
    monkeypatch.setattr(hosts, "is_true_on_any", lambda flag: flag)
    monkeypatch.setattr(slow_processes, "_time_products", lambda: 0.1)
    monkeypatch.setattr(slow_processes, "_SECONDS_BETWEEN_CHECKS", -1.0)
    return SlowProcessCheck()


def test_a_process_is_named_once_and_only_if_two_checks_in_a_row_find_it(check):
    lines = [check(0.0) for _ in range(4)]
    assert lines == [
        "",
        "warning: Process 1, on host node2, takes 2.0 times as long to compute as the others, which wait for it. "
        "Check what else runs on that host, and whether its devices are throttled.",
        "",
        "",
    ]


def test_a_process_that_waits_for_data_is_named(check, monkeypatch):
    monkeypatch.setattr(hosts, "gather", lambda row: np.array([row, row, row + np.array([0.5, 0])]))
    assert [check(0.0) for _ in range(2)][1] == (
        "warning: Process 2, on host node3, waits for its data 50% of the time, and the others wait for it. "
        "Check its storage and its CPU, or raise data.threads."
    )


def test_a_short_interval_is_not_checked(check, monkeypatch):
    monkeypatch.setattr(slow_processes, "_SECONDS_BETWEEN_CHECKS", 1000.0)
    assert [check(0.0) for _ in range(3)] == ["", "", ""]


def test_a_single_process_is_never_slow(monkeypatch):
    def fail(*_):
        raise AssertionError("a single process must not exchange anything")

    for name in ("gather", "gather_bytes", "is_true_on_any"):
        monkeypatch.setattr(hosts, name, fail)
    assert SlowProcessCheck()(0.9) == ""


def test_the_products_take_time_on_every_device():
    assert 0 < slow_processes._time_products() < 30
