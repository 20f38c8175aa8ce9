import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from deeplab_jax.errors import ConfigError
from deeplab_jax.training import lock
from deeplab_jax.training.lock import LOCK, lock_folder

HOLD = """
import sys
from deeplab_jax.training.lock import lock_folder
with lock_folder(sys.argv[1], print):
    print("locked", flush=True)
    sys.stdin.read()
"""


def say_nothing(line):
    pass


@pytest.fixture
def quick_touches(monkeypatch):
    monkeypatch.setattr(lock, "_TOUCH_SECONDS", 0.1)
    monkeypatch.setattr(lock, "_STALE_SECONDS", 2.0)


@pytest.fixture
def owner(tmp_path):
    """Start a process that holds the lock on `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_lock_of_a_running_process_is_respected_and_named(tmp_path, owner):
    with pytest.raises(ConfigError, match=rf"`--workdir` \(='{tmp_path}'\) is in use by process {owner.pid} on .* since 20"):
        lock_folder(str(tmp_path), say_nothing).__enter__()
    owner.communicate("")
    with lock_folder(str(tmp_path), say_nothing):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_the_lock_in_a_copy_of_the_folder_of_a_running_process_is_explained(tmp_path, owner):
    copy = tmp_path / "copy"
    copy.mkdir()
    for age, is_explained in ((0, False), (60, True)):
        shutil.copy(tmp_path / LOCK, copy)
        os.utime(copy / LOCK, (time.time() - age,) * 2)
        with pytest.raises(ConfigError, match="is in use by process") as error:
            lock_folder(str(copy), say_nothing).__enter__()
        assert (f"If it is a copy of that run's folder, delete {copy / LOCK}." in str(error.value)) == is_explained


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, owner):
    owner.send_signal(signal.SIGKILL)  # not waited for, so it is a zombie at first
    time.sleep(0.1)
    for _ in range(2):
        with lock_folder(str(tmp_path), say_nothing) as check:
            check()
    assert os.listdir(tmp_path) == []


def test_a_process_number_that_was_used_again_is_not_the_owner(tmp_path, owner):
    rewrite(tmp_path / LOCK, started="1")
    with lock_folder(str(tmp_path), say_nothing) as check:
        check()
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid() != owner.pid


def test_the_lock_of_another_host_is_respected_while_it_is_touched(tmp_path, quick_touches):
    lines = []
    with lock_folder(str(tmp_path), say_nothing):
        own = json.loads((tmp_path / LOCK).read_text())
        rewrite(tmp_path / LOCK, host="other")
        stop = threading.Event()
        other = own | {"host": "other"}
        thread = threading.Thread(target=lock._touch_until, args=(tmp_path / LOCK, other, stop))
        thread.start()
        with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} on other since"):
            lock_folder(str(tmp_path), lines.append).__enter__()
        stop.set()
        thread.join()
    assert len(lines) == 1
    assert "Waiting for up to 2 s" in lines[0]


@pytest.mark.parametrize("content", [None, "", "{}", "[1]"])
def test_a_lock_that_nobody_touches_is_taken_over_after_a_while(tmp_path, quick_touches, content):
    path = tmp_path / LOCK
    with lock_folder(str(tmp_path), say_nothing):
        text = path.read_text()
    path.write_text(text if content is None else content)
    rewrite(path, host="other") if content is None else None
    start, lines = time.monotonic(), []
    with lock_folder(str(tmp_path), lines.append) as check:
        check()
    assert 1.5 < time.monotonic() - start < 10
    assert len(lines) == 1


def test_an_owner_that_lost_its_lock_is_told_before_it_saves(tmp_path):
    with lock_folder(str(tmp_path), say_nothing) as check:
        check()
        rewrite(tmp_path / LOCK, id="other")
        with pytest.raises(ConfigError, match="Another run has taken over"):
            check()
    assert (tmp_path / LOCK).exists()  # it belongs to the other run


def test_an_owner_whose_lock_is_gone_is_told_before_it_saves(tmp_path):
    with lock_folder(str(tmp_path), say_nothing) as check:
        (tmp_path / LOCK).unlink()  # by another run that has ended
        with pytest.raises(ConfigError, match="is gone or damaged, so another run might have used"):
            check()


def test_of_many_processes_one_gets_a_stale_lock(tmp_path, owner):
    owner.kill()
    owner.wait()
    held, refused, release = [], [], threading.Event()

    def acquire():
        try:
            with lock_folder(str(tmp_path), say_nothing):
                held.append(1)
                release.wait()
        except ConfigError:
            refused.append(1)

    threads = [threading.Thread(target=acquire) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(held) + len(refused) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    release.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_a_file_system_without_links_can_be_locked(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with lock_folder(str(tmp_path), say_nothing), pytest.raises(ConfigError, match="is in use by process"):
        lock_folder(str(tmp_path), say_nothing).__enter__()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"`--workdir` .* is not writable \(Not a directory\)\. Choose a different folder\.$"):
        lock_folder(str(tmp_path / "file" / "run"), say_nothing).__enter__()


def test_a_full_disk_needs_space_and_not_a_different_folder(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "_acquire", fail)
    with pytest.raises(ConfigError, match=r"not writable \(No space left on device\)\. Free some disk space\.$"):
        lock_folder(str(tmp_path), say_nothing).__enter__()


def test_a_bucket_is_locked(gcs, monkeypatch, quick_touches):
    workdir, lines = epath.Path("gs://bucket/locked"), []
    with lock_folder(str(workdir), say_nothing) as check:
        check()
        monkeypatch.setattr(lock, "_can_look_up", lambda owner: False)  # as on another host
        with pytest.raises(ConfigError, match=f"`--workdir` \\(='{workdir}'\\) is in use by process {os.getpid()}"):
            lock_folder(str(workdir), lines.append).__enter__()
        assert "Waiting for up to 2 s" in lines[0]
        text = (workdir / LOCK).read_text()
    assert list(workdir.iterdir()) == []
    (workdir / LOCK).write_text(text)  # the lock of a process that was killed
    with lock_folder(str(workdir), say_nothing):
        rewrite(workdir / LOCK, id="another")
        with pytest.raises(ConfigError, match="Another run has taken over"):
            check()


def test_a_lock_that_was_created_although_the_file_system_says_that_it_exists_is_held(tmp_path, monkeypatch):
    link = os.link

    def lose_the_answer(source, target):
        link(source, target)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", lose_the_answer)
    with lock_folder(str(tmp_path), say_nothing) as check:
        check()
    assert os.listdir(tmp_path) == []


def test_a_process_whose_start_time_is_hidden_is_alive(tmp_path, owner, monkeypatch):
    monkeypatch.setattr(lock, "_start_time", lambda process: "")
    with pytest.raises(ConfigError, match="is in use by process"):
        lock_folder(str(tmp_path), say_nothing).__enter__()


def test_a_lock_that_cannot_be_read_does_not_end_the_run_with_a_traceback(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(116, "Stale file handle")

    with lock_folder(str(tmp_path), say_nothing) as check:
        monkeypatch.setattr(lock, "_read", fail)
        check()
    assert (tmp_path / LOCK).exists()
