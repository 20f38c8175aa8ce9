"""Hostile pickles. Each is refused in one line, or ignored, without executing anything and in bounded memory."""

import io
import pickle
import tracemalloc

import pytest
from torch_writer import Call, Name, Raw, write_legacy, write_zip

from deeplab_jax.errors import CheckpointError
from deeplab_jax.weights import state_dicts, unpickle

DEEP = 20_000  # far above the limit on recursion


def _double(start: bytes, join: bytes, levels: int) -> bytes:
    """Return operations that build an object with 2 ** levels leaves from `levels` small ones."""
    operations = [start + b"q\0"]
    for level in range(levels):
        operations.append(b"(h" + bytes([level]) + b"h" + bytes([level]) + join + b"q" + bytes([level + 1]))
    return b"".join(operations)


CODE = {
    "os.system": Call(Name("os system"), ("touch RAN",)),
    "posix.system": Call(Name("posix system"), ("touch RAN",)),
    "nt.system": Call(Name("nt system"), ("touch RAN",)),
    "subprocess": Call(Name("subprocess Popen"), (["touch", "RAN"],)),
    "eval": Call(Name("builtins eval"), ("open('RAN', 'w')",)),
    "exec in Python 2": Call(Name("__builtin__ exec"), ("open('RAN', 'w')",)),
    "open": Call(Name("builtins open"), ("RAN", "w")),
    "an attribute of os": Call(
        Call(Name("builtins getattr"), (Call(Name("builtins __import__"), ("os",)), "system")), ("touch RAN",)
    ),
    "runpy": Call(Name("runpy run_path"), ("RAN",)),
    "importlib": Call(Name("importlib import_module"), ("antigravity",)),
    "a pickle in a pickle": Call(Name("pickle loads"), (b"cos\nsystem\n.",)),
    "INST": Raw(b"(X\x09\0\0\0touch RANios\nsystem\n"),
    "OBJ": Raw(b"(cos\nsystem\nX\x09\0\0\0touch RANo"),
    "NEWOBJ": Raw(b"csubprocess\nPopen\nX\x09\0\0\0touch RAN\x85\x81"),
    "STACK_GLOBAL": Raw(b"X\x02\0\0\0osX\x06\0\0\0system\x93X\x09\0\0\0touch RAN\x85R"),
    "a state": Call(Name("torch.nn Module"), state=Call(Name("os popen"), ("touch RAN",))),
}

DAMAGE = {
    "an unknown operation": Raw(b"\xff"),
    "an extension": Raw(b"\x82\x01"),
    "an empty stack": Raw(b"0000"),
    "no mark": Raw(b"t"),
    "a mark only": Raw(b"("),
    "a missing memo entry": Raw(b"j\xff\xff\xff\x7f"),
    "a call of a string": Raw(b"X\x02\0\0\0os)R"),
    "a call without a tuple": Raw(b"ca\nb\nNR"),
    "an odd number of entries": Raw(b"}(Nu"),
    "entries of a list": Raw(b"](NNu"),
    "items of a dict": Raw(b"}Na"),
    "an endless LONG4": Raw(b"\x8b\xff\xff\xff\x7f1"),
    "a negative LONG4": Raw(b"\x8b\xff\xff\xff\xff1"),
    "an endless string": Raw(b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa"),
    "endless bytes": Raw(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fa"),
    "a number with many digits": Raw(b"L" + b"9" * 100_000 + b"L\n"),
    "a name that is a number": Raw(b"K\x01K\x02\x93"),
    "invalid UTF-8": Raw(b"X\x01\0\0\0\xff"),
}

BOMBS = {
    "2 ** 100 list items": Raw(_double(b"]", b"l", 100)),
    "2 ** 100 tuple items as a key": Raw(b"}" + _double(b")", b"t", 100) + b"Ns"),
    "2 ** 100 set items": Raw(_double(b"]", b"\x91", 100)),
    "deep lists": Raw(b"]" * DEEP + b"a" * (DEEP - 1)),
    "a deep tuple as a key": Raw(b"}N" + b"\x85" * DEEP + b"Ns"),
    "deep dicts": Raw(b"}" + b"X\x01\0\0\0a}" * DEEP + b"s" * DEEP),
    "deep calls": Raw(b"ca\nb\nN" + b"\x85R" * 1 + b"0ca\nb\n" + b"N\x85R" * DEEP),
    "a deep state": Raw(b"ca\nb\n)R" + b"q\0ca\nb\n)Rh\0b" * DEEP),
    "many parameters around nothing": Raw(
        b"ctorch._utils\n_rebuild_parameter\nN\x85R" + b"q\0ctorch._utils\n_rebuild_parameter\nh\0\x85R" * DEEP
    ),
    "a list that contains itself": Raw(b"]q\0h\0a"),
    "a dict that contains itself": Raw(b"}q\0X\x01\0\0\0ah\0s"),
    "a call that contains itself": Raw(b"ca\nb\n)Rq\0h\0b"),
    "a module that contains itself": Raw(
        b"ca\nb\n)Rq\0}(X\x0b\0\0\0_parameters}X\x08\0\0\0_buffers}X\x08\0\0\0_modules}X\x01\0\0\0ah\0sub"
    ),
    "a large memo index": Raw(b"Nr\xff\xff\xff\x7f"),
    "keys with equal hashes": Raw(
        b"}(" + b"".join(b"\x8a\x0d" + (i * (2**61 - 1) + 2**90).to_bytes(13, "little") + b"N" for i in range(DEEP)) + b"u"
    ),
    "many duplicates": Raw(b"]" + b"2" * DEEP),
    "one text encoded many times": Raw(
        b"](X\0\0\x01\0" + b"a" * 2**16 + b"q\0" + b"c_codecs\nencode\nh\0X\x06\0\0\0latin1\x86R" * 10_000 + b"e"
    ),
}


def assert_refused(path, message):
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as error:
            state_dicts.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    assert peak < 100e6


@pytest.mark.parametrize("writer", [write_zip, write_legacy])
@pytest.mark.parametrize("value", CODE.values(), ids=CODE)
def test_code_is_refused_and_not_run(tmp_path, monkeypatch, value, writer):
    monkeypatch.chdir(tmp_path)
    assert_refused(writer(tmp_path / "x.pth", {"state_dict": {}, "x": value}), "which can run code")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize("value", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_refused(tmp_path, value):
    assert_refused(write_zip(tmp_path / "x.pth", value), "cannot be read")


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"meta": {"a": value}}])
@pytest.mark.parametrize("value", BOMBS.values(), ids=BOMBS)
def test_bombs_use_little_memory(tmp_path, value, wrap):
    assert_refused(write_zip(tmp_path / "x.pth", wrap(value)), "x.pth")


def test_long_pickles_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "MAX_OPERATIONS", 1000)
    assert_refused(write_zip(tmp_path / "x.pth", Raw(b"N0" * 1000)), "more than 1000 operations")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_those_of_the_pickle_module(protocol):
    value = {"a": [1, -1, 2**40, 2**100, 1.5, None, True, "é", b"x", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], 3: {"b": []}}
    expected = value | {"a": [each for each in value["a"] if each != b"x"]} if protocol < 3 else value
    value = expected if protocol < 3 else value  # older protocols build bytes by a call
    assert unpickle.load(io.BytesIO(pickle.dumps(value, protocol))) == value
