from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from terra_jax.nn.linear import contract
from terra_jax.parallel.expected_trips import expected_trips
from terra_jax.parallel.flops import count_flops, touched
from terra_jax.parallel.mesh import make_mesh


def flops(function, *shapes):
    return count_flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def square(x):
    return x @ x


SQUARE = 2 * 8**3


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (jnp.dot, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (partial(jnp.einsum, "bhnd,bhmd->bhnm"), [(2, 3, 5, 7), (2, 3, 11, 7)], 2 * 2 * 3 * 5 * 7 * 11),
        (partial(jnp.einsum, "bnhd,hde->bne"), [(2, 5, 3, 4), (3, 4, 9)], 2 * 2 * 5 * 12 * 9),
        (lambda x: jax.lax.scan(lambda c, _: (square(c), None), x, None, length=6)[0], [(8, 8)], 6 * SQUARE),
        (lambda x: jax.lax.fori_loop(2, 7, lambda i, c: square(c), x), [(8, 8)], 5 * SQUARE),
        (lambda x: jax.lax.cond(x[0, 0] > 0, square, lambda x: square(square(x)), x), [(8, 8)], 2 * SQUARE),
        (lambda x: jax.jit(jax.checkpoint(square))(x) + jnp.tanh(x), [(8, 8)], SQUARE),
        (partial(contract, axes=1), [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (jnp.tanh, [(8, 8)], 0),
    ],
)
def test_products_are_counted_as_by_hand(function, shapes, expected):
    assert flops(function, *shapes) == expected


def test_a_gradient_costs_twice_its_product_and_recomputation_adds_to_it():
    def loss(w, x, remat):
        layer = jax.checkpoint(lambda x, w: jnp.tanh(x @ w)) if remat else lambda x, w: jnp.tanh(x @ w)
        return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, w)[0])

    shapes = [(4, 8, 8), (16, 8)]
    forward = flops(partial(loss, remat=False), *shapes)
    assert forward == 4 * 2 * 16 * 8 * 8
    assert flops(jax.grad(partial(loss, remat=False)), *shapes) == 3 * forward
    assert flops(jax.grad(partial(loss, remat=True)), *shapes) == 4 * forward


def while_loop(start, stop):
    def run(x):
        first = (jnp.int32(0), x) if start is None else (start, x)
        return jax.lax.while_loop(lambda c: c[0] < stop, lambda c: (c[0] + 1, square(c[1])), first)[1]

    return run


def test_while_loops_count_as_often_as_they_are_known_to_run():
    assert flops(while_loop(np.int32(2), np.int32(9)), (8, 8)) == 7 * SQUARE
    by_data = lambda x: jax.lax.while_loop(lambda c: c.sum() < 9, square, x)  # noqa: E731
    assert flops(by_data, (8, 8)) == SQUARE

    def noted(x):
        with expected_trips(5):
            return by_data(x)

    assert flops(noted, (8, 8)) == 5 * SQUARE


def test_a_shard_map_counts_on_every_device():
    mesh = make_mesh(data=4, fsdp=2)
    batch = PartitionSpec(("data", "fsdp"))
    mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(batch, PartitionSpec()), out_specs=batch)
    assert flops(mapped, (16, 4), (4, 6)) == 2 * 16 * 4 * 6


@pytest.mark.parametrize(("stride", "padding"), [(1, "VALID"), (1, "SAME"), (2, "SAME"), (3, "VALID")])
def test_convolutions_count_the_taps_that_meet_the_image(stride, padding):
    image, kernel = (2, 9, 7, 3), (3, 3, 3, 5)
    layout = ("NHWC", "HWIO", "NHWC")
    convolve = partial(
        jax.lax.conv_general_dilated, window_strides=(stride, stride), padding=padding, dimension_numbers=layout
    )
    # Ones inside, nothing outside: every output is the number of taps that met a pixel, times the channels.
    met = convolve(jnp.ones((1, 9, 7, 3)), jnp.ones((3, 3, 3, 1))).sum()
    assert flops(convolve, image, kernel) == 2 * 2 * 5 * float(met)


def test_holes_of_a_dilated_image_cost_nothing():
    assert touched(5, 3, 3) == 9
    assert touched(5, 3, 5, padding=1) == 13
    assert touched(4, 1, 7, image_dilation=2) == 4
