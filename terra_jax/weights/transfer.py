"""Moving values along a weight map: import, export and re-export, each checked key by key and accounted for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np

from terra_jax.errors import WeightsError
from terra_jax.weights.rules import (
    Entry,
    Fixed,
    Ignored,
    Params,
    Rule,
    Tied,
    WeightMap,
    flatten_params,
    like_template,
    size_of,
    table,
)
from terra_jax.weights.state import BFLOAT16, LazyTensor, State, as_bytes, unwrap

SHOWN = 4


@dataclass(frozen=True)
class Report:
    """What an import or an export did, for people; `str` gives a few lines.

    Attributes:
        source: Where the values came from.
        tensors: The number of PyTorch tensors mapped.
        parameters: The number of parameters in them, tied ones counted once.
        fresh: JAX parameters that no key filled and that were initialised.
        absent: Optional parameters that the file lacks and that were not written to another one either.
        left_out: JAX parameters that the public class has no place for, which were not written.
        aside: Keys of the file that were not used.
        cast: Types of the file other than the model's, which were converted.
        options: Options of the model that its weights imply, for whoever builds it.
    """

    source: str
    tensors: int
    parameters: int
    fresh: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.tensors} tensors mapped, {self.parameters:,} parameters"]
        if self.cast:
            lines.append(f"  converted from {', '.join(self.cast)}")
        if self.fresh:
            lines.append(f"  not in the file, initialised: {', '.join(self.fresh)}")
        if self.absent:
            lines.append(f"  not in the file, not written: {', '.join(self.absent)}")
        if self.left_out:
            lines.append(f"  for training only, left out: {', '.join(self.left_out)}")
        if self.aside:
            lines.append(f"  in the file, not used: {_summary(self.aside)}")
        if self.options:
            lines.append(f"  options: {', '.join(f'{name}={value}' for name, value in self.options.items())}")
        return "\n".join(lines)


def import_params(
    weights: WeightMap, state: State, template: Params, fresh: Callable[[], Params] | None = None
) -> tuple[dict[str, Any], Report]:
    """Builds a model's parameters from a PyTorch state dict.

    Args:
        weights: The family's map.
        state: The tensors of a file (`open_state`), wrapped or not.
        template: The parameters as a nested dict of arrays or ShapeDtypeStructs; gives names, shapes and types.
        fresh: Gives initialised parameters, nested alike, for training-only parameters and optional ones that the file
            lacks; called only if there are such, and under `jax.jit`, so that no others are built.

    Returns:
        Nested dict of NumPy arrays like `template`, every one assigned exactly once, and the account of it.

    Raises:
        WeightsError: Keys are missing, left over or of another shape or type, tied ones differ, or a buffer is another.
    """
    entries = table(weights, template, beside=True)
    state, aside = _fitted(weights, entries, state)
    present = _filled(entries, state)
    leaves = {
        path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flatten_params(template).items() if path in present
    }
    for key, entry in entries.items():
        if key in state:
            _absorb(entry, state, leaves)
    wanted = tuple(path for path in flatten_params(template) if path not in present)
    leaves.update(_initialised(wanted, fresh))
    return like_template(template, leaves), _account(entries, state, aside=aside, fresh=wanted)


def export_state(
    weights: WeightMap, params: Params, source: str = "parameters"
) -> tuple[dict[str, LazyTensor], Report]:
    """The PyTorch state dict of a model, in the public order; a tensor is arranged only when it is read.

    Args:
        weights: The family's map.
        params: Nested dict of NumPy or JAX arrays.
        source: What `params` are, for the report.

    Returns:
        The state dict for `save_state`, and the account of it.
    """
    entries = table(weights, params)
    leaves = flatten_params(params)
    beside = [row.jax for row in weights.rows if isinstance(row, Rule) and row.beside]
    left_out = tuple(path for path in leaves if weights.is_training_only(path) or path in beside)
    state = {
        key: LazyTensor(entry.shape, entry.dtype, partial(_produce, entry, entries, leaves), source, entry.twin or key)
        for key, entry in entries.items()
    }
    return state, Report(source, len(state), size_of(entries), left_out=left_out)


def conform_state(weights: WeightMap, state: State, template: Params) -> tuple[dict[str, LazyTensor], Report]:
    """A file's own tensors, unwrapped, checked against the model, and in the public order; types stay as they are.

    Buffers that the file lacks are added and ties are shared, so that PyTorch's strict loading accepts the result.

    Raises:
        WeightsError: As `import_params`.
    """
    entries = table(weights, template)
    state, aside = _fitted(weights, entries, state)
    for entry in entries.values():
        if entry.key in state and not isinstance(entry.row, Rule):
            _absorb(entry, state, {})
    out = {}
    for key, entry in entries.items():
        origin = entry.twin or key
        if origin in state:
            out[key] = replace(state[origin], alias=origin)
        elif isinstance(entry.row, Fixed):
            out[key] = LazyTensor(entry.shape, entry.dtype, partial(_produce, entry, entries, {}))
    missing = tuple(key for key in entries if key not in out)
    return out, replace(_account(entries, state, aside=aside), absent=missing, cast=())


def _filled(entries: Mapping[str, Entry], state: State) -> set[str]:
    """The JAX paths that the file's keys fill."""
    return {entry.row.jax for key, entry in entries.items() if isinstance(entry.row, Rule) and key in state}


def _fitted(weights: WeightMap, entries: Mapping[str, Entry], state: State) -> tuple[State, tuple[str, ...]]:
    """Unwraps a file's state dict, drops what is to be ignored, and refuses it unless the rest fits exactly."""
    source = next((tensor.source for tensor in state.values()), "the state dict") or "the state dict"
    respelt = {weights.respelt(key): tensor for key, tensor in state.items()}
    if len(respelt) < len(state):
        doubled = next(key for key in state if weights.respelt(key) != key and weights.respelt(key) in state)
        raise WeightsError(f"{source}: holds both {doubled} and {weights.respelt(doubled)}; keep one of them")
    inner, aside = unwrap(respelt, entries, weights.wrappers)
    patterns = [row.torch for row in weights.rows if isinstance(row, Ignored) or (isinstance(row, Rule) and row.beside)]
    ignored = [key for key in inner if key not in entries and any(fnmatchcase(key, pattern) for pattern in patterns)]
    ignored += [key for key, tensor in inner.items() if key in entries and _is_other(entries[key], tensor)]
    inner = {key: _chosen(entries.get(key), tensor) for key, tensor in inner.items() if key not in ignored}
    filled = _filled(entries, inner)
    missing = [entry for key, entry in entries.items() if key not in inner and not _may_lack(entry, filled)]
    left_over = [key for key in inner if key not in entries]
    misshapen = [key for key, entry in entries.items() if key in inner and inner[key].shape != entry.shape]
    mistyped = [key for key, entry in entries.items() if key in inner and not _castable(inner[key].dtype, entry.dtype)]
    complaints = [
        _listed("missing", [f"{entry.key} {entry.shape}" for entry in missing]),
        _listed("left over", [f"{key} {inner[key].shape}" for key in left_over]),
        _listed("of another shape", [f"{key} {inner[key].shape} instead of {entries[key].shape}" for key in misshapen]),
        _listed("of another type", [f"{key} {inner[key].dtype} instead of {entries[key].dtype}" for key in mistyped]),
    ]
    if any(complaints):
        raise WeightsError(f"{source}: does not fit the model: {'; '.join(filter(None, complaints))}")
    return inner, (*aside, *ignored)


def _is_other(entry: Entry, tensor: LazyTensor) -> bool:
    """Whether a buffer is one of the other shapes that a file may hold."""
    return isinstance(entry.row, Fixed) and tensor.shape != entry.shape and tensor.shape in entry.row.others


def _chosen(entry: Entry | None, tensor: LazyTensor) -> LazyTensor:
    """The model's channels of a tensor that the file holds whole; else the tensor."""
    subset = entry.row.subset if entry and isinstance(entry.row, Rule) else None
    if entry is None or subset is None or tensor.shape == entry.shape or tensor.shape != subset.whole(entry.shape):
        return tensor
    return LazyTensor(entry.shape, tensor.dtype, lambda: subset.of(tensor.read()), tensor.source)


def _may_lack(entry: Entry, filled: set[str]) -> bool:
    """Whether a file may lack a key: a buffer, or an optional parameter of which it has no layer."""
    if isinstance(entry.row, Rule) and (entry.row.optional or entry.row.beside):
        return entry.row.jax not in filled
    return isinstance(entry.row, Fixed) or (isinstance(entry.row, Tied) and entry.row.optional)


def _castable(source: np.dtype, target: np.dtype) -> bool:
    """Whether values may be converted: between floating-point types only."""
    return source == target or all(dtype.kind == "f" or dtype == BFLOAT16 for dtype in (source, target))


def _absorb(entry: Entry, state: State, leaves: Mapping[str, np.ndarray]) -> None:
    """Puts one tensor of a file where it belongs, or compares it where it must equal something."""
    tensor, row = state[entry.key], entry.row
    if isinstance(row, Rule):
        leaf = leaves[row.jax]
        target = leaf if entry.index is None else leaf[entry.index]
        target[...] = row.to_jax(tensor.read(), target.shape)
    elif isinstance(row, Tied):
        twin = state.get(entry.twin)
        same = twin is not None and (
            (tensor.alias is not None and tensor.alias == twin.alias) or _equal_bits(tensor.read(), twin.read())
        )
        if not same:
            raise WeightsError(
                f"{tensor.source}: {entry.key} differs from {entry.twin}, to which it is tied; save it again"
            )
    elif row.tolerance is not None and not np.allclose(tensor.read(), row.value(), rtol=0, atol=row.tolerance):
        raise WeightsError(
            f"{tensor.source}: the buffer {entry.key} is not what this model builds; check the model's name"
        )


def _equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(as_bytes(a), as_bytes(b))


def _produce(entry: Entry, entries: Mapping[str, Entry], leaves: Mapping[str, Any]) -> np.ndarray:
    """The values of one key, arranged for PyTorch."""
    if isinstance(entry.row, Tied):
        return _produce(entries[entry.twin], entries, leaves)
    if isinstance(entry.row, Fixed):
        return np.ascontiguousarray(np.asarray(entry.row.value()).astype(entry.dtype))
    leaf = np.asarray(leaves[entry.row.jax])
    return np.array(entry.row.to_torch(leaf if entry.index is None else leaf[entry.index]), order="C")


def _initialised(paths: tuple[str, ...], fresh: Callable[[], Params] | None) -> dict[str, np.ndarray]:
    """Initial values of the parameters that the file could not give; the compiler drops the others unbuilt."""
    if not paths:
        return {}
    if fresh is None:
        raise ValueError(f"{', '.join(paths)} must be initialised, but no initial values are given")
    import jax

    from terra_jax.nn.initialisation import run_once_options

    def chosen() -> dict[str, Any]:
        leaves = flatten_params(fresh())
        return {path: leaves[path] for path in paths}

    return {path: np.asarray(leaf) for path, leaf in jax.jit(chosen, compiler_options=run_once_options())().items()}


def _account(
    entries: Mapping[str, Entry],
    state: State,
    *,
    aside: tuple[str, ...],
    fresh: tuple[str, ...] = (),
) -> Report:
    source = next((tensor.source for tensor in state.values()), "")
    used = {key: entry for key, entry in entries.items() if key in state}
    cast = {str(state[key].dtype) for key, entry in used.items() if state[key].dtype != entry.dtype}
    return Report(source or "state dict", len(used), size_of(used), fresh=fresh, aside=aside, cast=tuple(sorted(cast)))


def _listed(what: str, items: list[str]) -> str:
    """The first few of some keys, such as "3 missing (a, b, c)"; empty where there is none."""
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{len(items)} {what} ({', '.join(items[:SHOWN])}{more})" if items else ""


def _summary(keys: tuple[str, ...]) -> str:
    """Keys by name if they are few, else counted by their first part."""
    if len(keys) <= 2 * SHOWN:
        return ", ".join(keys)
    heads = [key.partition(".")[0] for key in keys]
    return ", ".join(f"{head}.* ({heads.count(head)})" for head in dict.fromkeys(heads))
