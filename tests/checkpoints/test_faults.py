import errno
import os

import jax
import pytest
import tensorstore
from etils import epath

from deeplab_jax.checkpoints.faults import check_on_all_processes, report_read_errors, report_save_errors
from deeplab_jax.checkpoints.folders import DamagedError
from deeplab_jax.errors import BucketError, BucketOutageError, CheckpointError, ConfigError

# How TensorStore's messages start, and what they mean.
FAULTS = [
    ("PERMISSION_DENIED: Error opening driver", BucketError, "Check the credentials"),
    ("UNAVAILABLE: CURL error", BucketOutageError, "Check the network"),
]


def fail(message):
    # Orbax raises its own errors from those of TensorStore.
    raise KeyError("handler") from ValueError(message)


@pytest.mark.parametrize(("message", "kind", "advice"), FAULTS)
def test_a_checkpoint_in_a_bucket_that_cannot_be_used_is_not_damaged(message, kind, advice):
    with pytest.raises(BucketError, match=f"The checkpoint cannot be read .*{message}.* {advice}") as caught:
        check_on_all_processes(lambda: fail(message))
    assert type(caught.value) is kind
    expected = pytest.raises(BucketError, match=f"Cannot read gs://b/run/1 .*{message}.* {advice}")
    with expected as caught, report_read_errors(epath.Path("gs://b/run/1")):
        fail(message)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Failed to write: file:///run/1 [OS error 28: No space left on device]",
        "PERMISSION_DENIED: Failed to open: file:///run/1 [OS error 13: Permission denied]",
        f"RESOURCE_EXHAUSTED: Failed to open: \"/{'run' * 99}\": Too many open files [os_error_code='24']",
    ],
)
def test_errors_of_a_disk_are_not_about_a_bucket(message):
    reason = "(No space left on device|Permission denied|Too many open files)"
    expected = pytest.raises(CheckpointError, match=rf"^Cannot write to run/checkpoints \({reason}\)\. ")
    with expected as caught, report_save_errors(epath.Path("run/checkpoints")):
        fail(message)
    assert caught.value.exit_code == 2


def test_other_errors_mean_damage():
    expected = pytest.raises(CheckpointError, match=r"Cannot read run/1 .* It is damaged or incomplete")
    with expected, report_read_errors(epath.Path("run/1")):
        fail("DATA_LOSS: checksum does not match")


OBSTACLES = [OSError(code, os.strerror(code), "run/1/model") for code in (errno.EACCES, errno.ESTALE, errno.EMFILE)]
OBSTACLES += [
    ValueError("PERMISSION_DENIED: Failed to open: file:///run/1 [OS error 13: Permission denied]"),
    ValueError("UNKNOWN: Failed to open: \"/run/1\": Stale file handle [os_error_code='116']"),
]


@pytest.mark.parametrize("error", OBSTACLES)
def test_a_file_that_cannot_be_read_for_another_reason_is_not_damaged(error):
    def read():
        raise error

    advice = r"It may be intact. Make it readable, and run the same command again\."
    with pytest.raises(CheckpointError, match=rf"^A checkpoint cannot be read \(.*\). {advice}$"):
        check_on_all_processes(read)
    with (
        pytest.raises(CheckpointError, match=rf"^Cannot read run/1 \(.*\). {advice}$"),
        report_read_errors(epath.Path("run/1")),
    ):
        read()


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO])
def test_a_missing_file_and_a_bad_sector_are_damage(code):
    def read():
        raise OSError(code, os.strerror(code), "run/1/model")

    with pytest.raises(DamagedError):
        check_on_all_processes(read)


def test_a_folder_that_cannot_be_listed_is_not_said_to_have_no_steps(tmp_path, monkeypatch):
    def fail(folder):
        raise PermissionError

    monkeypatch.setattr("deeplab_jax.checkpoints.faults.list_steps", fail)
    expected = pytest.raises(CheckpointError, match=r"Permission denied\). Fix this, then run the same command again\.$")
    with expected, report_save_errors(epath.Path(tmp_path)):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_the_installed_tensorstore_reports_the_number_of_a_disk_error(tmp_path):
    (tmp_path / "file").touch()
    store = tensorstore.KvStore.open({"driver": "file", "path": f"{tmp_path}/file/"}).result()
    expected = pytest.raises(CheckpointError, match=r"^Cannot write to run/checkpoints \(Not a directory\)\. ")
    with expected, report_save_errors(epath.Path("run/checkpoints")):
        store.write("key", b"value").result()


def test_a_missing_device_is_no_damage(monkeypatch):
    def fail_without_device():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fail_without_device)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    expected = pytest.raises(ConfigError, match=r"^`JAX_PLATFORMS` \(='cuda'\) cannot be used \(JAX found no such device\)\.")
    with expected, report_read_errors(epath.Path("run/checkpoints/1")):
        jax.devices()
