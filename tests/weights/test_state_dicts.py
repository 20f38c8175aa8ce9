import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import state_dicts

STATE = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.num_batches_tracked": np.array(7)}


def save(folder, tensors, name="x.safetensors"):
    save_file(tensors, folder / name)
    return str(folder / name)


def test_safetensors_and_their_record_survive_a_round_trip(tmp_path):
    path = str(tmp_path / "x.safetensors")
    state_dicts.write(path, STATE, {"model": {"width": 8}})
    state = state_dicts.read(path)
    assert state.meta == {state_dicts.RECORD: {"model": {"width": 8}}}
    np.testing.assert_array_equal(state.tensors["a.weight"], STATE["a.weight"])
    assert state.notes == ()
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_become_float32_with_a_note(tmp_path, dtype):
    state = state_dicts.read(save(tmp_path, {"a": np.ones(2, dtype), "b": np.ones(2, np.float32)}))
    assert {x.dtype for x in state.tensors.values()} == {np.dtype(np.float32)}
    assert state.notes == (f"tensors converted from {np.dtype(dtype)} to float32: 1",)


def test_a_moving_average_next_to_the_weights_is_used_on_request(tmp_path):
    # mmcv's hook averages parameters, but not running statistics.
    tensors = {"a.w": np.zeros(2), "a.mean": np.full(2, 5.0), "ema_a_w": np.ones(2)}
    path = save(tmp_path, {name: value.astype(np.float32) for name, value in tensors.items()})
    plain, averaged = state_dicts.read(path), state_dicts.read(path, ema=True)
    assert {name: x.tolist() for name, x in plain.tensors.items()} == {"a.w": [0, 0], "a.mean": [5, 5]}
    assert {name: x.tolist() for name, x in averaged.tensors.items()} == {"a.w": [1, 1], "a.mean": [5, 5]}
    assert "--ema" in plain.notes[0]
    with pytest.raises(CheckpointError, match="does not contain a moving average"):
        state_dicts.read(save(tmp_path, STATE), ema=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.safetensors", None, "truncated"),
        ("garbage.safetensors", b"garbage", "damaged"),
        ("empty.safetensors", b"", "empty"),
        ("notes.txt", b"hello", "neither a safetensors file nor"),
    ],
)
def test_an_unreadable_file_is_a_one_line_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes((tmp_path / save(tmp_path, STATE)).read_bytes()[:-3] if content is None else content)
    with pytest.raises(CheckpointError, match=message) as error:
        state_dicts.read(str(path))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_empty_files_and_unknown_suffixes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        state_dicts.read(str(tmp_path / "none.pth"))
    with pytest.raises(CheckpointError, match="does not contain weights with names"):
        state_dicts.read(save(tmp_path, {}))
    with pytest.raises(CheckpointError, match="suffix"):
        state_dicts.write(str(tmp_path / "x.npz"), STATE, {})


def test_without_pytorch_only_safetensors_files_are_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(CheckpointError, match="pip install torch"):
        state_dicts.write(str(tmp_path / "x.pth"), STATE, {})


class TestPyTorch:
    """Tests that need PyTorch. `test_torch_files.py` tests the same without it."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.mark.parametrize("is_zip", [False, True])
    def test_what_pytorch_writes_is_read(self, torch, tmp_path, is_zip):
        tensors = {
            "layer1.0.conv1.weight": torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
            "a": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
            "b": torch.tensor(3),
        }
        torch.save({"model": tensors}, tmp_path / "x", _use_new_zipfile_serialization=is_zip)
        read = state_dicts.read(str(tmp_path / "x")).tensors
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(read[name], tensor.detach().float().numpy())

    def test_a_written_file_loads_as_a_bare_state_dict(self, torch, tmp_path):
        state_dicts.write(str(tmp_path / "x.pth"), STATE, {"ignored": 1})
        state = torch.load(tmp_path / "x.pth", weights_only=True)
        assert state["a.num_batches_tracked"].dtype == torch.int64
        np.testing.assert_array_equal(state["a.weight"].numpy(), STATE["a.weight"])
