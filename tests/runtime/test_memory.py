import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.errors import OutOfMemoryError
from deeplab_jax.runtime import memory

CPU = jax.devices("cpu")[0]


class Device:
    platform, device_kind = "gpu", "NVIDIA L4"

    def __init__(self, **stats):
        self.memory_stats = lambda: stats or None

    def __str__(self):
        return "cuda:0"


def make_program(temporary, output, alias=0):
    sizes = {"temp_size_in_bytes": temporary, "output_size_in_bytes": output, "alias_size_in_bytes": alias}
    return types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(**sizes), as_text=str)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("std::bad_alloc"), "This machine ran out of memory."),
        # NumPy's error for an array of 2**60 bytes.
        (MemoryError("Unable to allocate 1.00 GiB for an array"), "This machine ran out of memory allocating 1.0 GiB."),
        (OSError(12, "Cannot allocate memory"), "This machine ran out of memory."),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 274877906944 bytes."),
            "This machine ran out of memory allocating 256.0 GiB.",
        ),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Attempting to reserve 12.50G at the bottom of memory."),
            "This machine ran out of memory allocating 12.5 GiB.",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: Failed: CUBLAS_STATUS_ALLOC_FAILED"),
            "This machine ran out of memory.",
        ),
    ],
)
def test_errors_of_every_library_are_described(error, sentence):
    assert memory.describe_out_of_memory(error) == sentence


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),  # only the types that libraries raise are trusted
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)"),
        OSError(28, "No space left on device"),
    ],
)
def test_other_errors_are_left_alone(error):
    assert memory.describe_out_of_memory(error) is None
    with pytest.raises(type(error)), memory.report_out_of_memory("Lower it."):
        raise error


def test_causes_are_examined():
    error = ValueError("a handler failed")
    error.__cause__ = MemoryError()
    assert memory.describe_out_of_memory(error) == "This machine ran out of memory."


def test_tensorflow_errors_are_recognised_without_tensorflow():
    error = type("ResourceExhaustedError", (Exception,), {})("OOM when allocating tensor with shape[40000,40000]")
    assert memory.describe_out_of_memory(error) == "This machine ran out of memory while reading the data."


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1073741824 bytes.")
    with pytest.raises(OutOfMemoryError) as raised, memory.report_out_of_memory("Lower eval.batch_size."):
        raise error
    assert str(raised.value) == "The GPU cuda:0 (NVIDIA L4) ran out of memory allocating 1.0 GiB. Lower eval.batch_size."


def test_a_real_allocation_that_fails_is_described():
    with pytest.raises(OutOfMemoryError, match=r"^This machine ran out of memory allocating 1048576\.0 GiB\. Lower it\.$"):  # noqa: SIM117
        with memory.report_out_of_memory("Lower it."):
            jax.device_put(np.broadcast_to(np.uint8(0), (1 << 25, 1 << 25)))


def test_the_need_of_a_program_is_its_results_and_temporary_values():
    # The result has 4 * 1024 * 1024 bytes, and sorting keeps no more than a few copies.
    program = jax.jit(lambda x: jnp.sort(x * 2, axis=0)).lower(jax.ShapeDtypeStruct((1024, 1024), np.float32)).compile()
    assert 4 << 20 <= memory.needed_bytes(program) <= 16 << 20
    assert memory.needed_bytes(make_program(5, 7, 3)) == 9
    assert memory.needed_bytes(types.SimpleNamespace(memory_analysis=lambda: None)) == 0


def test_programs_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 3 << 30)
    memory.require_memory(make_program(2 << 30, 1 << 30), [CPU], "An image", "Cut it.")
    message = r"^An image needs about 4\.0 GiB of memory, but this machine has only 3\.0 GiB available\. Cut it\.$"
    with pytest.raises(OutOfMemoryError, match=message):
        memory.require_memory(make_program(1 << 30, 1 << 30), [CPU, CPU], "An image", "Cut it.")
    message = r"but the GPU cuda:0 \(NVIDIA L4\) has only 3\.0 GiB available"
    with pytest.raises(OutOfMemoryError, match=message):
        memory.require_memory(make_program(3 << 30, 1 << 30), [Device(), Device()], "An image", "Cut it.")


def test_nothing_is_refused_where_the_free_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert memory.require_memory(make_program(1 << 60, 0), [CPU], "An image", "Cut it.") is None


def test_the_free_memory_of_a_device_is_its_limit_less_what_is_in_use():
    assert memory.free_bytes(Device(bytes_limit=100, bytes_in_use=30)) == 70
    assert memory.free_bytes(Device()) is None
    assert memory.free_bytes(CPU) is None or memory.free_bytes(CPU) > 0


def test_available_memory_includes_swap(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:       8000 kB\nMemAvailable:       5 kB\nSwapFree:       2 kB\n")
    assert memory._available_bytes(str(file)) == 7 * 1024
    assert memory._available_bytes(str(tmp_path / "missing")) is None


def make_group(folder, limit, usage, stat, version):
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, value in zip((*names, "memory.stat"), (limit, usage, stat), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_the_smallest_limit_of_the_control_groups_applies(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("3:cpu,cpuacct:/\n0::/job/step\n")
    root = tmp_path / "v2"
    make_group(root / "job", 1000, 400, "inactive_file 50", 2)
    make_group(root / "job" / "step", "max", 400, "inactive_file 50", 2)
    assert memory._control_group_bytes(str(root), str(membership)) == 650  # the limit of the group above applies
    membership.write_text("4:memory:/docker/abc\n")
    root = tmp_path / "v1"
    make_group(root / "memory", 1000, 100, "inactive_file 1\ntotal_inactive_file 20", 1)
    assert memory._control_group_bytes(str(root), str(membership)) == 920  # a container sees its group as the root
    make_group(root / "memory", 9223372036854771712, 100, "total_inactive_file 20", 1)
    assert memory._control_group_bytes(str(root), str(membership)) is None
    assert memory._control_group_bytes(str(root), str(tmp_path / "missing")) is None


def test_the_space_that_a_convolution_reserves_is_counted():
    # 1 * 10 * 20 positions, 7 * 7 * 3 inputs for each of them, 4 bytes.
    convolve = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(x, w, (2, 2), [(3, 3), (3, 3)], dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, 20, 40, 3), (7, 7, 3, 8))]
    assert memory.largest_convolution_bytes(convolve.lower(*shapes).compile()) == 10 * 20 * 7 * 7 * 3 * 4
    assert memory.largest_convolution_bytes(jax.jit(jnp.sin).lower(1.0).compile()) == 0


def test_the_largest_allocation_depends_on_the_overcommit_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_address_space_bytes", lambda: None)
    (tmp_path / "meminfo").write_text("MemTotal:       50 kB\nSwapTotal:       2 kB\nCommitLimit:    30 kB\n")
    for policy, limit in (("0", 52 * 1024), ("1", None), ("2", 30 * 1024)):
        (tmp_path / "policy").write_text(f"{policy}\n")
        assert memory._allocation_limit(str(tmp_path / "meminfo"), str(tmp_path / "policy")) == limit
    assert memory._allocation_limit(str(tmp_path / "missing"), str(tmp_path / "policy")) is None


def test_a_program_whose_convolutions_reserve_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 8 << 30)
    monkeypatch.setattr(memory, "_allocation_limit", lambda: 9 << 30)
    monkeypatch.setattr(memory, "largest_convolution_bytes", lambda program: 10 << 30)
    with pytest.raises(OutOfMemoryError, match=r"needs about 12\.0 GiB of memory, but .* only 9\.0 GiB"):
        memory.require_memory(make_program(1 << 30, 1 << 30), [CPU], "An image", "Cut it.")


def test_the_limit_of_a_cpu_is_that_of_its_container(monkeypatch):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(memory, "_address_space_bytes", lambda: None)
    for limit, expected in ((None, physical), (2**28, 2**28), (2**60, physical)):
        monkeypatch.setattr(memory, "_control_group_bytes", lambda limit=limit: limit)
        assert memory.memory_limit(CPU) == expected
    assert memory.memory_limit(Device(bytes_limit=100, bytes_in_use=30)) == 100
