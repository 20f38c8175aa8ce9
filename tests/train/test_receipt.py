import hashlib
import json

import numpy as np
import pytest
from conftest import tiny_config

from deeplab_jax.config import MeshConfig
from deeplab_jax.errors import CheckpointError
from deeplab_jax.runtime.mesh import make_mesh
from deeplab_jax.train.receipt import Consumed, Receipts, describe_start, read_receipts, read_samples, read_starts, write_start
from deeplab_jax.train.state import TrainState

NAMES = ("a.png", "b.png", "c.png")
CONFIG = tiny_config("somewhere")


def batch(*indices):
    fingerprints = np.array([[10 + i] * 8 for i in indices], np.uint8)
    return {"index": np.array(indices), "fingerprint": fingerprints}


def started(step, config=CONFIG):
    return describe_start(step, config, "list", 10, make_mesh(MeshConfig()))


def state(step):
    return TrainState(np.int32(step), {"w": np.full(3, step, np.float32)}, {}, (), np.int32(0))


def test_consumed_samples_by_hand():
    consumed = Consumed(NAMES)
    consumed.add(batch(2, 0))
    consumed.add(batch(1, 2))
    assert consumed.settle() == {"c.png": "0c" * 8, "a.png": "0a" * 8, "b.png": "0b" * 8}
    first = hashlib.sha256(b"\nc.png\t" + b"0c" * 8 + b"\na.png\t" + b"0a" * 8 + b"\n").hexdigest().encode()
    second = hashlib.sha256(first + b"\nb.png\t" + b"0b" * 8 + b"\nc.png\t" + b"0c" * 8 + b"\n").hexdigest()
    assert consumed.digest == second
    # Going on from a digest is the same as never having stopped.
    again = Consumed(NAMES, first.decode())
    again.add(batch(1, 2))
    again.settle()
    assert again.digest == second
    assert again.settle() == {}


def test_the_receipt_of_a_resumed_run_is_that_of_one_that_was_not(tmp_path):
    said = []
    for workdir, stops in ((tmp_path / "straight", ()), (tmp_path / "resumed", (2,))):
        workdir.mkdir()
        receipts = Receipts(str(workdir), started(0), NAMES, said.append)
        for step in (1, 2, 3, 4):
            receipts.consumed.add(batch(step % 3, 0))
            receipts.write(step, state(step))
            if step == 3 and stops:  # killed after the receipt, resumed from the checkpoint before
                receipts = Receipts(str(workdir), started(2), NAMES, said.append)
                receipts.consumed.add(batch(0, 0))
                receipts.write(3, state(3))
    straight, resumed = (read_receipts(str(tmp_path / name)) for name in ("straight", "resumed"))
    assert straight == resumed
    assert list(straight) == [1, 2, 3, 4]
    assert [start.step for start in read_starts(str(tmp_path / "resumed"))] == [0, 2]
    assert read_samples(str(tmp_path / "resumed")) == {"a.png": "0a" * 8, "b.png": "0b" * 8, "c.png": "0c" * 8}
    assert not said


def test_a_file_that_changes_under_the_run_is_told(tmp_path):
    said = []
    receipts = Receipts(str(tmp_path), started(0), NAMES, said.append)
    receipts.consumed.add(batch(0, 1))
    receipts.write(1, state(1))
    receipts.consumed.add({"index": np.array([1]), "fingerprint": np.full((1, 8), 99, np.uint8)})
    receipts.write(2, state(2))
    assert len(said) == 1
    assert "b.png" in said[0]
    assert read_samples(str(tmp_path))["b.png"] == "0b" * 8


def test_a_sample_that_could_not_be_read_has_no_fingerprint(tmp_path):
    consumed = Consumed(NAMES)
    consumed.add({"index": np.array([1]), "fingerprint": np.zeros((1, 8), np.uint8)})
    assert consumed.settle() == {}
    assert consumed.digest


def test_starts_are_kept_as_far_as_they_led_to_the_present(tmp_path):
    for step in (0, 4, 8, 4):
        write_start(str(tmp_path), started(step))
    assert [start.step for start in read_starts(str(tmp_path))] == [0, 4]
    start = read_starts(str(tmp_path))[0]
    assert start.devices["mesh"] == {"data": 4, "spatial": 1}
    assert start.versions["jax"]


def test_a_config_that_was_changed_afterwards_is_noticed(tmp_path):
    write_start(str(tmp_path), started(0))
    path = tmp_path / "run.json"
    table = json.loads(path.read_text())
    table["starts"][0]["config"]["optim"]["lr"] *= 2
    path.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match="the start at step 0 is not the one its digest was made of"):
        read_starts(str(tmp_path))


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    receipts = Receipts(str(tmp_path), started(0), NAMES, print)
    receipts.write(1, state(1))
    with (tmp_path / "receipts.jsonl").open("a") as file:
        file.write('{"step": 2, "sam')
    assert list(read_receipts(str(tmp_path))) == [1]


def test_a_run_that_begins_anew_begins_its_receipt_anew(tmp_path):
    said = []
    receipts = Receipts(str(tmp_path), started(0), NAMES, said.append)
    receipts.write(0, state(0))
    receipts.consumed.add(batch(0))
    receipts.write(1, state(1))
    again = Receipts(str(tmp_path), started(0, tiny_config("elsewhere")), NAMES, said.append)
    assert read_receipts(str(tmp_path)) == {}
    again.write(0, state(5))
    again.consumed.add({"index": np.array([0]), "fingerprint": np.full((1, 8), 99, np.uint8)})
    again.write(1, state(6))
    assert list(read_receipts(str(tmp_path))) == [0, 1]
    assert read_samples(str(tmp_path)) == {"a.png": "63" * 8}
    assert not said


@pytest.mark.parametrize(
    ("name", "read"), [("receipts.jsonl", read_receipts), ("samples.tsv", read_samples), ("run.json", read_starts)]
)
def test_a_garbled_file_is_named(tmp_path, name, read):
    (tmp_path / name).write_text("what{}\n")
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read .*: it was changed or is damaged; move it away"):
        read(str(tmp_path))
