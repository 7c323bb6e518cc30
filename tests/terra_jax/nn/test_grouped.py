import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from jax.extend import core
from jax.sharding import NamedSharding, PartitionSpec

from terra_jax.nn.grouped import block_rows, grouped_cross_entropy, grouped_lookup, grouped_projection
from terra_jax.nn.patches import patchify
from terra_jax.parallel.mesh import make_mesh

SIZES = (11, 7, 30)
BATCH, ROWS, WIDTH = 8, 20, 6


def mixed(shape, groups, seed=0):
    """Every row in any group or in none."""
    return np.random.default_rng(seed).integers(-1, groups, shape)


MIXES = {
    "all groups": mixed((BATCH, ROWS), 3),
    "one group": np.full((BATCH, ROWS), 1),
    "an empty group": np.where(mixed((BATCH, ROWS), 3) == 1, 2, mixed((BATCH, ROWS), 3)),
    "the last only, and padding": np.where(np.arange(ROWS) < 3, 2, -1) * np.ones((BATCH, 1), int),
    "nothing": np.full((BATCH, ROWS), -1),
}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def tables():
    return tuple(normal(i, size, WIDTH) for i, size in enumerate(SIZES))


def entropy_arguments(groups):
    """Rows, groups, labels that every group has, weights."""
    labels = np.random.default_rng(1).integers(0, min(SIZES), groups.shape)
    x, weights = normal(5, *groups.shape, WIDTH), jax.random.uniform(jax.random.key(6), groups.shape)
    return x, jnp.asarray(groups), jnp.asarray(labels), weights


def dense_cross_entropy(x, tables, groups, labels, weights):
    """Every row through every table."""
    losses = jnp.zeros(groups.shape)
    for group, table in enumerate(tables):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(x @ table.T), labels[..., None], -1)[..., 0]
        losses = jnp.where(groups == group, -chosen, losses)
    return (weights * losses).sum(), losses


def close(actual, expected, tolerance=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), actual, expected)


@pytest.mark.parametrize("mix", MIXES)
def test_cross_entropy_and_gradients_equal_the_dense_ones(mix, tables):
    x, groups, labels, weights = entropy_arguments(MIXES[mix])

    def outcome(function):
        scaled = lambda x, tables: (3 * (r := function(x, tables, groups, labels, weights))[0], r)  # noqa: E731
        return jax.jit(jax.value_and_grad(scaled, (0, 1), has_aux=True))(x, tables)

    close(outcome(grouped_cross_entropy), outcome(dense_cross_entropy))
    close(jax.jit(grouped_cross_entropy)(x, tables, groups, labels, weights), outcome(dense_cross_entropy)[0][1])


def test_bfloat16_rows_keep_float32_losses_and_gradients(tables):
    x, *rest = entropy_arguments(MIXES["all groups"])
    loss = lambda x, tables: grouped_cross_entropy(x, tables, *rest)  # noqa: E731
    (total, losses), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x.astype(jnp.bfloat16), tables)
    assert total.dtype == losses.dtype == gradients[1][0].dtype == jnp.float32 and gradients[0].dtype == jnp.bfloat16
    close(losses, dense_cross_entropy(x, tables, *rest)[1], 0.05)


def test_reported_losses_have_no_gradient(tables):
    x, *rest = entropy_arguments(MIXES["all groups"])
    assert not jax.grad(lambda x: grouped_cross_entropy(x, tables, *rest)[1].sum())(x).any()


# --- cost ---


def products(jaxpr):
    """Matrix products of a jaxpr without loops: the multiplications of each."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            yield math.prod(out) * math.prod(left[i] for i in contracted)
        assert equation.primitive.name != "while"
    for inner in core.subjaxprs(jaxpr):
        yield from products(inner)


def loops(jaxpr, constants, arguments):
    """Run a jaxpr, but each loop once over: (turns, multiplications of a turn) of every loop, and the outputs."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else values[v]  # noqa: E731
    found = []
    for equation in jaxpr.eqns:
        inputs, parameters = [read(v) for v in equation.invars], equation.params
        closed = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        if equation.primitive.name == "while":
            condition = parameters["cond_jaxpr"].jaxpr
            assert [e.primitive.name for e in condition.eqns] == ["lt"] and condition.eqns[
                0
            ].invars == condition.invars[:2]
            outputs = inputs[parameters["cond_nconsts"] + parameters["body_nconsts"] :]
            found.append((int(outputs[1] - outputs[0]), sum(products(parameters["body_jaxpr"].jaxpr))))
        elif closed is not None:
            inner, outputs = loops(closed.jaxpr, closed.consts, inputs)
            found += inner
        else:
            assert equation.primitive.name != "dot_general"
            outputs = equation.primitive.bind(*inputs, **parameters)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        values |= zip(equation.outvars, outputs, strict=True)
    return found, [read(v) for v in jaxpr.outvars]


def rows_multiplied(function, *arguments, table):
    """Rows that all matrix products of a run take through tables of this shape."""
    closed = jax.make_jaxpr(function)(*arguments)
    found, _ = loops(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
    return sum(turns * work for turns, work in found) / math.prod(table)


def budgets(count):
    """Mixes of 20 x 20 rows: even, all in one group, a row in each but one, some rows in none."""
    even = np.arange(400).reshape(20, 20) % count
    return {
        "even": even,
        "one": np.zeros((20, 20), int),
        "crumbs": np.where(np.arange(400).reshape(20, 20) < count, even, count - 1),
        "padding": np.where(even < 2, -1, even),
    }


@pytest.mark.parametrize("mix", ["even", "one", "crumbs", "padding"])
@pytest.mark.parametrize("count", [3, 7, 13])
def test_rows_through_the_tables_follow_the_budget(mix, count):
    groups = budgets(count)[mix]
    x, groups, labels, weights = entropy_arguments(groups)
    tables = tuple(normal(i, 9, WIDTH) for i in range(count))
    loss = lambda x, tables: grouped_cross_entropy(x, tables, groups, labels % 9, weights)[0]  # noqa: E731
    for function, times in ((loss, 1), (jax.grad(loss, (0, 1)), 3)):
        rows = rows_multiplied(function, x, tables, table=(9, WIDTH))
        assert times * (groups >= 0).sum() <= rows <= times * 1.25 * groups.size


@pytest.mark.parametrize("count", [3, 13])
def test_projected_rows_follow_the_budget(count):
    inputs = tuple(normal(i, 20, 5, 4) for i in range(count))
    kernels = tuple(normal(9 + i, 4, WIDTH) for i in range(count))
    groups = jnp.asarray(budgets(count)["even"])
    places = jnp.asarray(np.random.default_rng(2).integers(0, 5, groups.shape))
    function = lambda kernels: grouped_projection(groups, places, inputs, kernels).sum()  # noqa: E731
    for run, times in ((function, 1), (jax.grad(function), 2)):
        rows = rows_multiplied(run, kernels, table=(4, WIDTH))
        assert times * groups.size <= rows <= times * 1.25 * groups.size


@pytest.mark.parametrize(("rows", "groups"), [(1, 13), (13, 7), (512, 7), (2048, 7), (2048, 13), (100_000, 3)])
def test_blocks_pad_any_mix_by_a_quarter_at_most(rows, groups):
    assert block_rows(rows, groups) >= 1 and rows + groups * (block_rows(rows, groups) - 1) <= 1.25 * rows
    assert block_rows(rows, groups) > 0.1 * rows / groups


def test_nothing_of_rows_times_classes_is_made():
    x, *rest = entropy_arguments(mixed((16, 64), 7))
    tables = tuple(normal(i, 50, WIDTH) for i in range(7))
    loss = lambda x, tables: grouped_cross_entropy(x, tables, *rest)[0]  # noqa: E731
    kept = jax.eval_shape(lambda x, tables: jax.vjp(loss, x, tables)[1], x, tables)
    assert sum(leaf.size for leaf in jax.tree.leaves(kept)) < 1.1 * (x.size + sum(table.size for table in tables))

    def largest(jaxpr):
        here = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars]
        return max([0, *here] + [largest(inner) for inner in core.subjaxprs(jaxpr)])

    assert largest(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, tables).jaxpr) < 16 * 64 * 50 / 2


# --- projections and look-ups ---


def test_projection_equals_one_row_after_another():
    sizes = (5, 3, 8)
    inputs = tuple(normal(i, BATCH, 4 + i, size) for i, size in enumerate(sizes))
    kernels = tuple(normal(9 + i, size, WIDTH) for i, size in enumerate(sizes))
    groups = MIXES["all groups"]
    places = np.random.default_rng(2).integers(0, 4, groups.shape)

    def plain(kernels):
        rows = [
            [inputs[g][b, place] @ kernels[g] if g >= 0 else jnp.zeros(WIDTH) for g, place in zip(*row, strict=True)]
            for b, row in enumerate(zip(groups.tolist(), places.tolist(), strict=True))
        ]
        return jnp.asarray(rows)

    grouped = lambda kernels: grouped_projection(jnp.asarray(groups), jnp.asarray(places), inputs, kernels)  # noqa: E731
    close(jax.jit(grouped)(kernels), plain(kernels))
    close(
        jax.jit(jax.grad(lambda k: jnp.sin(grouped(k)).sum()))(kernels),
        jax.grad(lambda k: jnp.sin(plain(k)).sum())(kernels),
    )


def test_images_give_their_patches():
    images = (normal(0, BATCH, 8, 12, 3), normal(1, BATCH, 8, 12, 1))
    kernels = (normal(2, 48, WIDTH), normal(3, 16, WIDTH))
    groups = jnp.asarray(mixed((BATCH, ROWS), 2))
    places = jnp.asarray(np.random.default_rng(3).integers(0, 6, groups.shape))
    patches = tuple(patchify(image, 4) for image in images)
    assert patches[0].shape == (BATCH, 6, 48)
    function = functools.partial(grouped_projection, groups, places)
    close(function(images, kernels), function(patches, kernels))


def test_inputs_of_a_projection_have_no_gradient():
    groups = jnp.zeros((2, 3), jnp.int32)
    gradient = jax.grad(lambda x: grouped_projection(groups, groups, (x,), (jnp.ones((4, 5)),)).sum())
    assert not gradient(jnp.ones((2, 3, 4))).any()


@pytest.mark.parametrize("mix", MIXES)
def test_lookup_and_its_gradient(mix, tables):
    groups = MIXES[mix]
    ids = np.random.default_rng(4).integers(0, min(SIZES), groups.shape)
    together = jnp.asarray(np.where(groups < 0, sum(SIZES), ids + np.cumsum((0, *SIZES[:-1]))[groups]))

    def plain(tables):
        return jnp.concatenate([*tables, jnp.zeros((1, WIDTH))])[together]

    def grouped(tables):
        return grouped_lookup(tables, jnp.asarray(groups), jnp.asarray(ids))

    close(grouped(tables), plain(tables))
    close(*(jax.grad(lambda t, f=f: jnp.sin(f(t)).sum())(tables) for f in (grouped, plain)))


# --- meshes ---


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}])
def test_eight_devices_equal_one(axes, tables):
    x, groups, labels, weights = entropy_arguments(MIXES["all groups"])
    kernels = (normal(7, 5, WIDTH), normal(8, 3, WIDTH), normal(9, 4, WIDTH))
    inputs = tuple(normal(20 + i, BATCH, 30, kernel.shape[0]) for i, kernel in enumerate(kernels))

    def loss(params, batch):
        x, groups, labels, weights, *inputs = batch
        y = x + grouped_projection(groups, labels, tuple(inputs), params["kernels"])
        y += grouped_lookup(params["tables"], groups, labels)
        return grouped_cross_entropy(y, params["tables"], groups, labels, weights)

    step = jax.value_and_grad(loss, has_aux=True)
    params, batch = {"kernels": kernels, "tables": tables}, (x, groups, labels, weights, *inputs)
    mesh = make_mesh(**{"data": 1, **axes})

    @jax.jit
    def sharded(params, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(params, batch)

    batch_placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
    params_placed = jax.device_put(
        params, NamedSharding(mesh, PartitionSpec(None, "fsdp" if "tensor" in axes else None))
    )
    close(sharded(params_placed, batch_placed), jax.jit(step)(params, batch))
    # each shard sorts its own rows: nothing of the batch is gathered
    program = sharded.lower(params_placed, batch_placed).compile().as_text()
    assert f"[{BATCH * ROWS},{WIDTH}]" not in program


def test_a_batch_that_the_mesh_does_not_divide_is_not_split(tables):
    x, groups, labels, weights = entropy_arguments(MIXES["all groups"][:3])
    mesh = make_mesh(data=8)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        split = jax.jit(grouped_cross_entropy)(x, tables, groups, labels, weights)
    close(split, grouped_cross_entropy(x, tables, groups, labels, weights))
