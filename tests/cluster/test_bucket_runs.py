"""Test whole runs in buckets: killed in saves, evaluated, exported and reported, on two processes, and with data in S3."""

import json
import os
import re
import signal
import subprocess
import threading
import time

import gcs_emulator
import jax
import numpy as np
import pytest
from conftest import make_command, read_pixels, run_cli, run_program, tiny_resnet18, train
from etils import epath
from test_reliability import read_lines, train_on_two_processes

import deeplab_jax as dl
from deeplab_jax.checkpoints.folders import find_changed_files, find_steps
from deeplab_jax.checkpoints.store import restore_variables, save_model
from deeplab_jax.config import Config
from deeplab_jax.export import loading
from deeplab_jax.weights import names
from deeplab_jax.weights.convert import variable_shapes

# ml_collections uses a deprecated function to load recipes.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")]
ROOT = epath.Path("gs://bucket/cluster")
FLAGS = ("--config.train.steps=12", "--config.train.save_every=2", "--config.train.eval_every=6")
# After how many writes of a start's first save the run is killed. A save has about 22 writes up to the one that completes it.
KILLS = (1, 3, 6, 9, 12, 15, 18, 21, 23, 25)


def copy_folder(source, target):
    for path in filter(lambda path: path.is_file(), source.rglob("*")):
        (target / path.relative_to(source).as_posix()).write_bytes(path.read_bytes())
    return target


@pytest.fixture(scope="module")
def data(gcs, street_scenes):
    return copy_folder(street_scenes, ROOT / "data")


@pytest.fixture(scope="module")
def run_on_disk(street_scenes, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("disk") / "run"
    run_program("train.py", f"--workdir={workdir}", *FLAGS, root=street_scenes)
    return workdir


@pytest.fixture(scope="module")
def killed_run(data, gcs):
    """Return a run in the bucket that was killed ten times in a save, and then finished."""
    workdir = ROOT / "run"
    command = make_command("train.py", f"--workdir={workdir}", *FLAGS, root=data)
    for writes in KILLS:
        assert kill_in_save(command, gcs, writes) == -signal.SIGKILL
        for step in find_steps(workdir):  # those that a reader would use
            assert not find_changed_files(step)
            restore_variables(str(step))
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    assert "damaged" not in result.stdout
    return workdir


def kill_in_save(command, gcs, writes):
    """Run a command, and kill it when it has written so many files of checkpoints. Return its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    written = []

    def count(name):
        if "/checkpoints/" in name:
            written.append(name)
            if len(written) >= writes:
                process.send_signal(signal.SIGKILL)

    gcs.on_write = count
    try:
        return process.wait(600)
    finally:
        gcs.on_write = lambda name: None


def test_a_run_killed_in_ten_saves_equals_the_run_on_disk(killed_run, run_on_disk):
    for name in ("receipts.jsonl", "samples.tsv"):
        assert (killed_run / name).read_text() == (run_on_disk / name).read_text()
    runs = killed_run, epath.Path(run_on_disk)
    rows = [[row | {"time": ""} for row in read_lines(run, "metrics.jsonl") if row["kind"] == "eval"] for run in runs]
    assert rows[0] == rows[1]
    assert [step.name for step in find_steps(runs[0])] == [step.name for step in find_steps(runs[1])]
    jax.tree.map(np.testing.assert_array_equal, *(restore_variables(str(run)) for run in runs))


def test_eval_writes_the_same_scores_and_pictures(killed_run, run_on_disk, data, street_scenes, tmp_path):
    run_program("eval.py", f"--checkpoint={killed_run}/best", f"--output={ROOT}/val", root=data)
    run_program("eval.py", f"--checkpoint={run_on_disk}/best", f"--output={tmp_path}/val", root=street_scenes)
    for path in filter(lambda path: path.is_file(), (tmp_path / "val").rglob("*")):
        assert (ROOT / "val" / path.relative_to(tmp_path / "val").as_posix()).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("quick_export")
def test_export_report_and_predict_write_to_the_bucket(killed_run, run_on_disk, street_scenes, tmp_path, monkeypatch, capsys):
    image = next((street_scenes / "leftImg8bit" / "test").rglob("*.png"))
    for run, out in ((killed_run, ROOT / "out"), (run_on_disk, tmp_path)):
        for arguments in (
            ("export", "--checkpoint", run, "--out", out / "net.stablehlo", "--format", "stablehlo"),
            ("report", run, "--out", out / "report.html"),
            ("predict", image, "--checkpoint", run, "--out", out / "predicted"),
        ):
            code, output = run_cli(monkeypatch, capsys, *arguments)
            assert code == 0, output
    pixels = read_pixels(image).transpose(2, 0, 1)[None]
    networks = [loading.load((out / "net.stablehlo").read_bytes()) for out in (ROOT / "out", tmp_path)]
    np.testing.assert_array_equal(*(network.run(loading.PROGRAM, pixels) for network in networks))
    assert "<html" in (ROOT / "out/report.html").read_text()
    for kind in ("train_ids", "color", "overlay"):
        name = f"predicted/{kind}/{image.stem}.png"
        assert (ROOT / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_weights_are_imported_into_the_bucket(gcs, tmp_path, monkeypatch, capsys):
    config = Config(model=tiny_resnet18(fusion="3x3", dilate_conv2=False))
    ones = {path: np.ones(shape, np.float32) for path, shape in variable_shapes(config).items()}
    save_model(str(ROOT / "ones"), config, names.unflatten(ones))
    exported = tmp_path / "x.safetensors"
    for arguments in (
        ("export", ROOT / "ones", "--to", "mmseg", "--out", exported),
        ("import", exported, "--out", ROOT / "imported", "--multi-grid", "0.5", "1", "2"),
    ):
        code, output = run_cli(monkeypatch, capsys, "weights", *arguments)
        assert code == 0, output
    assert dl.load(str(ROOT / "imported")).config.model.multi_grid == (0.5, 1.0, 2.0)


def test_records_in_the_bucket_give_the_same_run(data, finished_run, monkeypatch, capsys):
    code, output = run_cli(monkeypatch, capsys, "data", "prepare", data, "--out", ROOT / "records")
    assert code == 0, output
    code, output = run_cli(monkeypatch, capsys, "data", "prepare", data, "--out", ROOT / "records")
    assert "is already up to date" in output
    train(ROOT / "records", ROOT / "recorded")
    assert (ROOT / "recorded/receipts.jsonl").read_text() == (finished_run / "receipts.jsonl").read_text()


def test_two_processes_share_a_run_in_the_bucket(data, street_scenes, tmp_path):
    for root, workdir in ((data, ROOT / "two"), (street_scenes, tmp_path / "two")):
        for steps in (3, 6):  # the second start resumes
            for code, _, errors in train_on_two_processes(workdir, root, steps=steps):
                assert code == 0, errors
    assert read_lines(ROOT / "two", "receipts.jsonl") == read_lines(tmp_path / "two", "receipts.jsonl")


def test_an_outage_ends_the_run_with_one_line(street_scenes, tmp_path, monkeypatch):
    flags = ("--config.train.steps=100000", "--config.train.save_every=5", "--config.train.eval_every=0")
    output = tmp_path / "output"
    with gcs_emulator.run_emulator() as (environment, storage):
        written = threading.Event()
        storage.on_write = lambda name: written.set() if "commit_success" in name else None
        command = make_command("train.py", "--workdir=gs://bucket/run", *flags, root=street_scenes)
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | environment)
        assert written.wait(600)
    start = time.monotonic()
    assert process.wait(600) == 3
    elapsed = time.monotonic() - start
    assert elapsed < 240  # the packages try again for half a minute, more than once on the way out
    errors = output.read_text().split("100000")[-1]
    assert "Traceback" not in errors
    assert re.search(r"^error: gs://bucket/run.* Check the network, and run the same command again.$", errors, re.MULTILINE)


@pytest.fixture
def s3(monkeypatch):
    """Run an emulator of S3 with the empty bucket s3://bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield epath.Path("s3://bucket")
    server.stop()


def test_data_and_predictions_can_be_in_s3(s3, street_scenes, finished_run, tmp_path, monkeypatch, capsys):
    data = copy_folder(street_scenes, s3 / "data")
    train(data, tmp_path / "run")
    assert (tmp_path / "run/receipts.jsonl").read_text() == (finished_run / "receipts.jsonl").read_text()
    image = next((street_scenes / "leftImg8bit" / "test").rglob("*.png"))
    assert run_cli(monkeypatch, capsys, "predict", image, "--checkpoint", finished_run, "--out", s3 / "out")[0] == 0
    assert {path.name for path in (s3 / "out").iterdir()} == {"train_ids", "color", "overlay"}
    code, output = run_cli(monkeypatch, capsys, "data", "prepare", data, "--out", s3 / "records")
    assert code == 0, output
    train(s3 / "records", tmp_path / "recorded")
    assert (tmp_path / "recorded/receipts.jsonl").read_text() == (finished_run / "receipts.jsonl").read_text()
    run_program("eval.py", f"--checkpoint={finished_run}", f"--output={s3}/val", root=data)
    assert json.loads((s3 / "val/scores.json").read_text())["miou"] >= 0
    with pytest.raises(dl.DeeplabError, match="The bucket s3://missing does not exist"):
        epath.Path("s3://missing/a").exists()
