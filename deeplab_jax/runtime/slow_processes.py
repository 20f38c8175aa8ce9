"""Find the process that holds up the others in a multi-process run.

All processes finish a step at the same time, because they sum their gradients. So a step's time does not show who was late.
"""

import functools
import socket
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.runtime import hosts

_SLOW_RATIO = 1.5  # how many times longer than the others a process must compute to be slow
_LATE_SHARE = 0.1  # the share of time for which a process must wait for data, beyond the others, to be late
_SECONDS_BETWEEN_CHECKS = 10.0  # a check takes up to 0.1 s


class SlowProcess(NamedTuple):
    """A process that the others wait for.

    Attributes:
      process: The index of the process.
      cause: "devices" or "data".
    """

    process: int
    cause: str


class SlowProcessCheck:
    """Names a slow process, once two checks in a row have found it. It is named only once for each cause.

    All processes must create one at the same time.
    """

    def __init__(self) -> None:
        self._is_alone = jax.process_count() == 1
        self._hosts = [] if self._is_alone else [name.decode() for name in hosts.gather_bytes(socket.gethostname().encode())]
        if not self._is_alone:
            _make_products()  # before the step is compiled and its memory is checked
        self._time = time.monotonic()
        self._last: SlowProcess | None = None
        self._named: set[SlowProcess] = set()

    def __call__(self, data_wait: float) -> str:
        """Return a warning about a slow process, or "". All processes must call this together.

        Args:
          data_wait: The fraction of time that this process has spent waiting for data.
        """
        if self._is_alone or not hosts.is_true_on_any(time.monotonic() - self._time > _SECONDS_BETWEEN_CHECKS):
            return ""
        self._time = time.monotonic()
        waits, seconds = hosts.gather(np.array([data_wait, _time_products()])).T
        slow = find_slow_process(waits.tolist(), seconds.tolist())
        is_new = slow is not None and slow == self._last and slow not in self._named
        self._last = slow
        if slow is None or not is_new:
            return ""
        self._named.add(slow)
        who = f"warning: Process {slow.process}, on host {self._hosts[slow.process]},"
        if slow.cause == "devices":
            ratio = seconds[slow.process] / statistics.median_low(seconds)
            return (
                f"{who} takes {ratio:.1f} times as long to compute as the others, which wait for it. Check what else "
                "runs on that host, and whether its devices are throttled."
            )
        return (
            f"{who} waits for its data {waits[slow.process]:.0%} of the time, and the others wait for it. Check its storage "
            "and its CPU, or raise data.threads."
        )


def find_slow_process(waits: list[float], seconds: list[float]) -> SlowProcess | None:
    """Return the process that the others wait for, if there is one. A process is compared with the median one.

    Args:
      waits: For each process, the fraction of time that it waited for data.
      seconds: For each process, how long it took for the same computation.
    """
    if max(seconds) > _SLOW_RATIO * statistics.median_low(seconds):
        return SlowProcess(seconds.index(max(seconds)), "devices")
    if max(waits) > statistics.median_low(waits) + _LATE_SHARE:
        return SlowProcess(waits.index(max(waits)), "data")
    return None


def _time_products() -> float:
    """Return how long the slowest device of this process takes for a fixed number of matrix products, in seconds."""
    run, matrices = _make_products()
    start = time.perf_counter()
    jax.block_until_ready([run(matrix) for matrix in matrices])
    return time.perf_counter() - start


@functools.cache
def _make_products() -> tuple[jax.stages.Wrapped, list[jax.Array]]:
    """Return a program that multiplies matrices for a few milliseconds, compiled, and its input on each device."""
    is_cpu = jax.default_backend() == "cpu"
    # The matrices stay on the devices, so they must be small.
    size, count, dtype = (1024, 3, jnp.float32) if is_cpu else (2048, 128, jnp.bfloat16)
    run = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, y: y @ x, x))
    matrices = [jax.device_put(jnp.full((size, size), 1 / size, dtype), device) for device in jax.local_devices()]
    jax.block_until_ready([run(matrix) for matrix in matrices])
    return run, matrices
