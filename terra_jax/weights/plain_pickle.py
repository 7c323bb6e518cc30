"""Reads and writes the small, inert part of the pickle language that state dicts are written in.

Python's unpickler is a stack machine that can import and call anything. The machine below knows only the opcodes that
build containers, numbers and strings. A pickle names functions and classes ("globals"); here such a name is never
looked up in Python, only in a table of builders that the caller passes, and whatever is not in the table is refused.
"""

import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from terra_jax.errors import WeightsError

Builder = Callable[..., Any]
ADVICE = "save the bare state dict with torch.save(model.state_dict(), FILE) and use that"


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions; it stands for itself and is nothing that Python could call."""

    name: str


def loads(data: bytes, source: str, builders: Mapping[str, Builder | None], persistent: Builder) -> Any:
    """Interprets a pickle.

    Args:
        data: The pickle.
        source: The file's name, for messages.
        builders: What each allowed global does when the pickle calls it; None for one that is only a name.
        persistent: Turns a persistent id into a value.

    Returns:
        Nested dicts, lists, tuples, numbers, strings, and what `builders` and `persistent` made.

    Raises:
        WeightsError: It uses an opcode or a global that is not allowed, or is damaged.
    """
    machine = _Machine(source, builders, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.stack.pop()
            step = _STEPS.get(opcode.name)
            if step is None:
                raise WeightsError(f"{source}: refused, its pickle uses the opcode {opcode.name}; {ADVICE}")
            step(machine, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise WeightsError(f"{source}: its pickle is truncated or damaged ({type(error).__name__})") from error
    raise WeightsError(f"{source}: its pickle is truncated or damaged (no end)")


class _Machine:
    """The state of the interpreter: a stack, the stacks below each mark, and the memo."""

    def __init__(self, source: str, builders: Mapping[str, Builder | None], persistent: Builder):
        self.source, self.builders, self.persistent = source, builders, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def refuse_global(self, name: str) -> WeightsError:
        return WeightsError(f"{self.source}: refused, its pickle asks for {name[:100]!r}, which is no part of a plain "
                            f"state dict and might run code; {ADVICE}")  # fmt: skip

    def find_global(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a global's name is no string")
        if f"{module}.{name}" not in self.builders:
            raise self.refuse_global(f"{module}.{name}")
        self.push(Global(f"{module}.{name}"))

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise WeightsError(f"{self.source}: refused, its pickle calls something that is no function; {ADVICE}")
        builder = self.builders[function.name]
        if builder is None:
            raise self.refuse_global(function.name)
        self.push(builder(*arguments))

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("append to something else than a list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise TypeError("set an item of something else than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise WeightsError(f"{self.source}: refused, a dict in it has keys that are no strings; {ADVICE}")
            target[key] = value

    def set_attributes(self) -> None:
        """A state dict carries its modules' versions as an attribute of the dict; only that is allowed, and dropped."""
        target, attributes = self.pop(2)
        if type(target) is not OrderedDict or type(attributes) is not dict:
            raise WeightsError(f"{self.source}: refused, its pickle sets attributes of an object; {ADVICE}")
        self.push(target)


def _push(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _store(machine: _Machine, argument: Any) -> None:
    machine.memo[argument] = machine.stack[-1]


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, argument: None,
    "FRAME": lambda machine, argument: None,
    "NONE": lambda machine, argument: machine.push(None),
    "NEWTRUE": lambda machine, argument: machine.push(True),
    "NEWFALSE": lambda machine, argument: machine.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), _push),
    "EMPTY_DICT": lambda machine, argument: machine.push({}),
    "EMPTY_LIST": lambda machine, argument: machine.push([]),
    "EMPTY_TUPLE": lambda machine, argument: machine.push(()),
    "MARK": lambda machine, argument: machine.mark(),
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, argument: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, argument: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, argument: machine.push(tuple(machine.pop(3))),
    "APPEND": lambda machine, argument: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, argument: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, argument: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, argument: machine.update(machine.pop_to_mark()),
    "BINPUT": _store,
    "LONG_BINPUT": _store,
    "MEMOIZE": lambda machine, argument: _store(machine, len(machine.memo)),
    "BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
    "LONG_BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
    "GLOBAL": lambda machine, argument: machine.find_global(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, argument: machine.find_global(*machine.pop(2)),
    "REDUCE": lambda machine, argument: machine.call(),
    "BUILD": lambda machine, argument: machine.set_attributes(),
    "BINPERSID": lambda machine, argument: machine.push(machine.persistent(*machine.pop(1))),
}


@dataclass(frozen=True)
class Call:
    """A global called with arguments, for `dumps`."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class PersistentId:
    """A persistent id, for `dumps`."""

    value: Any


def dumps(value: Any) -> bytes:
    """Pickles nested dicts, tuples, strings, integers, booleans, `Global`, `Call` and `PersistentId` by protocol 2."""
    return b"\x80\x02" + _emit(value) + b"."


def _emit(value: Any) -> bytes:
    match value:
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            return b"\x8a" + struct.pack("<Bq", 8, value)
        case str():
            encoded = value.encode()
            return b"X" + struct.pack("<I", len(encoded)) + encoded
        case tuple():
            return b"(" + b"".join(map(_emit, value)) + b"t"
        case Global():
            module, _, name = value.name.rpartition(".")
            return f"c{module}\n{name}\n".encode()
        case Call():
            return _emit(Global(value.name)) + _emit(value.arguments) + b"R"
        case PersistentId():
            return _emit(value.value) + b"Q"
        case OrderedDict():
            items = b"".join(_emit(key) + _emit(item) for key, item in value.items())
            return _emit(Call("collections.OrderedDict", ())) + b"(" + items + b"u"
    raise TypeError(f"cannot pickle {type(value).__name__}")
