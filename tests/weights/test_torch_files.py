import itertools
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_writer import (
    Call,
    Name,
    Persistent,
    Storages,
    dump,
    ordered,
    view,
    write_legacy,
    write_zip,
)

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import state_dicts

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1)
STATE = {"layer1.0.conv1.weight": KERNEL, "layer1.0.bn1.bias": np.ones(2, np.float32), "n": np.array(7)}


def write(path, root, storages=None, *, legacy=False):
    return (write_legacy if legacy else write_zip)(path, root, storages)


@pytest.fixture(params=[False, True], ids=["zip", "legacy"])
def legacy(request):
    return request.param


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.ckpt", "x.pth.tar", "x.bin", "x.safetensors", "x"])
def test_the_content_decides_and_not_the_suffix(tmp_path, legacy, name):
    storages = Storages()
    path = write(tmp_path / name, storages.state_dict(STATE), storages, legacy=legacy)
    tensors = state_dicts.read(path).tensors
    assert tensors.keys() == STATE.keys()
    for key, value in STATE.items():
        np.testing.assert_array_equal(tensors[key], value)
        assert tensors[key].shape == value.shape


@pytest.mark.parametrize("dtype", ["f2", "i8", "u1", "b1"])
def test_every_dtype_becomes_float32(tmp_path, legacy, dtype):
    storages = Storages()
    value = np.array([[0, 1], [1, 0]], dtype)
    path = write(tmp_path / "x.pth", {"layer1.0.conv1.weight": storages.tensor(value)}, storages, legacy=legacy)
    (read,) = state_dicts.read(path).tensors.values()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, value)


def test_bfloat16_is_the_upper_half_of_float32(tmp_path, legacy):
    upper = np.array([1.5, -2.0], np.float32).view(np.uint16)[1::2].tobytes()
    path = write(tmp_path / "x.pth", {"a": view("BFloat16Storage", 2, 0, (2,), (1,))}, {"0": (upper, 2)}, legacy=legacy)
    np.testing.assert_array_equal(state_dicts.read(path).tensors["a"], [1.5, -2.0])


def test_tensors_can_be_views_of_a_shared_storage(tmp_path, legacy):
    data = np.arange(12, dtype=np.float32)
    tensors = {
        "transposed": view("FloatStorage", 12, 0, (3, 4), (1, 3)),
        "offset": view("FloatStorage", 12, 5, (2,), (3,)),
        "scalar": view("FloatStorage", 12, 11, (), ()),
        "repeated": view("FloatStorage", 12, 2, (3,), (0,)),
        "empty": view("FloatStorage", 12, 12, (0, 4), (4, 1)),
    }
    path = write(tmp_path / "x.pth", tensors, {"0": (data.tobytes(), 4)}, legacy=legacy)
    read = state_dicts.read(path).tensors
    np.testing.assert_array_equal(read["transposed"], data.reshape(4, 3).T)
    assert [read["offset"].tolist(), read["scalar"].tolist(), read["repeated"].tolist()] == [[5, 8], 11, [2, 2, 2]]
    assert read["empty"].shape == (0, 4)


def test_big_endian_storages_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("a/data.pkl", dump({"a": view("FloatStorage", 2, 0, (2,), (1,))}))
        file.writestr("a/byteorder", "big")
        file.writestr("a/data/0", np.array([1, 2], ">f4").tobytes())
    assert state_dicts.read(str(tmp_path / "x.pth")).tensors["a"].tolist() == [1, 2]


def test_unknown_objects_next_to_the_weights_are_inert(tmp_path, legacy):
    storages = Storages()
    namespace = Call(Name("argparse Namespace"), state={"lr": 0.1})
    others = {
        "args": namespace,
        "path": Call(Name("pathlib PosixPath"), ("/", "data")),
        "history": Call(Name("mmengine.logging.history_buffer HistoryBuffer"), state={"_log_history": [1.0]}),
        "hyper_parameters": Call(Name("lightning.fabric.utilities.data AttributeDict"), items={"lr": 0.1}),
        "partial": Call(Name("functools partial"), (Name("timm.layers create"),), state=(Name("a b"), (), {}, None)),
        "nested": Call(Call(Name("builtins getattr"), (Name("a B"), "make")), (namespace, [namespace])),
        "best": Call(Name("numpy._core.multiarray scalar"), (Call(Name("numpy dtype"), ("f8", False, True)), b"\0" * 8)),
    }
    path = write(tmp_path / "x.pth", {"state_dict": storages.state_dict(STATE), **others}, storages, legacy=legacy)
    assert state_dicts.read(path).tensors.keys() == STATE.keys()


def test_numpy_arrays_and_scalars_are_read(tmp_path):
    dtype = Call(Name("numpy dtype"), ("f4", False, True), state=(3, "<", None, None, None, -1, -1, 0))
    array = Call(Name("numpy.core.multiarray _reconstruct"), (Name("numpy ndarray"), (0,), b"b"))
    data = Call(Name("_codecs encode"), (KERNEL.tobytes().decode("latin-1"), "latin1"))
    root = {
        "model": {"layer1.0.conv1.weight": array._replace(state=(1, KERNEL.shape, dtype, False, data))},
        "meta": {"miou": Call(Name("numpy.core.multiarray scalar"), (dtype, np.float32(0.5).tobytes()))},
    }
    state = state_dicts.read(write_zip(tmp_path / "x.pth", root))
    np.testing.assert_array_equal(state.tensors["layer1.0.conv1.weight"], KERNEL)
    assert state.meta == {"miou": 0.5}


@pytest.mark.parametrize("is_averaged", [False, True])
def test_a_pickled_module_has_the_tensors_of_its_state_dict(tmp_path, legacy, is_averaged):
    storages = Storages()

    def module(parameters=(), buffers=(), children=(), passing=()):
        tensors = {name: storages.tensor(np.ones(2, np.float32), parameter=True) for name in parameters}
        state = {
            "_parameters": ordered({**tensors, "bias": None}),
            "_buffers": ordered({name: storages.tensor(np.zeros(2, np.float32)) for name in buffers}),
            "_non_persistent_buffers_set": Call(Name("__builtin__ set"), (list(passing),)),
            "_modules": ordered(dict(children)),
        }
        return Call(Name("torch.nn Module"), (), state=state)

    bn = module(["weight"], ["running_mean", "grid"], passing=["grid"])
    block = module(children={"conv1": module(["weight"]), "bn1": bn})
    net = module(children={"layer1": module(children={"0": block})})
    net = module(children={"module": net}, buffers=["n_averaged"]) if is_averaged else net
    state = state_dicts.read(write(tmp_path / "x.pth", {"model": net}, storages, legacy=legacy))
    assert [name for name in state.tensors if name != "n_averaged"] == [
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
        "layer1.0.bn1.running_mean",
    ]
    assert "state_dict()" in state.notes[0]


def test_torchscript_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            file.writestr(f"net/{name}", b"")
    with pytest.raises(CheckpointError, match=r"is a TorchScript program.*torch\.jit\.load"):
        state_dicts.read(str(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello", "neither a safetensors file nor"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x1f\x8b\x08\0", "compressed file"),
        (b"(\xb5/\xfd\x04\0", "compressed file"),  # zstd
        (b"\x08\x08\x12\x07pytorch", "ONNX file"),
        (bytes(257) + b"ustar", "tar archive"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"\x08\x01\x12\x9e\xb1\x01\n\x81\x11\x12\xd1\x10", "a TensorFlow file"),  # saved_model.pb
        (b"\nV\n\x0bImageTensor\x12\x0bPlaceholder*", "a TensorFlow file"),  # frozen_inference_graph.pb
        (b"\0\0\x06\x08\x01\x1a\x02\x08\x01\0\x1c\x0f_CHECKPOINTABLE", "a TensorFlow file"),  # model.ckpt-1.index
        (b"\x83\xa4step\0\xa6params\x81\xa1a\xc7\x1d\x01", "a msgpack file, as written by Flax"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        state_dicts.read(str(tmp_path / "x.pth"))


def test_the_data_of_a_tensorflow_checkpoint_is_named(tmp_path):
    path = tmp_path / "model.ckpt-30000.data-00000-of-00001"
    path.write_bytes(b"W&\x92>@\0\x14\xbd")
    with pytest.raises(CheckpointError, match="is a TensorFlow file"):
        state_dicts.read(str(path))


@pytest.mark.parametrize("name", ["net/archive_format", "serialized_exported_program.json"])  # PyTorch 2.7 and before
def test_programs_of_torch_export_are_named(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as file:
        file.writestr(name, b"")
    with pytest.raises(CheckpointError, match=r"is a program of torch\.export.*torch\.export\.load\(FILE\)\.state_dict"):
        state_dicts.read(str(tmp_path / "x.pt2"))


@pytest.mark.parametrize(
    ("name", "advice"), [("a.npy", "Use a file with a state dict"), ("net/model.safetensors", "Extract it first")]
)
def test_a_zip_archive_of_something_else_is_named(tmp_path, name, advice):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr(name, b"")
    with pytest.raises(CheckpointError, match=rf"not one written by torch.save \(it contains '{name}'\)\. {advice}\.$"):
        state_dicts.read(str(tmp_path / "x.pth"))


@pytest.mark.parametrize("name", ["_rebuild_sparse_tensor", "_rebuild_qtensor", "_rebuild_meta_tensor_no_storage"])
def test_other_kinds_of_tensors_are_refused_if_they_are_weights(tmp_path, name):
    root = {"a": Call(Name(f"torch._utils {name}"), ())}
    with pytest.raises(CheckpointError, match=r"unsupported kind of tensor in a \("):
        state_dicts.read(write_zip(tmp_path / "x.pth", root))
    storages = Storages()
    root = {"state_dict": storages.state_dict(STATE), "optimizer": root}
    assert state_dicts.read(write_zip(tmp_path / "x.pth", root, storages)).tensors.keys() == STATE.keys()


@pytest.mark.parametrize("writer", [write_zip, write_legacy])
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, writer):
    storages = Storages()
    whole = tmp_path / "whole.pth"
    writer(whole, storages.state_dict(STATE), storages)
    content = whole.read_bytes()
    for keep in range(len(content)):
        whole.write_bytes(content[:keep])
        with pytest.raises(CheckpointError) as error:
            state_dicts.read(str(whole))
        assert "\n" not in str(error.value)


@settings(deadline=None, max_examples=150)
@given(changes=st.dictionaries(st.integers(0, 10_000), st.integers(0, 255), min_size=1, max_size=4), legacy=st.booleans())
def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path_factory, changes, legacy):
    storages = Storages()
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    write(path, {"state_dict": storages.state_dict(STATE), "meta": {"CLASSES": ["a"]}}, storages, legacy=legacy)
    content = bytearray(path.read_bytes())
    for position, value in changes.items():
        content[position % len(content)] = value
    path.write_bytes(content)
    tensors, fault = {}, ""
    try:
        tensors = state_dicts.read(str(path)).tensors
    except CheckpointError as error:
        fault = str(error)
    assert "\n" not in fault
    assert all(value.size <= len(content) for value in tensors.values())


def test_a_storage_with_a_wrong_crc_is_refused(tmp_path):
    storages = Storages()
    path = tmp_path / "x.pth"
    write_zip(path, storages.state_dict(STATE), storages)
    content = path.read_bytes()
    start = content.index(KERNEL.tobytes())
    path.write_bytes(content[:start] + b"\1" + content[start + 1 :])
    with pytest.raises(CheckpointError, match="CRC"):
        state_dicts.read(str(path))


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "1", "", "data.pkl"])
def test_a_storage_that_is_not_in_the_archive_is_refused(tmp_path, key):
    root = {"a": view("FloatStorage", 2, 0, (2,), (1,), key)}
    with pytest.raises(CheckpointError, match="cannot be read"):
        state_dicts.read(write_zip(tmp_path / "x.pth", root, {"0": (bytes(8), 4)}))


@pytest.mark.parametrize(
    "identifier", [(), ("storage",), 3, None, {}, ("storage", 1, 2, 3, 4), ("module", Name("a B"), "", "")]
)
def test_a_strange_persistent_id_is_refused(tmp_path, legacy, identifier):
    root = {"a": Call(Name("torch._utils _rebuild_tensor_v2"), (Persistent(identifier), 0, (1,), (1,)))}
    with pytest.raises(CheckpointError, match="cannot be read"):
        state_dicts.read(write(tmp_path / "x.pth", root, legacy=legacy))


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides"),
    [
        (2, 0, (3,), (1,)),
        (2, 2, (1,), (1,)),
        (2, -1, (1,), (1,)),
        (2, 1, (2,), (-1,)),
        (2, 0, (-2,), (1,)),
        (2, 0, (2,), (1, 1)),
        (2, 0, (2**40, 2**40), (0, 0)),
        (2, 0, (10**6,), (0,)),
        (2, 0, (2.0,), (1,)),
        (2, 0, (True,), (1,)),
        (2, 0, 2, 1),
        (2**40, 0, (2**40,), (1,)),
        (2**70, 0, (1,), (1,)),
        (-1, 0, (1,), (1,)),
        (3, 0, (1,), (1,)),
        (2, 0, (1,) * 40, (1,) * 40),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, legacy, count, offset, shape, strides):
    root = {"a": view("FloatStorage", count, offset, shape, strides)}
    with pytest.raises(CheckpointError, match="cannot be read"):
        state_dicts.read(write(tmp_path / "x.pth", root, {"0": (bytes(8), 4)}, legacy=legacy))


def test_a_zip_bomb_is_refused(tmp_path):
    root = {"a": view("FloatStorage", 2**20, 0, (2**20,), (1,))}
    path = write_zip(tmp_path / "x.pth", root, {"0": (bytes(2**22), 4)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="expands"):
        state_dicts.read(path)


def test_storages_shared_by_very_many_tensors_are_refused(tmp_path):
    root = {f"a{i}": view("FloatStorage", 10_000, 0, (10_000,), (1,)) for i in range(1000)}
    with pytest.raises(CheckpointError, match="far more values"):
        state_dicts.read(write_zip(tmp_path / "x.pth", root, {"0": (bytes(40_000), 4)}))


def test_names_that_cannot_be_printed_are_refused(tmp_path):
    storages = Storages()
    for name in ("a\nb", "a\x1b[2J", "a\u202eb"):
        with pytest.raises(CheckpointError, match="not printable"):
            state_dicts.read(write_zip(tmp_path / "x.pth", {name: storages.tensor(KERNEL)}, storages))


def test_very_many_sets_of_weights_are_refused(tmp_path):
    storages = Storages()
    tensor = storages.tensor(KERNEL)
    names = (f"{'.'.join(letters)}.layer1.0.conv1.weight" for letters in itertools.product("abcdefgh", repeat=3))
    with pytest.raises(CheckpointError, match="more than 50 sets"):
        state_dicts.read(write_zip(tmp_path / "x.pth", dict.fromkeys(names, tensor), storages))
