"""Shardings of the train state: parameters by their logical names, what mirrors them by path, the rest replicated."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from terra_jax.parallel.rules import resolve

PyTree = Any
AxisNames = tuple[str | None, ...]
"""Logical name of each dimension of one parameter."""


def logical_axes(module: nnx.Module) -> dict[str, Any]:
    """Names of every parameter's dimensions, as a nested dict like the parameters.

    Args:
        module: concrete or abstract module whose `nnx.Param`s carry `axes` (`nn.linear.parameter`); one without has no
            names.
    """
    return _nested(nnx.state(module, nnx.Param), lambda variable: _names(variable))


def _names(variable: nnx.Variable) -> AxisNames:
    names = variable.get_metadata().get("axes")
    return (None,) * len(variable.shape) if names is None else tuple(names)


def _nested(state: nnx.State, leaf: Any) -> dict[str, Any]:
    """Turn a State into plain dicts with `leaf(variable)` at the ends."""
    return {
        str(key): leaf(value) if isinstance(value, nnx.Variable) else _nested(value, leaf)
        for key, value in state.items()
    }


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def parameter_shardings(axes: PyTree, params: PyTree, mesh: Mesh) -> PyTree:
    """Sharding of each parameter by the names of its dimensions.

    Args:
        axes: as `logical_axes` gives it.
        params: arrays or ShapeDtypeStructs of the same structure.
        mesh: where they go.
    """
    shape = dict(mesh.shape)
    return jax.tree.map(lambda leaf, names: NamedSharding(mesh, resolve(names, leaf.shape, shape)), params, axes)


def mirrored_shardings(tree: PyTree, params: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    """Sharding of everything in `tree`: what mirrors a parameter lies as the parameter does, the rest on all devices.

    Optimiser moments and EMA copies keep the parameter's path at the end of their own (opt/.../mu/encoder/norm/scale):
    the longest suffix that is a parameter's path, with the same shape, decides.
    """
    specs = {
        _path(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }
    everywhere = replicated(mesh)

    def choose(path: Any, leaf: Any) -> NamedSharding:
        names = _path(path)
        for start in range(len(names)):
            shape, sharding = specs.get(names[start:], (None, everywhere))
            if shape == leaf.shape:
                return sharding
        return everywhere

    return jax.tree_util.tree_map_with_path(choose, tree)


def _path(path: Any) -> tuple[str, ...]:
    """Keys of a tree path as plain strings, whatever container they come from."""
    return tuple(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)
