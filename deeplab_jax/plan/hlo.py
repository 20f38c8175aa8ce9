"""Read the collectives, convolutions, copies and memory traffic of a compiled program from its HLO text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from deeplab_jax.models.cost import Layer

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Instructions that only name or group values. The end of an asynchronous instruction is counted at its start.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota")
_CALLING = ("while", "conditional", "call")  # the instructions of the called computations are counted instead

_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w-]*)\((?P<operands>[^)]*)\)(?P<rest>.*)"
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """What a program moves between devices and to and from device memory. Loop bodies count once, however often they run.

    Attributes:
      collectives: The (count, bytes) of collective operations for each "KIND, PART", such as "all-reduce, stage 1 forward".
      convolutions: The number of convolutions for each direction and kind, such as "forward" or "backward, convBackwardInput".
      copies: The number of copies and transpositions.
      copied: The bytes that they write.
      moved: The bytes that all instructions read from and write to device memory. An instruction that reads only a part of an
        array counts with the full array, so this is an upper bound.
    """

    collectives: dict[str, tuple[int, int]]
    convolutions: dict[str, int]
    copies: int
    copied: int
    moved: int


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line of HLO text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @property
    def origin(self) -> str:
        """The JAX operation that the instruction comes from, such as "jit(step)/jvp(DeepLabV3)/aspp/add", or ""."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


def measure_traffic(text: str) -> Traffic:
    """Return the traffic of a compiled program, given as HLO text."""
    computations = dict(_parse_computations(text))
    collectives: dict[str, tuple[int, int]] = {}
    convolutions: collections.Counter[str] = collections.Counter()
    copied: list[int] = []
    moved = 0
    for instructions in computations.values():
        convolutions.update(_describe_convolution(each) for each in instructions if _is_convolution(each))
    by_name = {each.name: each for instructions in computations.values() for each in instructions}
    for instruction, shapes in _iterate_scheduled(computations):
        opcode = instruction.opcode.removesuffix("-start")
        moved += _count_moved_bytes(instruction, shapes)
        if opcode in COLLECTIVES:
            key = f"{opcode}, {_describe_origins(instruction, by_name)}"
            count, size = collectives.get(key, (0, 0))
            collectives[key] = (count + 1, size + sum(count_bytes(shapes.get(name, "")) for name in instruction.operands))
        if opcode in ("copy", "transpose") or (opcode == "fusion" and instruction.name.startswith(("copy", "transpose"))):
            # The start of an asynchronous copy only prefetches a value into fast memory, or evicts it.
            copied += [count_bytes(instruction.shape)] if instruction.opcode != "copy-start" else []
    return Traffic(collectives, dict(convolutions), len(copied), sum(copied), moved)


def _parse_computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Yield the name and the instructions of each computation. The name of the main one is ""."""
    name, instructions = "", list[Instruction]()
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            operands = tuple(re.findall(r"%([\w.-]+)", match["operands"]))
            instructions.append(Instruction(match["name"], match["shape"], match["opcode"], operands, match["rest"]))
        elif header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name, instructions = "" if header[1] else header[2], []
        elif line.startswith("}"):
            yield name, instructions


def _iterate_scheduled(computations: dict[str, list[Instruction]]) -> Iterator[tuple[Instruction, dict[str, str]]]:
    """Yield the instructions of the main computation and of those that it calls, each with the shapes of its computation."""
    queue, seen = [""], {""}
    while queue:
        instructions = computations.get(queue.pop(), [])
        shapes = {each.name: each.shape for each in instructions}
        for instruction in instructions:
            yield instruction, shapes
            if instruction.opcode in _CALLING:
                called = set(re.findall(r"%([\w.-]+)", instruction.rest)) & set(computations) - seen
                seen |= called
                queue += sorted(called)


def _count_moved_bytes(instruction: Instruction, shapes: dict[str, str]) -> int:
    """Return the bytes that an instruction reads from and writes to device memory."""
    if instruction.opcode in _FREE + _CALLING or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "slice-start":  # ((source), slice, context)
        source, _, part = instruction.shape.partition("), ")
        is_read = count_bytes(source, in_memory=True) > 0
        return is_read * count_bytes(part) + count_bytes(part, in_memory=True)
    if instruction.opcode.endswith("-start"):  # (result, source, context) or, for collectives, the result alone
        return sum(count_bytes(shapes.get(name, ""), in_memory=True) for name in instruction.operands) * 2
    read = sum(count_bytes(shapes.get(name, ""), in_memory=True) for name in set(instruction.operands))
    return read + count_bytes(instruction.shape, in_memory=True)


def count_bytes(shape: str, in_memory: bool = False) -> int:
    """Return the size of an array or tuple in bytes, given its shape in HLO text, such as "bf16[2,8]{1,0}".

    Args:
      shape: The shape.
      in_memory: Whether to count only arrays in device memory. On a TPU, arrays with S(1) are in faster memory on the chip.
    """
    total = 0
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if in_memory and re.search(r"S\([1-9]", layout):
            continue
        bits = re.search(r"\d+", dtype)
        total += math.prod(int(size) for size in sizes.split(",") if size) * (int(bits[0]) if bits else 8) // 8
    return total


def _is_convolution(instruction: Instruction) -> bool:
    return instruction.opcode == "convolution" or "__cudnn$conv" in instruction.rest


def _describe_convolution(instruction: Instruction) -> str:
    """Return the direction of a convolution, and cuDNN's name for its kind."""
    direction = "backward" if "transpose(" in instruction.origin else "forward"
    kind = re.search(r"__cudnn\$(\w+)", instruction.rest)
    return f"{direction}, {kind[1]}" if kind else direction


def _describe_origins(collective: Instruction, by_name: dict[str, Instruction]) -> str:
    """Return the part of the training step that a collective belongs to.

    XLA combines collectives that do not wait for each other, and drops their names. The names of their operands tell more.
    """
    queue, seen, parts = [collective], {collective.name}, set[str]()
    while queue:
        instruction = queue.pop()
        if instruction.origin:
            parts.add(describe_origin(instruction.origin))
            continue
        operands = {name for name in instruction.operands if name in by_name} - seen
        seen |= operands
        queue += [by_name[name] for name in operands]
    return parts.pop() if len(parts) == 1 else "several parts together" if parts else "unknown part"


def describe_origin(origin: str) -> str:
    """Return the part of the training step that an operation belongs to, such as "stage 1 backward" or "update"."""
    direction = "backward" if "transpose(" in origin else "forward"
    _, is_network, path = origin.partition("(DeepLabV3)")
    if is_network:
        return f"{Layer(path.lstrip(')/')).part} {direction}"
    return f"loss {direction}" if "jvp(" in origin else "update"
