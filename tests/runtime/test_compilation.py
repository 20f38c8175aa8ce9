import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest
from platformdirs import macos, unix, windows

from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.layers import add_relu, he_normal_fan_out
from deeplab_jax.runtime import compilation

HITS = """
import jax, jax.numpy as jnp
from deeplab_jax.runtime.compilation import keep_programs
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
keep_programs()
print(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.arange(64.0).reshape(8, 8) / 64).item(), len(hits))
"""


@pytest.fixture
def caches(monkeypatch, tmp_path):
    """The user's cache folder of a process in which nobody told JAX where to keep programs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", told)


def test_programs_are_kept_in_the_users_cache_folder(caches):
    compilation.keep_programs()
    folder = compilation.default_folder()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_relative_to(caches / "deeplab_jax" / "xla")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(folder.iterdir())


def test_the_second_process_finds_what_the_first_one_compiled(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env = kept | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    words = [sys.executable, "-W", "error", "-c", HITS]
    first, second = (subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.split() for _ in "12")
    assert first[0] == second[0]
    assert first[1] == "0"
    assert int(second[1]) > 0
    files = list(tmp_path.glob("deeplab_jax/xla/*-threads/*-cache"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    damaged = subprocess.run([sys.executable, "-c", HITS], env=env, capture_output=True, text=True, check=True)
    assert damaged.stdout.split() == first
    assert "Error reading persistent compilation cache entry" in damaged.stderr


@pytest.mark.parametrize("told", ["", "/elsewhere"])
def test_a_folder_that_the_user_named_stays(told, caches):
    jax.config.update("jax_compilation_cache_dir", told)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir == told
    assert not list(caches.iterdir())


def test_nothing_is_kept_where_that_is_off_or_several_processes_would_have_to_agree(caches, monkeypatch):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compilation.keep_programs()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(caches.iterdir())


def test_a_folder_that_cannot_be_written_is_no_error(caches, monkeypatch):
    (caches / "deeplab_jax").write_text("a file")
    compilation.keep_programs()
    (caches / "deeplab_jax").unlink()

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    with monkeypatch.context() as patch:  # root may write everywhere
        patch.setattr(compilation.tempfile, "TemporaryFile", refuse)
        compilation.keep_programs()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))  # of a user that the system lacks
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
    ("system", "name"), [(unix.Unix, ".cache"), (macos.MacOS, "Library/Caches"), (windows.Windows, "AppData/Local")]
)
def test_each_system_has_its_place_for_caches(system, name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by its specification
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(windows, "get_win_folder", lambda name: str(tmp_path / "AppData" / "Local"))
    monkeypatch.setattr(platformdirs, "PlatformDirs", system)
    assert compilation.default_folder().is_relative_to(tmp_path / name / "deeplab_jax" / "xla")


def test_programs_for_another_number_of_threads_are_others(monkeypatch):
    folder = compilation.default_folder()
    monkeypatch.setenv("NPROC", "77")
    assert compilation.default_folder() != folder


def test_what_was_not_used_for_longest_is_forgotten(tmp_path):
    (tmp_path / "inner").mkdir()
    for age, name in enumerate(("new", "inner/read", "old", "older")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    os.utime(tmp_path / "inner" / "read", (1001, 0))
    compilation.forget_oldest(tmp_path, 300)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["new", "old", "read"]
    compilation.forget_oldest(tmp_path, 100)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["read"]


def test_parameters_are_the_same_however_hard_the_compiler_works(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # of conftest.py
    options = compilation.quick_options("cpu")
    assert options["xla_backend_optimization_level"] < 3
    jitted = jax.jit(lambda key: [he_normal_fan_out(key, shape, jnp.float32) for shape in ((7, 7, 3, 16), (1, 1, 16, 65))])
    lowered = jitted.lower(jax.random.key(3))
    quick, full = (lowered.compile(o)(jax.random.key(3)) for o in (options, {"xla_backend_optimization_level": 3}))
    for a, b in zip(quick, full, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_level_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert compilation.quick_options("cpu") == {}
    monkeypatch.delenv("XLA_FLAGS")
    assert compilation.quick_options("gpu") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of other systems is not told")
def test_memory_that_was_freed_is_given_back():
    code = """
import ctypes, os
from deeplab_jax.runtime.compilation import trim_memory
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if not hasattr(libc, "malloc_trim"): print(1 << 30)
blocks = [libc.malloc(10_000) for _ in range(5000)]
for block in blocks: ctypes.memset(block, 1, 10_000)
libc.malloc(10_000)  # above them: the heap cannot shrink by itself
for block in blocks: libc.free(block)
before = resident(); trim_memory(); print(before - resident())
"""
    given_back = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(given_back.split()[0]) > 40e6


def test_a_large_program_holds_less_with_the_lean_options(monkeypatch):
    def loss(x, kernels):
        for kernel in kernels:
            x = add_relu(conv2d(x, kernel, rate=2, form="winograd"), x)
        return jnp.sum(x)

    def temporaries(options):
        jitted = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=options)
        program = compilation.compile_program(jitted, jnp.ones((1, 32, 32, 64)), jnp.ones((2, 3, 3, 64, 64)))
        return program.memory_analysis().temp_size_in_bytes

    lean = compilation.lean_options("cpu")
    assert len(lean) == 2
    assert temporaries(lean) < 0.9 * temporaries({})
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --xla_disable_hlo_passes=nothing")
    assert list(compilation.lean_options("cpu")) == ["xla_cpu_scheduler_type"]
    assert compilation.lean_options("gpu") == {}


def test_programs_not_used_for_longest_are_let_go():
    programs, made = compilation.Programs(limit=2), []

    def get(key):
        programs.get(key, lambda: made.append(key) or [key])

    for key in "abacaba":
        get(key)
    assert made == list("abcb")
