"""The language in which a family says how its parameters are named and laid out in PyTorch.

A `WeightMap` is a table with one row per kind of PyTorch key, in the public file's order. A row whose names contain
`{i}` stands for a stack of equal blocks: one key per block in PyTorch, one array with a leading "layers" axis in JAX.
`{2i+1}` counts every second block. Consecutive rows that share the text before the braces are one stack and are listed
block by block:

    WeightMap(
        Rule("pos_embed", "pos_embed"),
        Rule("patch_embed.proj.weight", "stem.kernel", "o i h w -> h w i o"),
        *norm("blocks.{i}.norm1", "blocks.norm1"),
        Rule("blocks.{i}.attn.qkv.weight", "blocks.attention.qkv.kernel", "(c h d) i -> i c h d"),
        Fixed("blocks.{i}.attn.index", shape=(49, 49), dtype="int64", value=relative_index),
        Tied("head.weight", to="pos_embed"),
        Ignored("fc.*"),
        training_only=("projection_head",),
    )

`table` spells a map out for one model and asserts that it is a bijection; `transfer` moves values along it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from terra_jax.weights.layouts import Layout

Params = Mapping[str, Any]
INDEX = re.compile(r"\{(\d*)i(?:\+(\d+))?\}")
WRAPPERS = ("state_dict", "model", "teacher", "module", "backbone")


@dataclass(frozen=True)
class Subset:
    """Some channels of a tensor that public files hold whole; its last axis is (place, channel).

    Attributes:
        channels: Their number in the whole tensor.
        chosen: Which ones the model has, in its order.
    """

    channels: int
    chosen: tuple[int, ...]

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the whole tensor, from that of the model's."""
        return (*shape[:-1], shape[-1] // len(self.chosen) * self.channels)

    def of(self, array: np.ndarray) -> np.ndarray:
        """The model's channels of the whole tensor."""
        places = array.reshape(*array.shape[:-1], -1, self.channels)[..., list(self.chosen)]
        return places.reshape(*array.shape[:-1], -1)


@dataclass(frozen=True)
class Rule:
    """A parameter that exists on both sides.

    Attributes:
        torch: Its key in PyTorch; with `{i}`, the keys of a stack.
        jax: Its dotted path among the JAX parameters.
        layout: How PyTorch's tensor is arranged in JAX, an einops pattern without the "layers" axis; None: alike.
        sizes: Lengths of axes that the JAX array does not show by itself.
        optional: Public files may lack it; it is then initialised.
        beside: Some files have it beside the keys of the public class: it is read where it is found, initialised where
            not, and neither written nor counted.
        subset: Which channels of it the model has; a file may hold the whole tensor or these.
    """

    torch: str
    jax: str
    layout: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    optional: bool = False
    beside: bool = False
    subset: Subset | None = None

    def torch_shape(self, jax_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one PyTorch tensor, from the shape of the JAX array."""
        own = jax_shape[1:] if INDEX.search(self.torch) else jax_shape
        return own if self.layout is None else Layout(self.layout).torch_shape(own, self.sizes)

    def to_jax(self, array: np.ndarray, own_shape: tuple[int, ...]) -> np.ndarray:
        """One PyTorch tensor, arranged for JAX as `own_shape`."""
        return array if self.layout is None else Layout(self.layout).to_jax(array, own_shape, self.sizes)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """One JAX array (one layer of a stack), arranged for PyTorch."""
        return array if self.layout is None else Layout(self.layout).to_torch(array, self.sizes)


@dataclass(frozen=True)
class Fixed:
    """A buffer that exists in PyTorch only and follows from the configuration.

    Attributes:
        torch: Its key; with `{i}`, one equal buffer for every block of the stack that the neighbouring rows describe.
        shape: Its shape.
        value: Builds it; called only when it is written or compared.
        dtype: Its type.
        tolerance: The largest difference from `value` that an import accepts; None to accept whatever the file holds. A
            file may also lack the buffer.
        others: Further shapes that a file may hold it in; it is then not used.
    """

    torch: str
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]
    dtype: str = "float32"
    tolerance: float | None = 1e-5
    others: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Tied:
    """A second PyTorch key for the values of the row whose `torch` is `to`; an import demands that they are equal."""

    torch: str
    to: str
    optional: bool = False


@dataclass(frozen=True)
class Ignored:
    """Keys of public files that the model has no use for, as a shell pattern such as "head.*"; never written."""

    torch: str


KeyRow = Rule | Fixed | Tied
Row = KeyRow | Ignored


@dataclass(frozen=True, init=False)
class WeightMap:
    """How one model's parameters and one PyTorch state dict correspond.

    Attributes:
        rows: The table, in the order of the public state dict.
        training_only: Dotted paths, or beginnings of them, of JAX parameters that PyTorch has no place for.
        wrappers: Prefixes that files in the wild put before the keys, the preferred one first.
        aliases: Parts of keys as some files spell them -> as the rows do.
    """

    rows: tuple[Row, ...]
    training_only: tuple[str, ...]
    wrappers: tuple[str, ...]
    aliases: Mapping[str, str]

    def __init__(
        self,
        *rows: Row,
        training_only: tuple[str, ...] = (),
        wrappers: tuple[str, ...] = WRAPPERS,
        aliases: Mapping[str, str] | None = None,
    ):
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "training_only", training_only)
        object.__setattr__(self, "wrappers", wrappers)
        object.__setattr__(self, "aliases", dict(aliases or {}))

    def respelt(self, key: str) -> str:
        """A file's key as the rows spell it."""
        for theirs, ours in self.aliases.items():
            key = key.replace(theirs, ours)
        return key

    def is_training_only(self, path: str) -> bool:
        """Whether a JAX parameter has no place in PyTorch."""
        return any(path == prefix or path.startswith(f"{prefix}.") for prefix in self.training_only)


def linear(torch: str, jax: str, bias: bool = True) -> tuple[Rule, ...]:
    """The rows of a linear layer: PyTorch's (out, in) weight is a transposed kernel."""
    kernel = Rule(f"{torch}.weight", f"{jax}.kernel", "o i -> i o")
    return (kernel, Rule(f"{torch}.bias", f"{jax}.bias")) if bias else (kernel,)


def norm(torch: str, jax: str) -> tuple[Rule, ...]:
    """The rows of a norm: weight and bias are scale and bias."""
    return Rule(f"{torch}.weight", f"{jax}.scale"), Rule(f"{torch}.bias", f"{jax}.bias")


@dataclass(frozen=True)
class Entry:
    """One PyTorch key of one model.

    Attributes:
        key: The key.
        shape: The tensor's shape.
        dtype: The tensor's type when it is written.
        row: The row it comes from.
        index: The layer of a stack, or None.
        twin: For a tied key, the key it repeats.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    row: KeyRow
    index: int | None = None
    twin: str = ""


def flatten_params(tree: Params) -> dict[str, Any]:
    """Nested dicts of parameters as a flat dict of dotted paths."""
    flat: dict[str, Any] = {}
    for name, node in tree.items():
        if isinstance(node, Mapping):
            flat.update({f"{name}.{path}": leaf for path, leaf in flatten_params(node).items()})
        else:
            flat[str(name)] = node
    return flat


def like_template(template: Params, leaves: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The nested dict of `template` with the leaves replaced by those at the same dotted paths."""
    return {
        name: like_template(node, leaves, f"{prefix}{name}.") if isinstance(node, Mapping) else leaves[prefix + name]
        for name, node in template.items()
    }


def misfit(held: Mapping[str, tuple[int, ...]], template: Params) -> str:
    """The first parameter, by dotted path, whose shape is not the template's; empty if all fit."""
    wanted = {path: tuple(leaf.shape) for path, leaf in flatten_params(template).items()}
    for path in wanted | dict(held):
        if wanted.get(path) != held.get(path):
            return f"{path} is {held.get(path, 'missing')} there and {wanted.get(path, 'absent')} in the model"
    return ""


def table(weights: WeightMap, template: Params, beside: bool = False) -> dict[str, Entry]:
    """Spells a map out for one model: every PyTorch key, in the public order.

    Args:
        weights: The map.
        template: The model's parameters as a nested dict of arrays or ShapeDtypeStructs.
        beside: Whether to include the keys that only some files have beside those of the public class.

    Raises:
        ValueError: The map is no bijection between the template's parameters, training-only ones apart, and the keys.
    """
    leaves = flatten_params(template)
    rows = [row for row in weights.rows if not isinstance(row, Ignored)]
    _check_paths(weights, [row for row in rows if isinstance(row, Rule)], leaves)
    rows = [row for row in rows if beside or not (isinstance(row, Rule) and row.beside)]
    entries: dict[str, Entry] = {}
    for row, index in _ordered(rows, leaves):
        key = _at(row.torch, index)
        if key in entries:
            raise ValueError(f"the weight map gives {key} twice")
        twin = _at(row.to, index) if isinstance(row, Tied) else ""
        entries[key] = Entry(key, *_shape_dtype(row, leaves), row, index, twin)
    return {key: _completed(entry, entries) for key, entry in entries.items()}


def torch_shapes(weights: WeightMap, template: Params) -> dict[str, tuple[int, ...]]:
    """PyTorch key -> shape, in the public order, without building an array."""
    return {key: entry.shape for key, entry in table(weights, template).items()}


def _check_paths(weights: WeightMap, rules: list[Rule], leaves: Mapping[str, Any]) -> None:
    """Asserts that the rules take every parameter once and no training-only one."""
    paths = [rule.jax for rule in rules]
    wanted = {path for path in leaves if not weights.is_training_only(path)}
    if repeated := sorted({path for path in paths if paths.count(path) > 1}):
        raise ValueError(f"the weight map assigns {', '.join(repeated)} more than once")
    if unknown := sorted(set(paths) - wanted):
        raise ValueError(f"the weight map names {', '.join(unknown)}, which the model lacks or marks as training only")
    if forgotten := sorted(wanted - set(paths)):
        raise ValueError(f"the weight map forgets {', '.join(forgotten)}")


def _ordered(rows: list[KeyRow], leaves: Mapping[str, Any]) -> Iterator[tuple[KeyRow, int | None]]:
    """The rows in the order of the state dict: stacks block by block, everything else as it stands."""
    counts = {row.torch: leaves[row.jax].shape[0] for row in rows if isinstance(row, Rule) and INDEX.search(row.torch)}
    for stem, group in groupby(rows, key=lambda row: row.torch.partition("{")[0] if INDEX.search(row.torch) else None):
        members = list(group)
        if stem is None:
            yield from ((row, None) for row in members)
            continue
        lengths = [counts.get(row.to if isinstance(row, Tied) else row.torch) for row in members]
        longest = max((n for n in lengths if n is not None), default=0)
        if not longest:
            raise ValueError(f"the weight map has no rule beside {members[0].torch} that tells the number of blocks")
        keyed = [(row, i) for row, n in zip(members, lengths, strict=True) for i in range(longest if n is None else n)]
        yield from sorted(keyed, key=lambda entry: _block_number(entry[0].torch, entry[1]))  # stable: rows in order


def _block_number(pattern: str, index: int) -> int:
    """The block that layer `index` of a pattern is."""
    match = INDEX.search(pattern)
    return int(match[1] or 1) * index + int(match[2] or 0) if match else index


def _at(pattern: str, index: int | None) -> str:
    """The key of layer `index`: {i} is the index, {2i+1} the odd blocks."""
    if index is None:
        return pattern
    return INDEX.sub(lambda match: str(int(match[1] or 1) * index + int(match[2] or 0)), pattern)


def _shape_dtype(row: KeyRow, leaves: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype]:
    if isinstance(row, Rule):
        leaf = leaves[row.jax]
        return row.torch_shape(tuple(leaf.shape)), np.dtype(leaf.dtype)
    return (row.shape, np.dtype(row.dtype)) if isinstance(row, Fixed) else ((), np.dtype("float32"))


def _completed(entry: Entry, entries: Mapping[str, Entry]) -> Entry:
    """A tied key takes the shape and type of the key it repeats."""
    if not isinstance(entry.row, Tied):
        return entry
    twin = entries.get(entry.twin)
    if twin is None or isinstance(twin.row, Tied):
        raise ValueError(f"the weight map ties {entry.key} to {entry.twin}, which it does not describe")
    return Entry(entry.key, twin.shape, twin.dtype, entry.row, entry.index, entry.twin)


def size_of(entries: Mapping[str, Entry]) -> int:
    """The number of parameters, tied keys counted once and buffers not."""
    return sum(prod(entry.shape) for entry in entries.values() if isinstance(entry.row, Rule))
