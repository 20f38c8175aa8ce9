"""Test URLs against an emulator of Google Cloud Storage."""

import json
import re

import fsspec
import jax
import numpy as np
import pytest
from conftest import tiny_config, train
from etils import epath
from rich.console import Console

from deeplab_jax import buckets
from deeplab_jax.buckets import CHECKPOINT_SCHEMES
from deeplab_jax.checkpoints.store import Checkpoints, resolve
from deeplab_jax.config import DataConfig
from deeplab_jax.data.find import find_split
from deeplab_jax.data.pipeline import train_batches
from deeplab_jax.data.prepare import prepare
from deeplab_jax.errors import BucketError, BucketOutageError, CheckpointError, ConfigError
from deeplab_jax.files import require_folder, write_atomically
from deeplab_jax.labels import CITYSCAPES
from deeplab_jax.weights import state_dicts

pytestmark = [
    pytest.mark.usefixtures("gcs"),
    # ml_collections uses a deprecated function to load recipes.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]
CONFIG = tiny_config()


@pytest.fixture
def folder(request):
    return epath.Path("gs://bucket") / request.node.name


def write_files(folder, *names):
    for name in names:
        (folder / name).write_text(name)


def list_files(folder):
    return sorted((parent / name).relative_to(folder).as_posix() for parent, _, names in folder.walk() for name in names)


def test_files_are_written_read_and_appended_to(folder):
    (folder / "a.txt").write_text("ä")
    with (folder / "a.txt").open("a") as file:
        file.write("\nb")
    assert (folder / "a.txt").read_bytes() == "ä\nb".encode()
    assert (folder / "a.txt").open().read() == "ä\nb"
    with (folder / "a.txt").open("rb") as file:
        assert (file.seek(2), file.read(1), file.seek(-1, 2), file.read()) == (2, b"\n", 3, b"b")
    assert buckets.read_range(str(folder / "a.txt"), 1, 2) == b"\xa4\n"
    assert (folder / "a.txt").stat().length == 4


def test_a_file_appears_only_when_it_is_complete(folder):
    def write_half():
        with write_atomically(folder / "a") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()
    assert not (folder / "a").exists()


def test_folders_are_listed_moved_and_removed(folder):
    folder.mkdir()
    assert list(folder.iterdir()) == []
    write_files(folder, "a/1", "a/b/2", "3")
    assert {path.name: path.is_dir() for path in folder.iterdir()} == {"a": True, "3": False}
    (folder / "a").rename(folder / "c")
    assert list_files(folder) == ["3", "c/1", "c/b/2"]
    (folder / "3").replace(folder / "c/1")
    assert (folder / "c/1").read_text() == "3"
    with pytest.raises(FileExistsError):
        (folder / "c").mkdir()
    (folder / "c").rmtree()
    assert not folder.exists()


def test_removing_a_folder_does_not_take_its_name_for_a_pattern(folder):
    write_files(folder, "run[1]/a", "run1/a", "run?/a")
    (folder / "run[1]").rmtree()
    (folder / "run?").rmtree()
    assert list_files(folder) == ["run1/a"]


def test_a_bucket_is_its_own_parent(gcs):
    bucket = epath.Path("gs://bucket")
    assert bucket.parent == bucket
    assert (bucket / "a").parent == bucket
    assert (bucket / "a/b").parent == bucket / "a"
    assert epath.Path("/a").parent.parent == epath.Path("/")
    with pytest.raises(CheckpointError, match=r"^`checkpoint` \(='gs://bucket/none'\) does not exist"):
        resolve("gs://bucket/none")
    with pytest.raises(CheckpointError, match=r"^`checkpoint` \(='gs://bucket'\) is "):
        resolve("gs://bucket")


def test_a_listing_shows_what_other_programs_have_just_written(folder, gcs):
    write_files(folder, "a")
    assert list_files(folder) == ["a"]
    other = fsspec.filesystem("gcs", skip_instance_cache=True)
    other.pipe_file(str(folder / "b/c"), b"longer")
    other.pipe_file(str(folder / "a"), b"longer")
    assert list_files(folder) == ["a", "b/c"]
    assert (folder / "a").open("rb").read() == b"longer"


def test_a_missing_file_is_no_fault_of_the_bucket(folder):
    for read in (folder.read_bytes, folder.open, folder.stat, folder.unlink):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            read()
    folder.unlink(missing_ok=True)
    assert not folder.exists()
    assert not folder.is_dir()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://missing/a", "The bucket gs://missing does not exist. Create it, or fix its name"),
        (
            "gs://anonymous/a",
            "gs://anonymous/a cannot be used without credentials .* Run `gcloud auth application-default login`",
        ),
        ("gs://forbidden/a", "This account may not use gs://forbidden/a"),
        ("gs://", "gs:// names no bucket"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_reported_in_one_line(url, message):
    path = epath.Path(url)
    for use in (path.exists, path.is_dir, path.read_bytes, lambda: list(path.iterdir()), lambda: path.mkdir(parents=True)):
        with pytest.raises(BucketError, match=f"^{message}[^\n]*$"):
            use()


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", fail)
    buckets._make_file_system.cache_clear()
    with pytest.raises(
        BucketError, match=r"s3://b/a needs the package s3fs. Run `pip install 'deeplab-jax\[s3\]'` to install it."
    ):
        epath.Path("s3://b/a").exists()


def test_urls_of_other_kinds_are_refused():
    with pytest.raises(
        ConfigError, match=r"^`data.root` \(='hdfs://a/b'\) cannot be used. Give a local path, or a URL with gs://"
    ):
        find_split(DataConfig(root="hdfs://a/b"), "train")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs:/b/run", r"`--workdir` \(='gs:/b/run'\) is not a URL. Did you mean gs://b/run\?"),
        ("s3:b", r"is not a URL. Did you mean s3://b\?"),
        ("s3://b/run", "Give a local path, or a URL with gs://, because checkpoints can only be stored there"),
    ],
)
def test_a_workdir_that_cannot_work_is_refused_before_the_bucket_is_asked(path, message):
    with pytest.raises(ConfigError, match=message):
        require_folder(path, "--workdir", "runs/r50", CHECKPOINT_SCHEMES)


def test_local_names_with_a_colon_are_paths(tmp_path):
    assert require_folder(str(tmp_path / "gs:a"), "--workdir", "runs/r50")
    assert require_folder("gsx:/a", "--workdir", "runs/r50")


def test_checkpoints_in_s3_are_refused():
    with pytest.raises(CheckpointError, match="`s3://b/run` cannot hold checkpoints"):
        Checkpoints("s3://b/run", CONFIG)


def test_weights_files_in_a_bucket_are_said_to_be_there(folder):
    write_files(folder, "net.pth")
    with pytest.raises(CheckpointError, match=r"net\.pth` is in a bucket\. .* Copy it to a disk first\.$"):
        state_dicts.read(str(folder / "net.pth"))


@pytest.mark.parametrize("char", "#?")
def test_names_that_tensorstore_cuts_off_are_refused(char):
    # TensorStore would write the arrays of all steps of gs://bucket/run#1 and gs://bucket/run#2 to gs://bucket/run.
    with pytest.raises(
        CheckpointError, match=rf"`gs://bucket/run{re.escape(char)}1` cannot hold checkpoints, .* at {re.escape(char)}\."
    ):
        Checkpoints(f"gs://bucket/run{char}1", CONFIG)


def make_trees(step):
    return {"model": {"weights": jax.numpy.full((2, 3), step, "float32")}, "training": {"step": jax.numpy.asarray(step)}}


def restore(workdir):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make_trees(0))
    with Checkpoints(workdir, CONFIG) as checkpoints:
        return checkpoints.restore(abstract)


def save(workdir, *steps):
    config = tiny_config()
    config.train.keep_last = 1
    with Checkpoints(workdir, config) as checkpoints:
        for step in steps:
            checkpoints.save(make_trees(step), step)


@pytest.mark.slow
def test_a_save_killed_in_the_middle_leaves_a_checkpoint_that_restores_right(gcs, folder):
    """The history of the bucket holds the states that a kill could leave. Saving the second step also removes the first.

    Every fifth state is restored, and those around the changes of a marker.
    """
    save(str(folder), 1)
    gcs.history = []
    save(str(folder), 2)
    history, gcs.history = gcs.history, None
    assert len(history) > 30
    restored = []
    ends = [f"checkpoints/{step}/{buckets.COMMIT_MARKER}" for step in (1, 2)]
    valid = [[any(name.endswith(end) for name in state[0]["bucket"]) for end in ends] for state in history]
    changes = {i for i in range(1, len(history)) if valid[i] != valid[i - 1]}
    assert len(changes) == 2  # the second step becomes valid, and then the first one invalid
    for i in sorted({*range(0, len(history), 5), *changes, *(i - 1 for i in changes)}):
        gcs.go_back_to(history[i])
        step, trees = restore(str(folder))
        jax.tree.map(np.testing.assert_array_equal, trees, make_trees(step))
        restored.append(step)
    assert set(restored) == {1, 2}
    assert restored == sorted(restored)


def test_arrays_that_may_not_be_read_are_not_damaged(gcs, folder, monkeypatch):
    save(str(folder), 1)
    monkeypatch.setitem(gcs.refused, "%2Fd%2F", 403)  # as for TensorStore, if its credentials are not those of gcsfs
    monkeypatch.setattr("deeplab_jax.checkpoints.store.require_unchanged", lambda step, parts: None)

    with pytest.raises(BucketError, match=r"The checkpoint cannot be read .* Check the credentials"):
        restore(str(folder))
    assert [path.name for path in folder.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("is_prepared", [False, True])
def test_samples_that_cannot_be_read_for_a_moment_are_not_damaged(
    gcs, folder, street_scenes, tmp_path, monkeypatch, is_prepared
):
    source = street_scenes
    if is_prepared:
        source = tmp_path / "records"
        prepare(DataConfig(root=str(street_scenes)), str(source), ["train"], Console(quiet=True))
    for path in filter(lambda path: path.is_file(), source.rglob("*")):
        (folder / path.relative_to(source).as_posix()).write_bytes(path.read_bytes())
    data = DataConfig(root=str(folder), batch_size=2, crop_size=(32, 64), max_unreadable=5)
    samples = find_split(data, "train")
    batches = train_batches(samples, CITYSCAPES, data, (0.0, 0.0, 0.0), seed=0, start_step=0, steps=2)
    monkeypatch.setattr(buckets, "_as_bucket_error", lambda error, url: BucketOutageError(f"{url} cannot be used"))
    monkeypatch.setitem(gcs.refused, ".png" if not is_prepared else ".bin", 403)  # gcsfs repeats other requests for 30 s
    with pytest.raises(BucketOutageError, match=r"gs://.* cannot be used") as caught:
        list(batches)
    assert caught.value.exit_code == 3


@pytest.mark.slow
def test_a_run_in_a_bucket_equals_the_run_on_disk(folder, finished_run, street_scenes):
    data = folder / "data"
    for path in filter(lambda path: path.is_file(), street_scenes.rglob("*")):
        (data / path.relative_to(street_scenes).as_posix()).write_bytes(path.read_bytes())
    workdir = folder / "run"
    output = train(data, workdir)
    assert f"Finished at step 6 of 6. The checkpoints are in {workdir}/checkpoints." in output
    for name in ("receipts.jsonl", "samples.tsv"):
        assert (workdir / name).read_text() == (finished_run / name).read_text()
    scores = [json.loads((run / "checkpoints/6/scores.json").read_text())["scores"] for run in (workdir, finished_run)]
    assert scores[0] == scores[1]
    assert [path.stat().length > 1000 for path in (workdir / "tensorboard").iterdir()] == [True]
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 8


class _HttpError(Exception):
    """An error like gcsfs's, with the status of the answer."""

    def __init__(self, status):
        super().__init__(str(status))
        self.code = status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (_HttpError(503), BucketOutageError),
        (_HttpError(429), BucketOutageError),
        (_HttpError(400), BucketError),
        (ConnectionResetError(), BucketOutageError),
        (Exception("the server disconnected"), BucketOutageError),  # as in aiohttp
        (TypeError("a bug"), BucketError),
    ],
)
def test_only_what_can_pass_is_an_outage(error, kind):
    assert type(buckets._as_bucket_error(error, "gs://bucket/a")) is kind
