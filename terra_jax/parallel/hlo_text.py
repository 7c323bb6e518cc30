"""XLA's optimised programs as text: computations, instructions, arrays with their layout in memory."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
"""Element type -> size; tokens and opaque handles are of none."""


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
        dtype: as XLA writes it.
        shape: logical shape.
        layout: text between its braces, such as "1,0:T(8,128)(2,1)S(1)".
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return math.prod(self.shape) * BITS.get(self.dtype, 0) // 8

    @cached_property
    def hbm_bytes(self) -> int:
        """Size as it lies in main memory, whose tiles are filled up; 0 for what lies on the chip (spaces but 0)."""
        if re.search(r"S\([1-9]\d*\)", self.layout):
            return 0
        order, _, rest = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", rest)
        if tile is None or not order:
            return self.bytes
        sides = [int(side) for side in tile[1].split(",")]
        minor_first = [int(i) for i in order.split(",")]
        shape = list(self.shape)
        for dimension, side in zip(minor_first, reversed(sides), strict=False):
            shape[dimension] = -(-shape[dimension] // side) * side
        return math.prod(shape) * BITS.get(self.dtype, 0) // 8


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: without the percent sign.
        opcode: "fusion", "while", "all-gather" ...
        results: the arrays of its result, a tuple's one after the other.
        operands: names.
        attributes: all that follows the operands, or a constant's or parameter's argument.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under attributes such as "calls" or "body"."""
        found: list[str] = []
        for key in keys:
            match = re.search(rf"\b{key}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes)
            if match:
                found += [match[1]] if match[1] else re.findall(r"%([\w.\-]+)", match[2])
        return found


@dataclass
class Computation:
    """Instructions by name, in order; the last one printed as ROOT is its result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name -> instructions that take it."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        found = (i for i in self.instructions.values() if i.opcode == "parameter")
        return {int(instruction.attributes.split(")")[0]): instruction for instruction in found}


@dataclass
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Read what `compiled.as_text()` printed.

    Raises:
        ValueError: it is no HLO module.
    """
    module = Module({}, "")
    current: Computation | None = None
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
            if header:
                current = Computation(header[2])
                module.computations[current.name] = current
                module.entry = current.name if header[1] else module.entry
        elif line.startswith("}"):
            current = None
        elif (instruction := _instruction(line)) is not None:
            current.instructions[instruction.name] = instruction
            if line.lstrip().startswith("ROOT "):
                current.root = instruction.name
    if not module.entry:
        raise ValueError("this is no optimised HLO module")
    return module


def _instruction(line: str) -> Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if match is None:
        return None
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    results = tuple(_arrays(rest[:end]))
    opcode, _, rest = rest[end:].lstrip().partition("(")
    end = _closing("(" + rest, 0) - 1
    inside, attributes = rest[:end], rest[end + 1 :]
    literal = opcode in ("constant", "parameter", "iota")
    operands = () if literal else tuple(re.findall(r"%([\w.\-]+)", inside)) or _bare(inside)
    return Instruction(match[1], opcode, results, operands, f"{inside}){attributes}" if literal else attributes)


def _bare(inside: str) -> tuple[str, ...]:
    """Operands that are printed without percent signs."""
    return tuple(word.split()[-1] for word in re.sub(r"/\*.*?\*/", "", inside).split(",") if word.strip())


def _arrays(text: str) -> Iterator[Array]:
    for dtype, shape, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?", text):
        yield Array(dtype, tuple(int(side.lstrip("<=")) for side in shape.split(",") if side), layout)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")
