"""Where what a network computes lies on the mesh: its examples are split as the batch is."""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the examples of a batch are split."""


def split_examples(x: Any) -> Any:
    """Keep the leading axis of each array split over `data` and `fsdp`, as the batch came.

    Where parameters are sharded over the axis that also splits the batch, the partitioner may choose either: to gather
    the parameters, or to gather the batch and share out the width, with attention repeated on every device. This says
    which. Outside of a mesh (`jax.sharding.use_abstract_mesh`), and on one shard (`jax.shard_map`), nothing happens.

    Args:
        x: array or tree of arrays with examples in front; one whose examples do not divide is left alone.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return x
    shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    if shards == 1:
        return x

    def split(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0 or leaf.shape[0] % shards:
            return leaf
        others = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(BATCH_AXES, *others))

    return jax.tree.map(split, x)
