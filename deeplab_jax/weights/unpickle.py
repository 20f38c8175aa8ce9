"""Read pickles without executing anything.

A pickle is a program that builds objects: it names functions and classes, and calls them. This interpreter performs no call and
imports nothing. Each call becomes a `Stub` that records what would have been called, with which arguments.
"""

import dataclasses
import mmap
import pickletools
import re
from collections.abc import Callable
from typing import IO, Any, cast

# More operations than any real checkpoint needs: one with 1000 tensors and their optimizer state has about 150,000.
MAX_OPERATIONS = 5_000_000
_MAX_KEY = 2**60  # many larger integers can have the same hash, which makes a dict slow

# The functions that attacks call. None of them is ever called here, so this list only has to tell an attack from a checkpoint
# that contains other unknown objects.
_SUSPICIOUS = re.compile(
    r"(os|importlib|ctypes|asyncio|http|urllib|requests|pip)(\.|$)"
    r"|(posix|nt|subprocess|_posixsubprocess|shutil|socket|sys|pty|commands|runpy|webbrowser|code|codeop|pdb|bdb|timeit)$"
    r"|(profile|cProfile|marshal|pickle|_pickle)$"
)
_SUSPICIOUS_BUILTINS = re.compile(r"(eval|exec|execfile|compile|open|input|breakpoint|__import__|globals|locals)(\.|$)")


class UnsafePickleError(Exception):
    """A pickle that names a function which a checkpoint has no reason to call."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A function or class that a pickle names.

    Attributes:
      name: The dotted name, with the module.
    """

    name: str


@dataclasses.dataclass(slots=True, eq=False)
class Stub:
    """An object that a pickle would have built by calling a function or class.

    Attributes:
      name: The dotted name of what would have been called, or PERSISTENT.
      args: The arguments.
      state: The object's state, usually a dict of its attributes.
      items: The object's entries, if it is a kind of dict.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None


PERSISTENT = "persistent id"  # the name of a stub for data outside the pickle


def load(file: IO[bytes] | mmap.mmap) -> Any:
    """Read one pickle, and leave the file's position after it.

    Returns:
      Plain values, lists, tuples, dicts, `Global` and `Stub`. Sets become lists. Dict entries are left out if their keys are
      neither strings nor numbers.

    Raises:
      UnsafePickleError: The pickle names a function such as os.system.
      ValueError, TypeError, IndexError, KeyError: The pickle is damaged or too long.
    """
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", file))):
        if count == MAX_OPERATIONS:
            raise ValueError(f"its pickle has more than {MAX_OPERATIONS} operations")
        if opcode.name in _PUSH:
            machine.stack.append(argument)
        elif opcode.name in _PUSH_NEW:
            machine.stack.append(_PUSH_NEW[opcode.name]())
        elif opcode.name in _STEPS:
            _STEPS[opcode.name](machine, argument)
        elif opcode.name not in ("PROTO", "FRAME", "STOP", "READONLY_BUFFER"):
            raise ValueError(f"its pickle has the operation {opcode.name}")
    return machine.stack.pop()


class _Machine:
    """The stack and memo of a pickle that is being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []  # the sizes of the stack at MARK
        self.memo: dict[int, Any] = {}

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()  # protocols 0 and 1 remove a mark in this way
        else:
            self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def find(self, module: str, name: str) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a global's name is not a string")
        is_builtin = module in ("builtins", "__builtin__") and _SUSPICIOUS_BUILTINS.match(name)
        # Classes such as os._Environ and os.stat_result are values in some checkpoints.
        is_function = not name.startswith("_") and not name.endswith("_result")
        if is_builtin or (is_function and _SUSPICIOUS.match(module)):
            raise UnsafePickleError(f"{module}.{name}"[:100])
        self.stack.append(Global(f"{module}.{name}"))

    def call(self, function: Any, args: Any) -> None:
        if not (isinstance(function, Global | Stub) and isinstance(args, tuple)):
            raise TypeError("a call without a function or arguments")
        # The result of a call has no name of its own, so it cannot be mistaken for what was called.
        self.stack.append(Stub(function.name if isinstance(function, Global) else "", args))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Stub):
            target.items = target.items if target.items is not None else {}
            target = target.items
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("entries outside a dict")
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if _is_key(key))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Stub):  # a stub for a kind of list does not need its items
            raise TypeError("items outside a list")


def _is_key(key: Any) -> bool:
    # Hashing a tuple can take exponential time, or overflow the stack.
    return isinstance(key, str | bytes | float) or (isinstance(key, int) and abs(key) < _MAX_KEY)


def _make_dict(machine: _Machine, _: Any) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    machine.set_items(items)


def _build_tuple(size: int) -> Callable[[_Machine, Any], None]:
    def build(machine: _Machine, _: Any) -> None:
        items = tuple(machine.stack.pop() for _ in range(size))
        machine.stack.append(items[::-1])

    return build


def _set_state(machine: _Machine, _: Any) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if isinstance(target, Stub):
        target.state = state


def _make_instance(machine: _Machine, argument: str) -> None:
    args = tuple(machine.pop_to_mark())
    machine.find(*argument.split(" ", 1))
    machine.call(machine.stack.pop(), args)


def _make_object(machine: _Machine, _: Any) -> None:
    function, *args = machine.pop_to_mark()
    machine.call(function, tuple(args))


def _call(machine: _Machine, _: Any) -> None:
    args = machine.stack.pop()
    machine.call(machine.stack.pop(), args)


def _call_with_keywords(machine: _Machine, _: Any) -> None:
    machine.stack.pop()  # no class that we interpret has keyword arguments
    _call(machine, None)


def _find_on_stack(machine: _Machine, _: Any) -> None:
    name = machine.stack.pop()
    machine.find(machine.stack.pop(), name)


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


_VALUE = re.compile("(SHORT_)?BIN(INT[12]?|STRING|BYTES8?|UNICODE8?|FLOAT)|INT|LONG[14]?|STRING|UNICODE|FLOAT|BYTEARRAY8")
_PUSH = frozenset(opcode.name for opcode in pickletools.opcodes if _VALUE.fullmatch(opcode.name))
_PUSH_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "LIST": lambda m, _: m.stack.append(m.pop_to_mark()),
    "FROZENSET": lambda m, _: m.stack.append(m.pop_to_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_to_mark())),
    "TUPLE1": _build_tuple(1),
    "TUPLE2": _build_tuple(2),
    "TUPLE3": _build_tuple(3),
    "DICT": _make_dict,
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.append(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "GLOBAL": lambda m, argument: m.find(*argument.split(" ", 1)),
    "STACK_GLOBAL": _find_on_stack,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "NEWOBJ_EX": _call_with_keywords,
    "INST": _make_instance,
    "OBJ": _make_object,
    "BUILD": _set_state,
    "PERSID": lambda m, argument: m.stack.append(Stub(PERSISTENT, (argument,))),
    "BINPERSID": lambda m, _: m.stack.append(Stub(PERSISTENT, (m.stack.pop(),))),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda m, _: _put(m, len(m.memo)),
    "GET": lambda m, index: m.stack.append(m.memo[index]),
    "BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
}
