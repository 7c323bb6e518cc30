"""State dicts as this package sees them: flat, ordered mappings from a name to a tensor that is read when asked for."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import ml_dtypes
import numpy as np

from terra_jax.errors import WeightsError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MAX_DEPTH = 16
MAX_ENTRIES = 100_000
MAX_NAME = 1_000


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose shape and type are known and whose values are read, or computed, on demand.

    Attributes:
        shape: Its shape.
        dtype: Its NumPy type; bfloat16 is `ml_dtypes.bfloat16`.
        read: Returns the values as a new C-contiguous array; every call reads anew and nothing is kept.
        source: The file it comes from, for messages.
        alias: Tensors with equal aliases other than None hold the same values; a .pt file stores them once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    source: str = ""
    alias: Hashable = None

    @classmethod
    def of(cls, array: np.ndarray) -> "LazyTensor":
        """The lazy face of an array that is already there."""
        array = np.asarray(array)
        return cls(array.shape, array.dtype, lambda: array.copy(order="C"))

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values, C-contiguous."""
        return self.size * self.dtype.itemsize


State = Mapping[str, LazyTensor]


def as_bytes(array: np.ndarray) -> memoryview:
    """The C-order bytes of an array, copied only where it is not contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_checked(name: str, tensor: LazyTensor) -> np.ndarray:
    """Reads `tensor` and asserts that the values are of the announced shape and type."""
    array = tensor.read()
    if array.shape != tensor.shape or array.dtype != tensor.dtype:
        raise ValueError(f"{name} announced {tensor.shape} {tensor.dtype} but gave {array.shape} {array.dtype}")
    return array


def flatten_state(tree: object, source: str) -> dict[str, LazyTensor]:
    """Flattens nested dicts to dotted names and keeps the tensors; numbers, strings and lists are left aside.

    Raises:
        WeightsError: There is no tensor, two names collide, or the nesting is absurd.
    """
    flat: dict[str, LazyTensor] = {}
    stack: list[tuple[str, object, int]] = [("", tree, 0)]
    visited = 0
    while stack:
        name, node, depth = stack.pop()
        visited += 1
        if depth > MAX_DEPTH or visited > MAX_ENTRIES or len(name) > MAX_NAME:
            raise WeightsError(f"{source}: its dicts are nested too deeply or too large for a state dict")
        if not name.isprintable():
            raise WeightsError(f"{source}: names a tensor {name[:100]!r}, with control characters; save it again")
        if isinstance(node, LazyTensor):
            if name in flat:
                raise WeightsError(f"{source}: holds two tensors named {name!r}; save the bare state dict")
            flat[name] = node
        elif isinstance(node, dict):
            prefix = f"{name}." if name else ""
            stack.extend((f"{prefix}{key}", child, depth + 1) for key, child in reversed(node.items()))
    if not flat or "" in flat:
        raise WeightsError(f"{source}: holds no state dict (a dict from names to tensors); save model.state_dict()")
    return {name: replace(tensor, source=source) for name, tensor in flat.items()}


def unwrap(
    state: State, expected: Collection[str], wrappers: Sequence[str]
) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Strips wrapping prefixes such as "model." or "module." until expected names appear.

    Training scripts save {"teacher": ..., "optimizer": ...} or prefix every key; each turn strips the first of
    `wrappers` that leads some key and leaves aside the keys that lack it.

    Args:
        state: The flat state dict of a file.
        expected: Names of which at least one must be in the result.
        wrappers: Prefixes without the dot, the preferred one first.

    Returns:
        The unwrapped state dict and the full names of the tensors left aside. If no wrapper leads to an expected name,
        the state dict as it was.
    """
    inner, prefix = dict(state), ""
    aside: list[str] = []
    for _ in range(MAX_DEPTH):
        if any(name in inner for name in expected):
            return inner, tuple(aside)
        found = next((f"{w}." for w in wrappers if any(name.startswith(f"{w}.") for name in inner)), None)
        if found is None:
            break
        aside += [prefix + name for name in inner if not name.startswith(found)]
        inner = {name.removeprefix(found): tensor for name, tensor in inner.items() if name.startswith(found)}
        prefix += found
    return dict(state), ()
