import os
import platform
import subprocess
import sys

import pytest

from deeplab_jax.runtime import machine

# Allocate a block like XLA's for a training step four times, in a thread of its own, and count the pages that the kernel had to
# provide for the last three.
COUNT_PAGES = """
import ctypes, resource, sys, threading
from deeplab_jax.runtime import machine
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def count():
    for _ in range(4):
        block = libc.malloc(200 << 20)
        ctypes.memset(block, 1, 200 << 20)
        libc.free(block)
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
pages = []
for name in sys.argv[1:]: getattr(machine, name)()
thread = threading.Thread(target=count)
thread.start()
thread.join()
print(pages[-1] - pages[0])
"""
only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be configured")


def run(code, *args, **variables):
    environment = {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"} | variables
    return subprocess.run(
        [sys.executable, "-c", code, *args], env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
@only_glibc
def test_a_step_reuses_the_memory_of_the_last_one():
    block = 3 * (200 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert int(run(COUNT_PAGES)) >= block
    assert int(run(COUNT_PAGES, "reuse_step_memory")) < block / 100
    # The input pipeline configures the C library later, and must not undo it.
    assert int(run(COUNT_PAGES, "reuse_step_memory", "keep_freed_memory")) < block / 100
    # An accelerator's memory is not the C library's.
    assert int(run(COUNT_PAGES, "reuse_step_memory", JAX_PLATFORMS="cuda")) >= block


@only_glibc
def test_the_gaps_in_the_heap_are_filled():
    code = """
import ctypes, sys
from deeplab_jax.runtime import machine
if sys.argv[1:]: machine.reuse_step_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(10_000) for _ in range(5000)]
for block in blocks[::2]: libc.free(block)
machine.fill_heap_gaps()
print(sum(libc.malloc(10_000) < max(blocks) for _ in range(2500)))
"""
    assert int(run(code, "reuse_step_memory")) == 0
    assert int(run(code)) >= 2400  # without a single heap, nothing is filled
    assert int(run(code, "reuse_step_memory", MALLOC_ARENA_MAX="1")) >= 2400  # the user has configured the C library


@only_glibc
def test_freed_memory_is_returned_to_the_system():
    code = """
import ctypes, os
from deeplab_jax.runtime.machine import trim_memory
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if not hasattr(libc, "malloc_trim"): print(1 << 30)
blocks = [libc.malloc(10_000) for _ in range(5000)]
for block in blocks: ctypes.memset(block, 1, 10_000)
libc.malloc(10_000)  # a block above the others, so that the heap cannot shrink by itself
for block in blocks: libc.free(block)
before = resident(); trim_memory(); print(before - resident())
"""
    returned = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(returned.split()[0]) > 40e6


def test_the_digest_of_the_code_changes_with_any_file(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "runtime" / "machine.py"))
    digests = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("models/b.py", "1"), ("models/notes.txt", "1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        digests.append(machine.digest_code())
    (tmp_path / ".#a.py").symlink_to("joe@node1.7")  # Emacs locks a file like this
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.py").write_text("1")
    digests.append(machine.digest_code())
    assert len(set(digests[:3])) == 3
    assert digests[4] == digests[3] == digests[2]
