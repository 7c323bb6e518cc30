"""What a compiled program does in one run: matrix products, bytes through memory, collectives.

Taken from the optimised HLO text of one device's program, loop bodies as often as they run. The compiler's own cost
analysis is not used: it counts the body of a scan once.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from terra_jax.parallel.expected_trips import noted_trips
from terra_jax.parallel.flops import touched
from terra_jax.parallel.hlo_text import Array, Computation, Instruction, Module, parse

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "domain", "add-dependency", "recv", "recv-done", "send", "send-done",
}  # fmt: skip
_HANDLES = 'custom_call_target="(Assume|AsyncColl|AllocateB)'
_VIEWS = ("bitcast", "reshape", "transpose", "copy", "convert")
"""What may stand between a fusion's parameter and its slice without touching more of it than the slice."""


@dataclass(frozen=True)
class Product:
    """`count` products of m x k with k x n matrices.

    Attributes:
        dtype: of the operands.
        passes: of the matrix unit for the wanted precision; 6 for float32 to its last bit.
    """

    count: int
    m: int
    k: int
    n: int
    dtype: str
    passes: int = 1

    @property
    def flops(self) -> float:
        """Operations, 2 a multiply-add, without padding."""
        return 2.0 * self.count * self.m * self.k * self.n


@dataclass(frozen=True)
class Collective:
    """One kind of exchange.

    Attributes:
        kind: one of COLLECTIVES, or "dcn" for what is sent through the hosts to another slice.
        bytes: a device's operand.
        group: the first group's devices, as positions in the mesh.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]


@dataclass
class Cost:
    """Sums over one run on one device."""

    products: Counter[Product] = field(default_factory=Counter)
    collectives: Counter[Collective] = field(default_factory=Counter)
    bytes: float = 0.0
    host_transfers: int = 0

    @property
    def flops(self) -> float:
        """Operations of all products."""
        return sum(times * product.flops for product, times in self.products.items())

    def add(self, other: "Cost", times: int = 1) -> None:
        """Add another's sums, so many times."""
        for mine, theirs in ((self.products, other.products), (self.collectives, other.collectives)):
            for key, count in theirs.items():
                mine[key] += times * count  # type: ignore[index]
        self.bytes += times * other.bytes
        self.host_transfers += times * other.host_transfers


def cost_of(text: str, devices: int) -> Cost:
    """Cost of one run of a compiled program.

    Args:
        text: `compiled.as_text()`.
        devices: number of them that the program runs on.
    """
    module = parse(text)
    return _Walk(module, devices).cost(module.entry)


class _Walk:
    """Costs of computations, each worked out once."""

    def __init__(self, module: Module, devices: int):
        self.module = module
        self.devices = devices
        self.known: dict[str, Cost] = {}

    def cost(self, name: str) -> Cost:
        if name not in self.known:
            self.known[name] = self._cost(self.module.computations[name])
        return self.known[name]

    def _cost(self, computation: Computation) -> Cost:
        total, channels = Cost(), set[tuple[str, str]]()
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            if opcode == "while":
                (body,) = instruction.called("body")
                total.add(self.cost(body), self._trips(instruction))
            elif opcode == "conditional":
                names = instruction.called("branch_computations", "true_computation", "false_computation")
                total.add(max((self.cost(name) for name in names), key=lambda cost: (cost.flops, cost.bytes)))
            elif opcode in ("call", "async-start"):
                for name in instruction.called("to_apply", "calls", "called_computation"):
                    total.add(self.cost(name))
            else:
                self._single(instruction, computation, total, channels)
        return total

    def _single(
        self, instruction: Instruction, computation: Computation, total: Cost, channels: set[tuple[str, str]]
    ) -> None:
        """Add an instruction that runs by itself, a fusion with all that is in it."""
        for inner, place in self._with_fused(instruction, computation):
            kind = inner.opcode.removesuffix("-start")
            if inner.opcode in ("dot", "convolution"):
                total.products[_product(inner, place)] += 1
            elif kind in COLLECTIVES:
                # An exchange that overlaps with others' work is spread over several fusions of one channel.
                channel = re.search(r"channel_id=(\d+)", inner.attributes)
                key = (kind, channel[1] if channel else inner.name)
                if key not in channels:
                    channels.add(key)
                    total.collectives[self._collective(kind, inner, place)] += 1
            elif inner.opcode == "send":
                self._sent(inner, place, total)
            elif inner.opcode in ("infeed", "outfeed") or "MoveToHost" in inner.attributes:
                total.host_transfers += 1
        total.bytes += self._traffic(instruction, computation)

    def _with_fused(self, instruction: Instruction, place: Computation) -> Iterator[tuple[Instruction, Computation]]:
        yield instruction, place
        if instruction.opcode == "fusion":
            for name in instruction.called("calls"):
                called = self.module.computations[name]
                for inner in called.instructions.values():
                    yield from self._with_fused(inner, called)

    def _collective(self, kind: str, instruction: Instruction, place: Computation) -> Collective:
        operands = [array for name in instruction.operands for array in place.instructions[name].results]
        if kind == "all-reduce" and "all-reduce-scatter" in place.name:
            kind = "reduce-scatter"  # how it is spelt on TPU
        group = tuple(group_of(instruction.attributes, self.devices))
        return Collective(kind, sum(array.bytes for array in operands), group)

    def _sent(self, instruction: Instruction, place: Computation, total: Cost) -> None:
        array = place.instructions[instruction.operands[0]].results[0]
        if "megascale" in instruction.attributes:
            total.collectives[Collective("dcn", array.bytes, ())] += 1
        else:
            total.host_transfers += 1

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as the compiler knows, as was noted, or by the constant in its condition."""
        if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        if (noted := noted_trips(loop.attributes)) is not None:
            return noted
        (name,) = loop.called("condition")
        condition = self.module.computations[name]
        tests = (pair for test in condition.instructions.values() for pair in self._with_fused(test, condition))
        constants = [
            int(test.attributes.split(")")[0])
            for test, _ in tests
            if test.opcode == "constant" and test.results[0].dtype in ("s32", "u32", "s64")
        ]
        return max([1, *constants])

    def _traffic(self, instruction: Instruction, place: Computation) -> float:
        """Bytes that an instruction reads from main memory and writes there."""
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0.0
        if opcode == "custom-call" and re.search(_HANDLES, instruction.attributes):
            return 0.0
        operands = [place.instructions[name].results for name in instruction.operands]
        if opcode == "copy-start":
            return float(sum(array.hbm_bytes for array in instruction.results[:2]))
        if opcode in ("slice-start", "dynamic-slice-start"):  # pieces of a whole that is fetched ahead
            whole, part = instruction.results[:2]
            return whole.hbm_bytes * part.bytes / whole.bytes + part.hbm_bytes
        written = sum(array.hbm_bytes for array in instruction.results)
        if opcode.endswith("-start"):
            return float(sum(array.hbm_bytes for arrays in operands for array in arrays) + written / 2)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return float(min(written, _size(operands[0])) + written)
        if opcode == "dynamic-update-slice":
            return 2.0 * min(_size(operands[1]) or written, written)
        if opcode == "fusion":
            (name,) = instruction.called("calls")
            return self._read(name, operands) + min(written, self._written(self.module.computations[name]))
        return float(sum(_size(arrays) for arrays in operands) + written)

    def _read(self, fused: str, operands: list[tuple[Array, ...]]) -> float:
        """What a fusion reads of its operands: only the slices, where it takes nothing but slices."""
        computation = self.module.computations[fused]
        total = 0.0
        for number, arrays in enumerate(operands):
            whole = _size(arrays)
            used = self._used(computation, computation.parameters[number].name) if whole else 0.0
            total += min(whole, used)
        return total

    def _used(self, computation: Computation, name: str) -> float:
        """Bytes of a value that a fused computation touches."""
        used = 0.0
        for user in computation.users.get(name, []):
            if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                used += sum(array.bytes for array in user.results)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # updated in place
            elif user.opcode in _VIEWS:
                used += self._used(computation, user.name)
            elif user.opcode == "fusion":
                called = self.module.computations[user.called("calls")[0]]
                places = [i for i, operand in enumerate(user.operands) if operand == name]
                used += sum(self._used(called, called.parameters[i].name) for i in places)
            else:
                return math.inf
        return used if name != computation.root else math.inf

    def _written(self, computation: Computation) -> float:
        """Bytes that a fused computation writes: only the update, where an array is updated in place."""
        root = computation.instructions[computation.root]
        roots = [computation.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        total = 0.0
        for value in roots:
            while value.opcode in ("bitcast", "reshape"):
                value = computation.instructions[value.operands[0]]
            if value.opcode == "dynamic-update-slice":
                total += sum(array.bytes for array in computation.instructions[value.operands[1]].results)
            elif value.opcode == "fusion":
                total += self._written(self.module.computations[value.called("calls")[0]])
            else:
                total += sum(array.hbm_bytes or array.bytes for array in value.results)
        return total


def _size(arrays: tuple[Array, ...]) -> int:
    return sum(array.hbm_bytes for array in arrays)


def _product(instruction: Instruction, place: Computation) -> Product:
    """Sizes of a dot or convolution."""
    left, right = (place.instructions[name].results[0] for name in instruction.operands[:2])
    highest = "precision={highest" in instruction.attributes
    passes = 6 if highest and left.dtype == "f32" else 1
    sizes = _convolution if instruction.opcode == "convolution" else _dot
    return Product(*sizes(instruction, left, right), left.dtype, passes)


def _dot(instruction: Instruction, left: Array, right: Array) -> tuple[int, int, int, int]:
    def sizes(key: str) -> list[int]:
        match = re.search(rf"{key}={{([\d,]*)}}", instruction.attributes)
        return [left.shape[int(i)] for i in match[1].split(",")] if match and match[1] else []

    count, k = math.prod(sizes("lhs_batch_dims")), math.prod(sizes("lhs_contracting_dims"))
    return count, math.prod(left.shape) // (count * k), k, math.prod(right.shape) // (count * k)


def _convolution(instruction: Instruction, left: Array, right: Array) -> tuple[int, int, int, int]:
    """Sizes of the products that a convolution is; on TPU all products are spelt as convolutions.

    A spatial dimension may be one of the kernel's own outputs, a contraction, a batch of separate products, or space.
    """
    text = instruction.attributes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels is not None, text
    of_left, of_right, of_result = labels.groups()
    window = (
        dict(re.findall(r"(\w+)=(\S+?)[ }]", match[1] + "}")) if (match := re.search(r"window={([^}]*)", text)) else {}
    )
    result = instruction.results[0].shape
    count, m, k, n = 1, result[of_result.index("b")], right.shape[of_right.index("i")], result[of_result.index("f")]
    for i in range(len(of_left) - 2):
        image, kernel = left.shape[of_left.index(str(i))], right.shape[of_right.index(str(i))]
        out = result[of_result.index(str(i))]
        pairs = touched(
            image,
            kernel,
            out,
            stride=_at(window, "stride", i, 1),
            padding=_at(window, "pad", i, 0),
            image_dilation=_at(window, "lhs_dilate", i, 1),
            kernel_dilation=_at(window, "rhs_dilate", i, 1),
        )
        if kernel > 1 and out == 1:
            k *= pairs
        elif kernel > 1 and image == 1:
            n *= pairs
        else:
            count, m = count * kernel, -(-m * pairs // kernel)
    return count, m, k, n


def _at(window: dict[str, str], key: str, dimension: int, default: int) -> int:
    values = window.get(key, "").split("x")
    return int(values[dimension].split("_")[0]) if values != [""] else default


def group_of(attributes: str, devices: int) -> list[int]:
    """The first group of a collective, as positions in the mesh; all devices where none is named."""
    if pair := re.search(r"source_target_pairs={{(\d+),(\d+)}", attributes):
        return [int(pair[1]), int(pair[2])]
    if listed := re.search(r"replica_groups={{([\d,]+)}", attributes):
        return [int(i) for i in listed[1].split(",")]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _iota(iota[2], iota[3]).reshape([int(i) for i in iota[1].split(",")])[0].tolist()
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?) {([^}]*)}", attributes):
        return _of_mesh(mesh[1], mesh[2], mesh[3])
    return list(range(devices))


def _iota(shape: str, order: str | None) -> np.ndarray:
    sides = [int(side) for side in shape.split(",")]
    numbers = np.arange(math.prod(sides)).reshape(sides)
    return numbers.transpose([int(i) for i in order.split(",")]) if order else numbers


def _of_mesh(axes: str, order: str, chosen: str) -> list[int]:
    """A group along some axes of a named mesh, or along parts of them, written 'axis':(before)size."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    chosen_parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    parts = {name: (int(before or 1), int(size or sizes[name])) for name, before, size in chosen_parts}
    listed = re.search(r"device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
    numbers = (_iota(listed[1], listed[2]) if listed else np.arange(math.prod(sizes.values()))).reshape(-1)
    shape: list[int] = []
    index: list[int | slice] = []
    for name, size in sizes.items():
        before, wanted = parts.get(name, (size, 1))
        shape += [before, wanted, size // (before * wanted)]
        index += [0, slice(None), 0]
    return numbers.reshape(shape)[tuple(index)].reshape(-1).tolist()
