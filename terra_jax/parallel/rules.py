"""Where a logical axis of a parameter lives on the mesh: one table and its resolver."""

from collections.abc import Mapping, Sequence

from jax.sharding import PartitionSpec

RULES: tuple[tuple[str, str], ...] = (
    ("heads", "tensor"),
    ("mlp", "tensor"),
    ("prototypes", "tensor"),
    ("prototypes", "fsdp"),
    ("embed", "fsdp"),
    ("stem", "fsdp"),
    ("mlp", "fsdp"),
    ("heads", "fsdp"),
)
"""(logical name, mesh axis), the most wanted first.

A name that is not listed (layers, head_dim, qkv, patch, modality, tokens, queries ...) is replicated: these axes are
short, or every device needs all of them at once.
"""


def resolve(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh_shape: Mapping[str, int],
    rules: Sequence[tuple[str, str]] = RULES,
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
    chosen: list[str | None] = [None] * len(shape)
    for name, axis in rules:
        size = mesh_shape.get(axis, 1)
        if size == 1 or axis in chosen:
            continue
        for dimension, length in enumerate(shape):
            if names[dimension] == name and chosen[dimension] is None and length % size == 0:
                chosen[dimension] = axis
                break
    return PartitionSpec(*chosen)
