"""How fast a run is, and what share of the devices' peak rate that takes."""

import contextlib
import time
from collections.abc import Iterator

from jax.sharding import Mesh

from deeplab_jax.config import Config
from deeplab_jax.models.cost import training_flops
from deeplab_jax.runtime.accelerators import mesh_peak_rate


def least_seconds(config: Config, mesh: Mesh) -> tuple[float, str]:
    """Seconds of a step whose counted FLOPs all devices do at their peak rate; and a line on how that was found."""
    flops = training_flops(config)
    peak, source = mesh_peak_rate(mesh, config.model.dtype)
    return flops / peak, f"MFU: {flops / 1e12:.3g} TFLOPs a step, {peak / 1e12:.3g} TFLOP/s at best ({source})"


class Meter:
    """Speed since the last restart, and the share of the time that went into waiting for data.

    Args:
      step: the run's, now.
      batch_size: of the global batch.
      least_seconds: of a step at the devices' peak rate.
    """

    def __init__(self, step: int, batch_size: int, least_seconds: float) -> None:
        self._batch_size, self._least_seconds = batch_size, least_seconds
        self.restart(step)

    def restart(self, step: int) -> None:
        """Restart the measurement at this step."""
        self._step, self._start, self._waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the enclosed time as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def speed(self, step: int) -> dict[str, float]:
        """Return means over the steps since the restart; "mfu" is the least time of a step over the time it took."""
        seconds, count = time.perf_counter() - self._start, step - self._step
        return {
            "images_per_second": count * self._batch_size / seconds,
            "seconds_per_step": seconds / count,
            "mfu": count * self._least_seconds / seconds,
            "data_wait": self._waited / seconds,
        }
