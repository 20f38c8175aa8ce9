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


def test_a_prefix_of_every_name_is_removed(tmp_path):
    state = state_dicts.read(save(tmp_path, {f"module._orig_mod.{name}": value for name, value in STATE.items()}))
    assert set(state.tensors) == set(STATE)
    assert len(state.notes) == 2
    mixed = {"module.a": np.ones(1), "b": np.ones(1)}
    assert set(state_dicts.read(save(tmp_path, mixed)).tensors) == set(mixed)


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
        ("empty.safetensors", b"", "damaged"),
        ("notes.txt", b"hello", "suffix '.txt'"),
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
    with pytest.raises(CheckpointError, match="does not contain tensors"):
        state_dicts.read(save(tmp_path, {}))
    with pytest.raises(CheckpointError, match="suffix"):
        state_dicts.write(str(tmp_path / "x.npz"), STATE, {})


def test_without_pytorch_the_error_for_a_pickle_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pip install torch"):
        state_dicts.read(str(tmp_path / "x.pth"))


class TestPickles:
    """Tests that need PyTorch."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.fixture
    def state(self, torch):
        return {name: torch.from_numpy(np.array(value)) for name, value in STATE.items()}

    def test_wrappers_are_removed_and_their_metadata_is_kept(self, torch, state, tmp_path):
        from argparse import Namespace

        torch.save({"state_dict": state, "meta": {"config": "model = dict()"}, "args": Namespace(lr=1)}, tmp_path / "x.pth")
        read = state_dicts.read(str(tmp_path / "x.pth"))
        np.testing.assert_array_equal(read.tensors["a.weight"], STATE["a.weight"])
        assert read.meta == {"config": "model = dict()"}

    @pytest.mark.parametrize("key", ["model_ema", "state_dict_ema"])
    def test_a_moving_average_in_its_own_entry_is_used_on_request(self, torch, state, tmp_path, key):
        average = {f"module.{name}": 2 * value for name, value in state.items()} | {"n_averaged": torch.tensor(3)}
        torch.save({"model": state, key: average}, tmp_path / "x.pth")
        np.testing.assert_array_equal(state_dicts.read(str(tmp_path / "x.pth")).tensors["a.weight"], STATE["a.weight"])
        averaged = state_dicts.read(str(tmp_path / "x.pth"), ema=True)
        assert set(averaged.tensors) == set(STATE)
        np.testing.assert_array_equal(averaged.tensors["a.weight"], 2 * STATE["a.weight"])

    @pytest.mark.parametrize("ema", [False, True])
    def test_mmengine_stores_the_average_in_place_of_the_weights(self, torch, state, tmp_path, ema):
        torch.save({"state_dict": state, "ema_state_dict": {"steps": torch.tensor(3)}}, tmp_path / "x.pth")
        read = state_dicts.read(str(tmp_path / "x.pth"), ema=ema)
        np.testing.assert_array_equal(read.tensors["a.weight"], STATE["a.weight"])
        assert read.notes == ("the weights come from the file's 'state_dict' entry", state_dicts.SWAPPED)

    def test_bfloat16_becomes_float32_with_a_note(self, torch, tmp_path):
        torch.save({"a": torch.ones(2, dtype=torch.bfloat16)}, tmp_path / "x.bin")
        read = state_dicts.read(str(tmp_path / "x.bin"))
        assert read.tensors["a"].dtype == np.float32
        assert "bfloat16" in read.notes[0]

    @pytest.mark.parametrize("make", ["to_sparse", "cfloat"])
    def test_sparse_and_complex_tensors_are_refused(self, torch, tmp_path, make):
        torch.save({"a": getattr(torch.ones(2), make)()}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="in a"):
            state_dicts.read(str(tmp_path / "x.pth"))

    def test_a_file_with_code_is_refused_and_the_code_is_not_run(self, torch, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        torch.save({"a": torch.ones(1), "b": Evil()}, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="could run code") as error:
            state_dicts.read(str(tmp_path / "x.pth"))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("keep", [0, 10, 500, -20])
    def test_a_truncated_file_is_a_one_line_error(self, torch, tmp_path, keep):
        torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
        (tmp_path / "x.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=r"damaged|truncated") as error:
            state_dicts.read(str(tmp_path / "x.pth"))
        assert "\n" not in str(error.value)

    def test_a_written_file_loads_as_a_bare_state_dict(self, torch, tmp_path):
        state_dicts.write(str(tmp_path / "x.pth"), STATE, {"ignored": 1})
        state = torch.load(tmp_path / "x.pth", weights_only=True)
        assert state["a.num_batches_tracked"].dtype == torch.int64
        np.testing.assert_array_equal(state["a.weight"].numpy(), STATE["a.weight"])
