"""Rows that belong to different groups, each through its own table: cost follows the rows, not the number of groups.

Rows are sorted by their group and taken in blocks; a group runs as many blocks as its rows fill and no more. Only the
last block of a group is padded, and a block is so small that padding adds at most a quarter to the rows, whatever the
mix. (One scan over blocks of all groups, which chooses the table by `lax.switch`, has a static length, but XLA copies
every table's gradient at every branch: two to four times slower on CPU.)

Under a mesh (`jax.sharding.use_abstract_mesh`) each shard of the batch groups its own rows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from terra_jax.parallel.expected_trips import expected_trips

Tables = tuple[Array, ...]
LARGE = 4
"""Blocks of this many small ones go first: a matrix product of few rows is slow for its size."""


def grouped_cross_entropy(
    x: Float[Array, "b n d"],
    tables: Tables,
    groups: Int[Array, "b n"],
    labels: Int[Array, "b n"],
    weights: Float[Array, "b n"],
) -> tuple[Float[Array, ""], Float[Array, "b n"]]:
    """Softmax cross-entropy of rows whose classes are the rows of their group's table.

    Where a gradient is wanted, those of `x` and of the tables are made while the logits of a block are at hand: nothing
    of the size rows x classes is kept.

    Args:
        x: rows, in the compute dtype of the products; logits and softmax are float32.
        tables: (V_g, d) of every group.
        groups: index into `tables`; -1 for a row without a loss.
        labels: class of every row.
        weights: of the rows in the sum; constant.

    Returns:
        The weighted sum, and every row's own cross-entropy, 0 where the group is -1, for reports: it has no gradient.
    """
    sums, losses = _over_batch(_local_cross_entropy, (tables,), x, groups, labels, weights)
    return sums.sum(), losses


def grouped_projection(
    groups: Int[Array, "b n"], places: Int[Array, "b n"], inputs: tuple[Array, ...], kernels: Tables
) -> Float[Array, "b n d"]:
    """Linear maps of chosen rows: `inputs[g][b, place] @ kernels[g]`; nothing else is projected.

    Args:
        groups: index into `inputs` and `kernels`; -1 gives zeros.
        places: which row of the example's input.
        inputs: (b, t, p_g) rows, or (b, height, width, channels) images, whose rows are their square patches, row by
            row, the channels fastest. They get no gradient.
        kernels: (p_g, d) of every group, in the dtype of the inputs.
    """
    return _over_batch(_local_projection, (kernels,), groups, places, inputs)


def grouped_lookup(tables: Tables, groups: Int[Array, "b n"], ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
    """Rows of tables: `tables[g][id]`; zeros where the group is -1.

    Args:
        tables: (V_g, d) of every group.
        groups: index into `tables`, or -1.
        ids: row of the table.
    """
    return _over_batch(_local_lookup, (tables,), groups, ids)


def block_rows(rows: int, groups: int) -> int:
    """Largest number of rows in a block with which padding adds at most a quarter to any mix of groups."""
    limit = 1 + rows // (4 * groups)
    return limit - limit % 8 if limit > 8 else limit


class _Order(NamedTuple):
    """Rows sorted by group: their indices (padded), the place of every row among them, first and number of a group."""

    rows: Int[Array, " padded"]
    places: Int[Array, " rows"]
    starts: Int[Array, " groups"]
    counts: Int[Array, " groups"]


def _ordered(groups: Int[Array, " rows"], number: int, padding: int) -> _Order:
    """Sort the rows; those without a group come last."""
    groups = jnp.where(groups < 0, number, groups)
    rows = jnp.argsort(groups, stable=True).astype(jnp.int32)
    places = jnp.zeros_like(rows).at[rows].set(jnp.arange(rows.size, dtype=jnp.int32))
    counts = jnp.sum(groups[:, None] == jnp.arange(number), axis=0, dtype=jnp.int32)
    return _Order(jnp.pad(rows, (0, padding)), places, jnp.cumsum(counts) - counts, counts)


Body = Callable[[Int[Array, " rows"], Bool[Array, " rows"], Int[Array, ""], Any], Any]
"""(indices of a block's rows, which of them count, place of the first among the sorted, carry) -> carry."""


def _for_blocks(order: _Order, group: int, sizes: Sequence[int], body: Body, carry: Any) -> Any:
    """Run the blocks of a group: as many as it fills of each size, and one of the last that it does not fill.

    A body may write a whole block of results in the sorted order: where it reaches into the next group's rows, those
    are written later.
    """
    start, count = order.starts[group], order.counts[group]
    done = jnp.zeros_like(count)
    left = order.places.size // order.starts.size  # an even share of the rows, for estimates
    for size in sizes:

        def step(i: Array, carry: Any, size: int = size, done: Array = done) -> Any:
            first = done + i * size
            chosen = lax.dynamic_slice(order.rows, (start + first,), (size,))
            return body(chosen, first + jnp.arange(size) < count, start + first, carry)

        blocks = -((done - count) // size) if size == sizes[-1] else (count - done) // size
        expected = -(-left // size) if size == sizes[-1] else left // size
        with expected_trips(expected):
            carry = lax.fori_loop(0, blocks, step, carry)
        done += blocks * size
        left -= expected * size
    return carry


def _local_cross_entropy(tables, x, groups, labels, weights):
    width = x.shape[-1]
    rows = (x.reshape(-1, width), groups.reshape(-1), labels.reshape(-1), weights.reshape(-1).astype(jnp.float32))
    total, losses = _cross_entropy(tables, *rows)
    return total[None], lax.stop_gradient(losses).reshape(groups.shape)


@jax.custom_vjp
def _cross_entropy(tables, x, groups, labels, weights):
    """Weighted sum and losses of (rows,) without gradients: one product a block."""

    def body(table, chosen, live, first, losses):
        logits, label = _logits(x[chosen], table), labels[chosen]
        loss = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, label[:, None], axis=-1)[:, 0]
        return lax.dynamic_update_slice(losses, jnp.where(live, loss, 0), (first,))

    rows = block_rows(len(x), len(tables))
    order = _ordered(groups, len(tables), LARGE * rows)
    losses = jnp.zeros(len(x) + LARGE * rows, jnp.float32)
    for group, table in enumerate(tables):
        losses = _for_blocks(order, group, (LARGE * rows, rows), functools.partial(body, table.astype(x.dtype)), losses)
    losses = losses[order.places]
    return jnp.sum(weights * losses), losses


def _cross_entropy_forward(tables, x, groups, labels, weights):
    """The same, with the gradients of the sum by the rows and by the tables."""

    def body(table, chosen, live, first, carry):
        losses, dx, dtable = carry
        weight = jnp.where(live, weights[chosen], 0)
        loss, drows, dblock = _block_gradients(x[chosen], table, labels[chosen], weight)
        losses = lax.dynamic_update_slice(losses, jnp.where(live, loss, 0), (first,))
        return losses, lax.dynamic_update_slice(dx, drows, (first, 0)), dtable + dblock

    rows = block_rows(len(x), len(tables))
    order = _ordered(groups, len(tables), LARGE * rows)
    losses = jnp.zeros(len(x) + LARGE * rows, jnp.float32)
    dx = jnp.zeros((len(losses), x.shape[1]), x.dtype)
    dtables = []
    for group, table in enumerate(tables):
        carry = (losses, dx, jnp.zeros(table.shape, jnp.float32))
        block = functools.partial(body, table.astype(x.dtype))
        losses, dx, dtable = _for_blocks(order, group, (LARGE * rows, rows), block, carry)
        dtables.append(dtable)
    losses, dx = losses[order.places], dx[order.places]
    like = tuple(jnp.zeros((), table.dtype) for table in tables)
    return (jnp.sum(weights * losses), losses), (dx, tuple(dtables), like)


def _cross_entropy_backward(residuals, cotangents):
    dx, dtables, like = residuals
    scale = cotangents[0]
    dtables = tuple((scale * dtable).astype(table.dtype) for dtable, table in zip(dtables, like, strict=True))
    return dtables, (scale * dx).astype(dx.dtype), None, None, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _logits(x: Float[Array, "r d"], table: Float[Array, "v d"]) -> Float[Array, "r v"]:
    return lax.dot_general(x, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _block_gradients(
    x: Float[Array, "r d"], table: Float[Array, "v d"], labels: Int[Array, " r"], weights: Float[Array, " r"]
) -> tuple[Float[Array, " r"], Float[Array, "r d"], Float[Array, "v d"]]:
    """Cross-entropy of rows, and the gradients of its weighted sum by the rows and by the table."""
    logits = _logits(x, table)
    labelled = lax.broadcasted_iota(jnp.int32, logits.shape, 1) == labels[:, None]
    largest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - largest)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    loss = jnp.log(normaliser) + largest - jnp.take_along_axis(logits, labels[:, None], axis=-1)
    dlogits = exponentials * (weights[:, None] / normaliser) - jnp.where(labelled, weights[:, None], 0)
    dlogits = dlogits.astype(x.dtype)
    dtable = lax.dot_general(dlogits, x, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return loss[:, 0], dlogits @ table, dtable


def _local_projection(kernels, groups, places, inputs):
    inputs = tuple(lax.stop_gradient(source) for source in inputs)
    return _projection(kernels, groups.reshape(-1), places.reshape(-1), inputs).reshape(*groups.shape, -1)


@jax.custom_vjp
def _projection(kernels, groups, places, inputs):
    """Projected rows, (rows, d)."""
    each = len(groups) // len(inputs[0])
    rows = block_rows(len(groups), len(kernels))
    order = _ordered(groups, len(kernels), rows)
    y = jnp.zeros((len(groups) + rows, kernels[0].shape[1]), kernels[0].dtype)
    for group, (source, kernel) in enumerate(zip(inputs, kernels, strict=True)):
        source = _by_patches(source, kernel.shape[0])

        def body(chosen, live, first, y, source=source, kernel=kernel):
            block = _taken(source, chosen // each, places[chosen]).astype(kernel.dtype) @ kernel
            return lax.dynamic_update_slice(y, jnp.where(live[:, None], block, 0), (first, 0))

        y = _for_blocks(order, group, (rows,), body, y)
    return y[order.places]


def _projection_backward(residuals, dy):
    kernels, groups, places, inputs = residuals
    each = len(groups) // len(inputs[0])
    rows = block_rows(len(groups), len(kernels))
    order = _ordered(groups, len(kernels), rows)
    dkernels = []
    for group, (source, kernel) in enumerate(zip(inputs, kernels, strict=True)):
        source = _by_patches(source, kernel.shape[0])

        def body(chosen, live, _, dkernel, source=source, kernel=kernel):
            block = _taken(source, chosen // each, places[chosen]).astype(kernel.dtype)
            outcomes = jnp.where(live[:, None], dy[chosen], 0)
            product = lax.dot_general(block, outcomes, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
            return dkernel + product

        dkernel = _for_blocks(order, group, (rows,), body, jnp.zeros(kernel.shape, jnp.float32))
        dkernels.append(dkernel.astype(kernel.dtype))
    return tuple(dkernels), None, None, None


_projection.defvjp(lambda *arguments: (_projection(*arguments), arguments), _projection_backward)


def _by_patches(source: Array, size: int) -> Array:
    """Images (b, h, w, c) by rows and columns of patches (b, y, p, x, p c); rows as they are.

    Outside the loop over blocks: the shapes are tiled differently on TPU, where each block would copy all images.
    """
    if source.ndim == 3:
        return source
    batch, height, width, channels = source.shape
    patch = math.isqrt(size // channels)
    return source.reshape(batch, height // patch, patch, width // patch, patch * channels)


def _taken(source: Array, examples: Int[Array, " r"], places: Int[Array, " r"]) -> Float[Array, "r p"]:
    """Rows of an input, or patches of its images (`_by_patches`)."""
    if source.ndim == 3:
        return source[examples, places]
    row, column = jnp.divmod(places, source.shape[3])
    return source[examples, row, :, column].reshape(len(places), -1)


def _local_lookup(tables, groups, ids):
    found = jnp.zeros((*groups.shape, tables[0].shape[1]), tables[0].dtype)
    for group, table in enumerate(tables):
        # out of the table's range where another group's: read as 0, and no gradient is added there
        found += table.at[jnp.where(groups == group, ids, len(table))].get(mode="fill", fill_value=0)
    return found


def _over_batch(function: Callable, replicated: tuple, *batched: Any) -> Any:
    """Call `function(*replicated, *batched)` on each shard of the batch where a mesh is set, else on all of it.

    Args:
        function: its results have the batch (or one entry a shard) in front.
        replicated: whole on every shard; gradients are summed over the shards.
        batched: arrays or tuples of arrays with the batch in front.
    """
    mesh = jax.sharding.get_abstract_mesh()
    batch = len(jax.tree.leaves(batched)[0])
    axes: tuple[str, ...] = ()
    for axis in () if mesh.empty or mesh.manual_axes else mesh.axis_names:
        if batch % math.prod(mesh.shape[name] for name in (*axes, axis)) == 0:
            axes = (*axes, axis)
    if math.prod(mesh.shape[name] for name in axes) == 1:
        return function(*replicated, *batched)
    split = PartitionSpec(axes)
    specs = (*(PartitionSpec() for _ in replicated), *(split for _ in batched))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(*replicated, *batched)
