import io
import json

import numpy as np
from rich.console import Console

from deeplab_jax.train.output import Output

ROW = {"loss": 1.0, "accuracy": 0.5, "lr": 0.1, "images_per_second": 2.0, "mfu": 0.4, "data_wait": 0.25}


def steps_of(workdir):
    return [(row["step"], row["kind"]) for row in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())]


def test_a_resumed_run_leaves_neither_gap_nor_duplicate(tmp_path):
    console = Console(file=io.StringIO())
    with Output(str(tmp_path), 0, 10, console) as output:
        for step in (1, 2, 3):
            output.train(step, ROW, 60.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "ki')  # what a kill leaves
    with Output(str(tmp_path), 2, 10, console) as output:
        output.train(3, ROW, 60.0)
        output.evaluation(3, {"miou": None, "pixel_accuracy": 0.5, "iou": {"road": None}}, [np.zeros((4, 12, 3), np.uint8)])
    assert steps_of(tmp_path) == [(1, "train"), (2, "train"), (3, "train"), (3, "eval")]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_line_says_what_a_person_waits_for(tmp_path):
    text = io.StringIO()
    with Output(str(tmp_path), 0, 10, Console(file=text, width=80, soft_wrap=True)) as output:
        output.train(5, ROW, 3725.0)
    line = text.getvalue().splitlines()[0]
    parts = ("step      5", "loss 1.0000", "lr 1.00e-01", "2.0 images/s", "MFU 40.0%", "data wait 25.0%", "left 1 h 02 min")
    for part in parts:
        assert part in line


def test_the_time_to_the_first_step_is_said_at_once_and_logged_once(tmp_path):
    text = io.StringIO()
    with Output(str(tmp_path), 0, 10, Console(file=text)) as output:
        output.started(12.34)
        assert "first step after 12.3 s" in text.getvalue()
        for step in (5, 10):
            output.train(step, ROW, 60.0)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("seconds_to_first_step") for row in logged] == [12.34, None]
