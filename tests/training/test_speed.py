import pytest
from conftest import tiny_config

from deeplab_jax.config import MeshConfig
from deeplab_jax.models.cost import training_flops
from deeplab_jax.runtime import accelerators
from deeplab_jax.runtime.mesh import make_mesh
from deeplab_jax.training import speed


def test_mfu_is_the_ideal_step_time_divided_by_the_measured_step_time(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    meter = speed.Meter(3, batch_size=8, ideal_step_seconds=0.5)
    with meter.waiting():
        now[0] += 1.0
    now[0] += 3.0
    assert meter.speed(5) == {"images_per_second": 4.0, "seconds_per_step": 2.0, "mfu": 0.25, "data_wait": 0.25}
    meter.restart(5)
    now[0] += 1.0
    assert meter.speed(6)["mfu"] == 0.5


def test_the_ideal_step_time_is_the_counted_flops_divided_by_the_peak_rate(monkeypatch):
    monkeypatch.setattr(accelerators, "matmul_rate", lambda dtype: 1e9)
    config = tiny_config()
    seconds, line = speed.ideal_step_seconds(config, make_mesh(MeshConfig()))
    assert seconds == pytest.approx(training_flops(config) / 1e9)
    assert "peak rate of 0.001 TFLOP/s (measured)" in line
