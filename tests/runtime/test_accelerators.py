import pytest

from deeplab_jax.config import MeshConfig
from deeplab_jax.runtime import accelerators
from deeplab_jax.runtime.mesh import make_mesh


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA L4", 121e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_supported_devices_have_the_rate_of_their_data_sheet(kind, rate):
    assert accelerators.peak_rate(kind, "bfloat16") == (rate, "its data sheet")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("cpu", "bfloat16"), ("NVIDIA L40S", "bfloat16"), ("NVIDIA H100 PCIe", "bfloat16"), ("NVIDIA H200", "float32")],
)
def test_other_devices_and_dtypes_are_measured(kind, dtype, monkeypatch):
    monkeypatch.setattr(accelerators, "matmul_rate", lambda dtype: 7.0)
    assert accelerators.peak_rate(kind, dtype) == (7.0, "measured")


def test_the_cpu_devices_of_a_process_share_its_cores():
    mesh = make_mesh(MeshConfig(data=2, spatial=2))
    rate, source = accelerators.mesh_peak_rate(mesh, "float32")
    assert (rate, source) == (accelerators.matmul_rate("float32"), "measured")
    assert 1e8 < rate < 1e15


def test_the_bandwidth_of_this_machine_is_plausible():
    assert 1e8 < accelerators.copy_rate() < 1e14
