"""Where a logical axis of a parameter lives on the mesh: one table and its resolver."""

import math
from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

RULES: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("regions", ("data", "fsdp", "tensor")),
    ("regions", "data"),
    ("regions", "fsdp"),
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("vocabulary", "tensor"),
    ("prototypes", "tensor"),
    ("prototypes", "fsdp"),
    ("embed", "fsdp"),
    ("stem", "fsdp"),
    ("mlp", "fsdp"),
    ("heads", "fsdp"),
)
"""(logical name, mesh axis or axes together), the most wanted first.

A name that is not listed (layers, head_dim, qkv, patch, modality, tokens, queries ...) is replicated: these axes are
short, or every device needs all of them at once.
"""


def resolve(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh_shape: Mapping[str, int],
    rules: Sequence[tuple[str, str | tuple[str, ...]]] = RULES,
) -> PartitionSpec:
    """Choose a mesh axis for each dimension of one array.

    The rules are tried from the top; the first that fits a dimension wins. A rule does not fit where the mesh axis is
    already taken by another dimension of the array or does not divide the dimension: such a dimension is replicated.

    Args:
        names: logical name of each dimension, None for no name.
        shape: the array's shape.
        mesh_shape: mesh axis -> number of devices.
        rules: the table.

    Raises:
        ValueError: there are not as many names as dimensions.
    """
    if len(names) != len(shape):
        raise ValueError(f"{len(names)} logical names {tuple(names)} for an array of shape {tuple(shape)}")
    chosen: list[str | tuple[str, ...] | None] = [None] * len(shape)
    taken: set[str] = set()
    for name, target in rules:
        axes = tuple(axis for axis in _axes(target) if mesh_shape.get(axis, 1) > 1)
        size = math.prod(mesh_shape[axis] for axis in axes)
        if not axes or taken.intersection(axes):
            continue
        for dimension, length in enumerate(shape):
            if names[dimension] == name and chosen[dimension] is None and length % size == 0:
                chosen[dimension] = axes[0] if len(axes) == 1 else axes
                taken.update(axes)
                break
    return PartitionSpec(*chosen)


def _axes(target: str | tuple[str, ...]) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else target
