import json

import pytest

from deeplab_jax.errors import CheckpointError
from deeplab_jax.training.metrics_log import METRICS, read_log

ROWS = [{"step": 1, "kind": "train", "loss": 2.0}, {"step": 2, "kind": "train", "loss": None}, {"step": 2, "kind": "eval"}]


def test_rows_are_read_by_kind(tmp_path):
    assert read_log(str(tmp_path), "train") == []
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_log(str(tmp_path), "train") == ROWS[:2]
    assert read_log(str(tmp_path), "eval") == ROWS[2:]


@pytest.mark.parametrize("fragment", [b'{"step": 3, "ki', b'{"step": 3, "kind": "train"}', b'{"step": 3, "\xc3'])
def test_a_last_line_truncated_by_a_crash_is_ignored(tmp_path, fragment):
    (tmp_path / METRICS).write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + fragment)
    assert read_log(str(tmp_path), "train") == ROWS[:1]


@pytest.mark.parametrize("line", [b'{"step": 1}', b'{"step": "1", "kind": ', b"[]", b"", b"\xff"])
def test_an_error_gives_the_number_of_a_damaged_line(tmp_path, line):
    (tmp_path / METRICS).write_bytes(json.dumps(ROWS[0]).encode() + b"\n" + line + b"\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2"):
        read_log(str(tmp_path), "train")
