"""Swin V2: windows, shifts, padding, position biases and scanned pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_tokenizer import random_module

from terra_jax.errors import ConfigError
from terra_jax.nn.swin import SwinBlock, SwinSize, SwinStage, SwinV2, WindowAttention, log_offsets, shifted_regions

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape, np.float32))


def stage(size, number=0, pad_small_map=True, remat="none"):
    options = {"pad_small_map": pad_small_map, "remat": remat, "dtype": jnp.float32}
    return random_module(lambda rngs: SwinStage(size, number, rngs=rngs, **options))


def run(module, *arguments):
    graphdef, state = nnx.split(module)
    return jax.jit(lambda s, *a: nnx.merge(graphdef, s)(*a))(state, *arguments)


def test_the_bias_of_a_pair_follows_from_its_offset():
    attention = random_module(lambda rngs: WindowAttention(8, 2, 4, 0, rngs=rngs, dtype=jnp.float32))
    hidden = jax.nn.relu(attention.bias_up(jnp.asarray(log_offsets(4))))
    table = np.asarray(16 * jax.nn.sigmoid(attention.bias_down(hidden)))
    bias = np.asarray(attention.position_bias())
    for i, j in [(0, 0), (0, 15), (15, 0), (6, 9), (7, 4)]:
        (iy, ix), (jy, jx) = divmod(i, 4), divmod(j, 4)
        np.testing.assert_allclose(bias[:, i, j], table[iy - jy + 3, ix - jx + 3], rtol=1e-6)


def test_offsets_are_spaced_logarithmically_in_units_of_the_pretrained_window():
    np.testing.assert_allclose(log_offsets(8)[0, 7], [-np.log2(9) / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(log_offsets(8)[14, 0], [np.log2(9) / 3, -np.log2(9) / 3], rtol=1e-6)
    np.testing.assert_allclose(log_offsets(16, 8)[15, 22], [0, np.log2(9) / 3], rtol=1e-6)


def test_shifted_windows_keep_apart_what_was_no_neighbour():
    """On a map of coordinates, pixels of a window are neighbours if they lie within a window of each other."""
    height, width, window, shift = 8, 12, 4, 2
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    rolled = [np.roll(a, (-shift, -shift), (0, 1)) for a in (y, x)]
    cut = [
        a.reshape(height // window, window, width // window, window).transpose(0, 2, 1, 3).reshape(-1, window**2)
        for a in rolled
    ]
    near = np.all([np.abs(a[:, :, None] - a[:, None]) < window for a in cut], axis=0)
    np.testing.assert_array_equal(shifted_regions(height, width, window, shift), near)


@pytest.mark.parametrize(("depth", "extra_norm"), [(1, 0), (3, 0), (6, 4), (7, 2)])
def test_scanned_pairs_equal_blocks_one_by_one(depth, extra_norm):
    made = stage(SwinSize((8,), (depth,), (2,), (4,), (0,), extra_norm=extra_norm))
    x = expected = normal(2, 8, 8, 8)

    def layer(stack, index):
        graphdef, state = nnx.split(stack)
        return nnx.merge(graphdef, jax.tree.map(lambda a: a[index], state))

    for i in range(depth):
        if i < depth - depth % 2:
            pair = layer(made.pairs, i // 2)
            expected = (pair.shifted if i % 2 else pair.plain)(expected, 0.0, None)
        else:
            expected = made.last(expected, 0.0, None)
        if extra_norm and (i + 1) % extra_norm == 0:
            expected = layer(made.norms, (i + 1) // extra_norm - 1)(expected)
    np.testing.assert_allclose(run(made, x, jnp.zeros(depth)), expected, atol=2e-5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_no_gradient(remat):
    size = SwinSize((8,), (4,), (2,), (4,), (0,), extra_norm=2)
    x = normal(1, 8, 8, 8)

    def gradient(remat):
        graphdef, state = nnx.split(stage(size, remat=remat))
        loss = lambda s: jnp.square(nnx.merge(graphdef, s)(x, jnp.zeros(4))).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(state)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-4), gradient("none"), gradient(remat))


def test_small_maps_are_refused_or_padded():
    block = lambda pad, shift: random_module(  # noqa: E731
        lambda rngs: SwinBlock(8, 2, 4, 0, rngs=rngs, shift=shift, pad_small_map=pad, dtype=jnp.float32)
    )
    x = normal(1, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"3 x 8 pixels is smaller than the .* window of 4.*pad_small_map"):
        block(False, True)(x, 0.0, None)
    assert block(True, True)(x, 0.0, None).shape == x.shape
    square = normal(1, 4, 8, 8)
    unshifted = block(False, False)(square, 0.0, None)
    np.testing.assert_array_equal(block(False, True)(square, 0.0, None), unshifted)
    assert np.abs(block(True, True)(square, 0.0, None) - unshifted).max() > 1e-3


def test_padding_has_finite_gradients():
    graphdef, state = nnx.split(stage(SwinSize((8,), (2,), (2,), (4,), (0,))))
    gradient = jax.jit(jax.grad(lambda s, x: nnx.merge(graphdef, s)(x, jnp.zeros(2)).sum()))(state, normal(1, 5, 6, 8))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_drop_path_skips_branches_of_single_samples():
    made = stage(SwinSize((8,), (2,), (2,), (4,), (0,)))
    x = normal(6, 8, 8, 8)
    whole = run(made, x, jnp.zeros(2))
    rates = jnp.array([0.0, 0.5])
    dropped = run(made, x, rates, jax.random.key(0))
    np.testing.assert_array_equal(run(made, x, rates), whole)
    assert np.abs(dropped - whole).max() > 1e-3
    np.testing.assert_array_equal(dropped, run(made, x, rates, jax.random.key(0)))


def test_a_pyramid_has_every_window_that_is_asked_for():
    size = SwinSize((8, 16, 32), (2, 2, 1), (2, 2, 4), (4, 4, 8), (0, 0, 4), patch=2)
    model = random_module(lambda rngs: SwinV2(size, rngs=rngs, pad_small_map=True))
    maps = model.maps(normal(1, 40, 24, 3))
    assert [m.shape for m in maps] == [(1, 20, 12, 8), (1, 10, 6, 16), (1, 5, 3, 32)]
    assert size.stride == 8


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="one entry for each stage"):
        SwinSize((8, 16), (2,), (2, 2), (4, 4), (0, 0))
    with pytest.raises(ConfigError, match="extra_norm=3 is odd"):
        SwinSize((8,), (6,), (2,), (4,), (0,), extra_norm=3)
