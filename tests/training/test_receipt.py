import dataclasses
import hashlib
import json
import os

import numpy as np
import pytest
from conftest import tiny_config

from deeplab_jax.config import Config, MeshConfig, to_dict
from deeplab_jax.errors import CheckpointError, ConfigError
from deeplab_jax.runtime.mesh import make_mesh
from deeplab_jax.training.data import Data
from deeplab_jax.training.metrics_log import read_log
from deeplab_jax.training.receipt import (
    ConsumedSamples,
    Receipts,
    describe_start,
    find_changes,
    read_receipts,
    read_samples,
    read_starts,
    write_start,
)
from deeplab_jax.training.state import TrainState

NAMES = ("a.png", "b.png", "c.png")
CONFIG = tiny_config("somewhere")


def make_batch(*indices):
    fingerprints = np.array([[10 + i] * 8 for i in indices], np.uint8)
    return {"index": np.array(indices), "fingerprint": fingerprints}


def make_data(digest="list", eval_digest="eval list", eval_size=2):
    return Data(NAMES, digest, eval_digest, eval_size, lambda start, end: [], list, len(NAMES))


def make_start(step, config=CONFIG, data=None, steps=10):
    return describe_start(step, config, data or make_data(), steps, make_mesh(MeshConfig()))


def make_state(step):
    return TrainState(np.int32(step), {"w": np.full(3, step, np.float32)}, {}, (), np.int32(0))


def test_consumed_samples_match_a_hand_computed_digest():
    consumed = ConsumedSamples(NAMES)
    consumed.add(make_batch(2, 0))
    consumed.add(make_batch(1, 2))
    assert consumed.flush() == {"c.png": "0c" * 8, "a.png": "0a" * 8, "b.png": "0b" * 8}
    first = hashlib.sha256(b"\nc.png\t" + b"0c" * 8 + b"\na.png\t" + b"0a" * 8 + b"\n").hexdigest().encode()
    second = hashlib.sha256(first + b"\nb.png\t" + b"0b" * 8 + b"\nc.png\t" + b"0c" * 8 + b"\n").hexdigest()
    assert consumed.digest == second
    # Continuing from an earlier digest gives the same result as an uninterrupted run.
    again = ConsumedSamples(NAMES, first.decode())
    again.add(make_batch(1, 2))
    again.flush()
    assert again.digest == second
    assert again.flush() == {}


def test_a_resumed_run_has_the_same_receipt_as_an_uninterrupted_run(tmp_path):
    warnings = []
    for workdir, stops in ((tmp_path / "straight", ()), (tmp_path / "resumed", (2,))):
        workdir.mkdir()
        receipts = Receipts(str(workdir), make_start(0), NAMES, warnings.append)
        for step in (1, 2, 3, 4):
            receipts.consumed.add(make_batch(step % 3, 0))
            receipts.write(step, make_state(step))
            if step == 3 and stops:  # killed after writing the receipt, and resumed from the previous checkpoint
                receipts = Receipts(str(workdir), make_start(2), NAMES, warnings.append)
                receipts.consumed.add(make_batch(0, 0))
                receipts.write(3, make_state(3))
    straight, resumed = (read_receipts(str(tmp_path / name)) for name in ("straight", "resumed"))
    assert straight == resumed
    assert list(straight) == [1, 2, 3, 4]
    assert [start.step for start in read_starts(str(tmp_path / "resumed"))] == [0, 2]
    assert read_samples(str(tmp_path / "resumed")) == {"a.png": "0a" * 8, "b.png": "0b" * 8, "c.png": "0c" * 8}
    assert not warnings


def test_names_can_contain_the_line_breaks_of_unicode(tmp_path):
    names = ("a\u0085 1.png", "b\u2028.png", "c\x0cd\r.png")
    receipts = Receipts(str(tmp_path), make_start(0), names, print)
    receipts.consumed.add(make_batch(0, 1, 2))
    receipts.write(1, make_state(1))
    assert list(read_samples(str(tmp_path))) == list(names)


def test_a_file_that_changes_during_the_run_gives_a_warning(tmp_path):
    warnings = []
    receipts = Receipts(str(tmp_path), make_start(0), NAMES, warnings.append)
    receipts.consumed.add(make_batch(0, 1))
    receipts.write(1, make_state(1))
    receipts.consumed.add({"index": np.array([1]), "fingerprint": np.full((1, 8), 99, np.uint8)})
    receipts.write(2, make_state(2))
    assert len(warnings) == 1
    assert "b.png" in warnings[0]
    assert read_samples(str(tmp_path))["b.png"] == "0b" * 8


def test_a_sample_that_could_not_be_read_has_no_fingerprint(tmp_path):
    consumed = ConsumedSamples(NAMES)
    consumed.add({"index": np.array([1]), "fingerprint": np.zeros((1, 8), np.uint8)})
    assert consumed.flush() == {}
    assert consumed.digest


def test_only_starts_that_led_to_the_current_state_are_kept(tmp_path):
    for step in (0, 4, 8, 4):
        write_start(str(tmp_path), make_start(step))
    assert [start.step for start in read_starts(str(tmp_path))] == [0, 4]
    start = read_starts(str(tmp_path))[0]
    assert start.devices["mesh"] == {"data": 4, "spatial": 1}
    assert start.versions["jax"]


def test_a_config_that_was_changed_in_the_receipt_is_detected(tmp_path):
    write_start(str(tmp_path), make_start(0))
    path = tmp_path / "run.json"
    table = json.loads(path.read_text())
    table["starts"][0]["config"]["optim"]["lr"] *= 2
    path.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=r"The run start recorded at step 0 in .*run\.json does not match its digest"):
        read_starts(str(tmp_path))


def test_a_line_truncated_by_a_crash_is_ignored(tmp_path):
    receipts = Receipts(str(tmp_path), make_start(0), NAMES, print)
    receipts.write(1, make_state(1))
    with (tmp_path / "receipts.jsonl").open("a") as file:
        file.write('{"step": 2, "sam')
    assert list(read_receipts(str(tmp_path))) == [1]


def test_a_lost_receipt_is_reported(tmp_path):
    warnings = []
    Receipts(str(tmp_path), make_start(0), NAMES, warnings.append).write(4, make_state(4))
    (tmp_path / "receipts.jsonl").write_bytes(b"\0" * 100)
    Receipts(str(tmp_path), make_start(4), NAMES, warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"warning: {tmp_path}/receipts.jsonl has no line for step 4.")


def test_a_run_that_starts_at_step_0_starts_a_new_receipt(tmp_path):
    warnings = []
    receipts = Receipts(str(tmp_path), make_start(0), NAMES, warnings.append)
    receipts.write(0, make_state(0))
    receipts.consumed.add(make_batch(0))
    receipts.write(1, make_state(1))
    again = Receipts(str(tmp_path), make_start(0, tiny_config("elsewhere")), NAMES, warnings.append)
    assert read_receipts(str(tmp_path)) == {}
    again.write(0, make_state(5))
    again.consumed.add({"index": np.array([0]), "fingerprint": np.full((1, 8), 99, np.uint8)})
    again.write(1, make_state(6))
    assert list(read_receipts(str(tmp_path))) == [0, 1]
    assert read_samples(str(tmp_path)) == {"a.png": "63" * 8}
    assert not warnings


@pytest.mark.parametrize(
    ("name", "read"), [("receipts.jsonl", read_receipts), ("samples.tsv", read_samples), ("run.json", read_starts)]
)
def test_an_error_names_the_invalid_file(tmp_path, name, read):
    (tmp_path / name).write_text("what{}\n")
    with pytest.raises(CheckpointError, match=rf"Cannot read .*{name} .*The file was changed or is damaged\. Move it"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("receipts.jsonl", read_receipts),
        ("samples.tsv", read_samples),
        ("run.json", read_starts),
        ("metrics.jsonl", lambda workdir: read_log(workdir, "eval")),
    ],
)
def test_a_file_that_cannot_be_read_does_not_count_as_missing(tmp_path, name, read):
    (tmp_path / name).symlink_to(name)  # the file does not seem to exist, as on a network disk that does not answer
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read \(.*\)\. Make it readable\.$"):
        read(str(tmp_path))


def test_changes_since_the_last_start_are_reported(tmp_path):
    warnings = []
    Receipts(str(tmp_path), make_start(0), NAMES, warnings.append).write(4, make_state(4))
    Receipts(str(tmp_path), make_start(4), NAMES, warnings.append).write(6, make_state(6))
    assert warnings == []
    data = make_data("another list", "another eval list", 5)
    start = dataclasses.replace(make_start(6, data=data, steps=20), images=1, devices={"processes": 2})
    Receipts(str(tmp_path), start, NAMES, warnings.append)
    assert warnings == [
        f"changed since the last start: {change}"
        for change in (
            "the training list (1 image instead of 3)",
            "the evaluation list (5 images instead of 2), so earlier scores are not comparable",
            "the length of the run: 20 steps instead of 10, which changes the learning rate",
            "the schedule: the learning rate rises from 2.68e-02 in step 6 to 3.63e-02 in step 7",
            "processes 2 instead of 1",
        )
    ]


@pytest.mark.parametrize(
    ("steps", "optim", "expected"),
    [
        # Poly with power 1: 0.1 (1 - 9/10) in step 10, which is the last one of 10, and then 0.1 (1 - 10/20).
        (20, {}, ["the schedule: the learning rate rises from 1.00e-02 in step 10 to 5.00e-02 in step 11"]),
        (10, {}, []),  # there is no next step
        (20, {"lr": 0.0}, []),
    ],
)
def test_a_learning_rate_that_rises_after_a_complete_run_is_reported(steps, optim, expected):
    config = Config()
    config.optim = dataclasses.replace(config.optim, lr=0.1, power=1.0, lr_end=0.0, warmup_steps=0)
    then = dataclasses.replace(make_start(0), config=to_dict(config), steps=10)
    config.optim = dataclasses.replace(config.optim, **optim)
    now = dataclasses.replace(then, step=10, steps=steps, config=to_dict(config))
    assert [line for line in find_changes(then, now) if "learning rate rises" in line] == expected


def test_a_run_continues_without_the_schedule_of_its_first_recipe():
    config = Config()
    now = dataclasses.replace(make_start(4), config=to_dict(config))
    config.optim = dataclasses.replace(config.optim, schedule="mine")  # a recipe can add it to SCHEDULES
    assert find_changes(dataclasses.replace(make_start(0), config=to_dict(config)), now) == []


def test_a_receipt_without_the_evaluation_list_can_be_read(tmp_path):
    start = dataclasses.replace(make_start(0), images=None, eval_data=None, eval_images=None)
    write_start(str(tmp_path), start)
    rows = json.loads((tmp_path / "run.json").read_text())["starts"]
    for name in ("images", "eval_data", "eval_images"):
        del rows[0][name]
    (tmp_path / "run.json").write_text(json.dumps({"starts": rows}))
    assert read_starts(str(tmp_path)) == [start]
    (tmp_path / "receipts.jsonl").write_text('{"step": 4, "samples": "", "state": ""}\n')
    warnings = []
    Receipts(str(tmp_path), make_start(4), NAMES, warnings.append)
    assert warnings == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_is_one_line(tmp_path):
    receipts = Receipts(str(tmp_path), make_start(0), NAMES, print)
    (tmp_path / "receipts.jsonl").unlink()
    (tmp_path / "receipts.jsonl").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"Cannot write .*receipts.jsonl: No space left on device"):
        receipts.write(0, make_state(0))
