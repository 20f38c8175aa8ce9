"""Measure training speed and MFU, the fraction of the devices' peak rate that a run achieves."""

import contextlib
import time
from collections.abc import Iterator

from jax.sharding import Mesh

from deeplab_jax.config import Config
from deeplab_jax.models.cost import training_flops
from deeplab_jax.runtime.accelerators import mesh_peak_rate


def ideal_step_seconds(config: Config, mesh: Mesh) -> tuple[float, str]:
    """Compute how long a step would take if all devices ran at their peak rate.

    Returns:
      The time in seconds, and a log line that gives the FLOPs, the peak rate and where that rate comes from.
    """
    flops = training_flops(config)
    peak, source = mesh_peak_rate(mesh, config.model.dtype)
    line = f"Each step takes {flops / 1e12:.3g} TFLOPs. MFU is relative to a peak rate of {peak / 1e12:.3g} TFLOP/s ({source})."
    # A CPU's peak rate is measured with a matrix product, whereas Winograd convolutions need fewer than half of the FLOPs
    # counted here.
    return flops / peak, line + " On a CPU, MFU can exceed 100%." * (mesh.devices.flat[0].platform == "cpu")


class Meter:
    """Measures training speed and the fraction of time spent waiting for data since the last restart.

    Args:
      step: The current step of the run.
      batch_size: The global batch size.
      ideal_step_seconds: How long a step would take at the devices' peak rate, in seconds.
    """

    def __init__(self, step: int, batch_size: int, ideal_step_seconds: float) -> None:
        self._batch_size, self._ideal_step_seconds = batch_size, ideal_step_seconds
        self.restart(step)

    def restart(self, step: int) -> None:
        """Restart the measurement at `step`."""
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in the `with` block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def speed(self, step: int) -> dict[str, float]:
        """Return the mean speed since the last restart.

        "mfu" is the ideal step time divided by the measured one, and "data_wait" is the fraction of time spent waiting for
        data.
        """
        seconds, count = time.perf_counter() - self._start, step - self._step
        return {
            "images_per_second": count * self._batch_size / seconds,
            "seconds_per_step": seconds / count,
            "mfu": count * self._ideal_step_seconds / seconds,
            "data_wait": self._waited / seconds,
        }
