"""Train with the real packages of the trackers, offline, and read back what they stored."""

import json
import os
import subprocess
import sys
import time

import pytest
from conftest import make_command, read_log_rows

from deeplab_jax.checkpoints.store import stored_config
from deeplab_jax.training.writers import RunStart

pytestmark = pytest.mark.long
for package in ("wandb", "mlflow", "trackio"):
    pytest.importorskip(package, reason="needs the extras wandb, mlflow and trackio")
FLAGS = (
    "--config.train.writers=('wandb','mlflow','trackio')",
    "--config.train.upload_checkpoints=all",
    "--config.train.steps=8",
    "--config.train.eval_every=4",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return the environment of an offline machine, where the trackers store everything in a temporary folder."""
    folder = tmp_path_factory.mktemp("trackers")
    hidden = {name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))}
    places = {
        "HOME": folder / "home",
        "TRACKIO_DIR": folder / "trackio",
        "WANDB_DATA_DIR": folder,
        "WANDB_CACHE_DIR": folder,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {name: str(place) for name, place in places.items()} | {"HF_HUB_OFFLINE": "1"}


def train(root, workdir, environment, kill_at=None):
    """Train, or kill the run when it prints the step `kill_at`. Return what it printed."""
    command, output = make_command("train.py", *FLAGS, f"--workdir={workdir}", root=root), ""
    with subprocess.Popen(command, env=environment, cwd=workdir.parent, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            output += line
            if kill_at and line.startswith("step ") and line.split()[1] == str(kill_at):
                process.kill()
    assert process.returncode == (-9 if kill_at else 0), output
    return output


@pytest.fixture(scope="module")
def resumed_run(street_scenes, environment, tmp_path_factory):
    """Return the folder of a run that was killed after step 6 and resumed from step 4, and its ids by tracker."""
    workdir = tmp_path_factory.mktemp("tracked") / "mine"
    train(street_scenes, workdir, environment, kill_at=6)
    files = [workdir / "trackers" / f"{name}.json" for name in ("wandb", "mlflow", "trackio")]
    while not all(file.exists() for file in files):  # the run is so short that trackers may still be starting
        time.sleep(0.1)
    time.sleep(5)  # their processes close the tracked runs
    ids = {file.stem: json.loads(file.read_text())["id"] for file in files}
    output = train(street_scenes, workdir, environment)
    assert "resuming" in output
    assert "cannot be written" not in output
    assert {file.stem: json.loads(file.read_text())["id"] for file in (workdir / "trackers").iterdir()} == ids
    return workdir, ids


def read_losses(workdir, kind):
    return [(row["step"], row["loss"]) for row in read_log_rows(workdir, kind)]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_every_step_once(resumed_run, environment, tmp_path, monkeypatch):
    import mlflow

    from deeplab_jax.training.writers.mlflow_client import Mlflow

    workdir, ids = resumed_run
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment["MLFLOW_TRACKING_URI"])
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs([client.get_experiment_by_name("deeplab_jax").experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (ids["mlflow"], "mine", "FINISHED")
    assert run.data.params["optim.lr"] == "0.05"
    for kind in ("train", "eval"):
        history = [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, f"{kind}/loss")]
        assert sorted(history) == read_losses(workdir, kind)
    assert "eval/pixel_accuracy" in run.data.metrics
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    # MLflow takes so long to start that the kill can lose the images of step 4.
    assert len([name for name in pictures if name.endswith(".png") and "step+8" in name]) == 3
    copy = client.download_artifacts(run.info.run_id, "checkpoints/8", str(tmp_path))
    assert stored_config(copy).optim.lr == 0.05
    # Another start changes the learning rate, and fails.
    again = Mlflow(RunStart(str(workdir), 8, True, {"optim.lr": 0.1, "a new(field": "x" * 10000}), print)
    again.close("failed")
    run = client.get_run(ids["mlflow"])
    assert (run.data.params["optim.lr"], run.data.tags["config.optim.lr"], run.info.status) == ("0.05", "0.1", "FAILED")
    assert len(run.data.params["a new_field"]) == 6000


def test_trackio_has_every_step_once(resumed_run, environment):
    workdir, ids = resumed_run
    code = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as storage\n"
        "project, run = 'deeplab_jax', sys.argv[1]\n"
        "print(json.dumps([storage.get_runs(project), storage.get_logs(project, run), storage.get_run_config(project, run),\n"
        "storage.get_artifacts(project)], default=str))"
    )
    command = [sys.executable, "-c", code, ids["trackio"]]
    output = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    runs, logs, config, artifacts = json.loads(output)
    assert runs == [ids["trackio"]]
    assert config["optim.lr"] == 0.05
    for kind in ("train", "eval"):
        losses = [(log["step"], log[f"{kind}/loss"]) for log in logs if f"{kind}/loss" in log]
        assert sorted(losses) == read_losses(workdir, kind)
    assert [log["step"] for log in logs if "eval/strip_2" in log] == [4, 8]
    assert [each["name"] for each in artifacts] == [f"checkpoint-{ids['trackio']}"]


def test_wandb_has_every_step_once(resumed_run):
    workdir, ids = resumed_run
    folders = sorted((workdir / "wandb").glob("offline-run-*"))
    assert [folder.name.rpartition("-")[2] for folder in folders] == [ids["wandb"]] * 2
    starts = [read_wandb_records(folder / f"run-{ids['wandb']}.wandb") for folder in folders]
    kinds = {}
    for record in (record for start in starts for record in start):
        kinds.setdefault(record.WhichOneof("record_type"), []).append(record)
    config = {item.key: json.loads(item.value_json) for item in kinds["run"][0].run.config.update}
    rows = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in kinds["history"]
    ]
    assert config["optim.lr"] == 0.05
    for kind in ("train", "eval"):
        losses = [(row["step"], row[f"{kind}/loss"]) for row in rows if f"{kind}/loss" in row]
        assert losses == read_losses(workdir, kind)
    assert [row["eval/strips.count"] for row in rows if "eval/strips.count" in row] == [3, 3]
    assert [record.exit.exit_code for record in kinds["exit"]] == [1, 0]
    assert len(kinds["preempting"]) == 1
    assert ["step-8" in record.artifact.aliases for record in kinds["artifact"]] == [False, True]


def read_wandb_records(path):
    """Return the records of a .wandb file: a log in LevelDB's format with blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, records, parts = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        rest = 32768 - position % 32768
        if rest < 7:
            position += rest
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(parts))
            parts = b""
    return records
