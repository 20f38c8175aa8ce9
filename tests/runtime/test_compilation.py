import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import platformdirs
import pytest
from platformdirs import macos, unix, windows

from deeplab_jax.models.convolution import conv2d
from deeplab_jax.models.layers import add_relu, he_normal_fan_out
from deeplab_jax.runtime import compilation

COUNT_CACHE_HITS = """
import jax, jax.numpy as jnp
from deeplab_jax.runtime.compilation import enable_compilation_cache
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
enable_compilation_cache()
print(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.arange(64.0).reshape(8, 8) / 64).item(), len(hits))
"""


@pytest.fixture
def user_cache(monkeypatch, tmp_path):
    """Unset JAX's cache folder, replace the user's cache folder with a temporary one, and return it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configured = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", configured)


def test_programs_are_stored_in_the_cache_folder_of_the_user(user_cache):
    compilation.enable_compilation_cache()
    folder = compilation.cache_folder()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.is_relative_to(user_cache / "deeplab_jax" / "xla")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_a_second_process_loads_the_programs_of_the_first(tmp_path):
    without_jax = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    env = without_jax | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-W", "error", "-c", COUNT_CACHE_HITS]
    first, second = (subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split() for _ in "12")
    assert first[0] == second[0]
    assert first[1] == "0"
    assert int(second[1]) > 0
    files = list(tmp_path.glob("deeplab_jax/xla/*-threads/*-cache"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    damaged = subprocess.run([sys.executable, "-c", COUNT_CACHE_HITS], env=env, capture_output=True, text=True, check=True)
    assert damaged.stdout.split() == first
    assert "Error reading persistent compilation cache entry" in damaged.stderr


@pytest.mark.parametrize("chosen", ["", "/elsewhere"])
def test_a_folder_that_the_user_chose_is_respected(chosen, user_cache):
    jax.config.update("jax_compilation_cache_dir", chosen)
    compilation.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen
    assert not list(user_cache.iterdir())


def test_nothing_is_stored_if_the_cache_is_disabled_or_there_are_several_processes(user_cache, monkeypatch):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compilation.enable_compilation_cache()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    compilation.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert not list(user_cache.iterdir())


def test_a_cache_folder_that_cannot_be_written_is_not_an_error(user_cache, monkeypatch):
    (user_cache / "deeplab_jax").write_text("a file")
    compilation.enable_compilation_cache()
    (user_cache / "deeplab_jax").unlink()

    def deny(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    with monkeypatch.context() as patch:  # file permissions would not stop a test running as root
        patch.setattr(compilation.tempfile, "TemporaryFile", deny)
        compilation.enable_compilation_cache()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")
    # Pretend that the user has no entry in the password database.
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    compilation.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize(
    ("system", "name"), [(unix.Unix, ".cache"), (macos.MacOS, "Library/Caches"), (windows.Windows, "AppData/Local")]
)
def test_the_cache_folder_follows_the_conventions_of_the_system(system, name, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification says that relative paths must be ignored
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(windows, "get_win_folder", lambda name: str(tmp_path / "AppData" / "Local"))
    monkeypatch.setattr(platformdirs, "PlatformDirs", system)
    assert compilation.cache_folder().is_relative_to(tmp_path / name / "deeplab_jax" / "xla")


def test_each_thread_count_has_a_separate_cache_folder(monkeypatch):
    folder = compilation.cache_folder()
    monkeypatch.setenv("NPROC", "77")
    assert compilation.cache_folder() != folder


def test_the_least_recently_used_files_are_deleted_first(tmp_path):
    (tmp_path / "inner").mkdir()
    for age, name in enumerate(("new", "inner/read", "old", "older")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    os.utime(tmp_path / "inner" / "read", (1001, 0))
    compilation.delete_least_recently_used(tmp_path, 300)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["new", "old", "read"]
    compilation.delete_least_recently_used(tmp_path, 100)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["read"]


@pytest.mark.slow
def test_initial_parameters_do_not_depend_on_the_optimization_level(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # set by conftest.py
    options = compilation.quick_options("cpu")
    assert options["xla_backend_optimization_level"] < 3
    jitted = jax.jit(lambda key: [he_normal_fan_out()(key, shape, jnp.float32) for shape in ((7, 7, 3, 16), (1, 1, 16, 65))])
    lowered = jitted.lower(jax.random.key(3))
    quick, full = (lowered.compile(o)(jax.random.key(3)) for o in (options, {"xla_backend_optimization_level": 3}))
    for a, b in zip(quick, full, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_optimization_level_that_the_user_chose_is_respected(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    assert compilation.quick_options("cpu") == {}
    monkeypatch.delenv("XLA_FLAGS")
    assert compilation.quick_options("gpu") == {}


def test_lean_options_reduce_the_memory_of_a_large_program(monkeypatch):
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


def test_the_least_recently_used_program_is_dropped():
    programs, compiled = compilation.Programs(limit=2), []

    def get(key):
        programs.get(key, lambda: compiled.append(key) or [key])

    for key in "abacaba":
        get(key)
    assert compiled == list("abcb")


def test_threads_compile_a_program_once():
    programs, compiled = compilation.Programs(limit=3), []

    def compile_slowly(key):
        compiled.append(key)
        time.sleep(0.05)
        return key

    with ThreadPoolExecutor(8) as pool:
        keys = list("abcabcabc")
        assert list(pool.map(lambda key: programs.get(key, lambda: compile_slowly(key)), keys)) == keys
        assert sorted(compiled) == list("abc")
        many = [str(i % 12) for i in range(200)]
        assert list(pool.map(lambda key: programs.get(key, lambda: key), many)) == many


def test_a_failed_compilation_is_tried_again():
    programs = compilation.Programs()
    with pytest.raises(ZeroDivisionError):
        programs.get("a", lambda: 1 / 0)
    assert programs.get("a", lambda: 1) == 1
