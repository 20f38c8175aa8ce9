import io
from unittest.mock import Mock

from rich.console import Console

from deeplab_jax.checkpoints.store import Checkpoints
from deeplab_jax.training import begin
from deeplab_jax.training.log import Log
from deeplab_jax.training.receipt import RECEIPTS
from deeplab_jax.training.state import TrainState


def test_a_run_that_starts_over_without_checkpoints_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(begin, "create_state", lambda *arguments: Mock(spec=TrainState))
    checkpoints = Mock(spec=Checkpoints)
    checkpoints.latest_step.return_value = None

    def start():
        log = Log(None, Console(file=io.StringIO(), width=1000))
        begin.restore_or_create_state(Mock(spec=begin.Setup), str(tmp_path), checkpoints, log, None)
        return log.console.file.getvalue()

    assert start() == ""
    (tmp_path / RECEIPTS).write_text('{"step": 0, "samples": "", "state": ""}\n')
    assert "has the log of a run, but no checkpoint. The run starts at step 0" in start()
