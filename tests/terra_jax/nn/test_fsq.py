import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.nn.fsq import FSQ

PUBLIC = [FSQ((8, 8, 8, 6, 5)), FSQ((7, 5, 5, 5, 5))]


@pytest.mark.parametrize(
    ("fsq", "size", "basis"), zip(PUBLIC, [15360, 4375], [(1, 8, 64, 512, 3072), (1, 7, 35, 175, 875)], strict=True)
)
def test_the_whole_codebook_comes_back(fsq, size, basis):
    assert (fsq.size, fsq.basis) == (size, basis)
    ids = jnp.arange(size)
    codes = np.asarray(fsq.codes(ids))
    assert codes.min() == 0 and codes.max() == 1 and len(np.unique(codes, axis=0)) == size
    latents = np.clip(np.log(codes + 1e-9) - np.log(1 - codes + 1e-9), -20, 20)  # the sigmoid's inverse
    again, back = fsq.quantise(jnp.asarray(latents))
    assert np.array_equal(back, ids) and back.dtype == jnp.int32
    assert np.array_equal(again, codes)  # bit for bit


def test_the_first_dimension_counts_fastest():
    np.testing.assert_allclose(PUBLIC[0].codes(jnp.asarray([1, 8, 3072]))[:, [0, 1, 4]], np.diag([1 / 7, 1 / 7, 1 / 4]))


@pytest.mark.parametrize(("levels", "number"), [(2, 0), (4, 2), (6, 2), (8, 4)])
def test_halves_round_to_even(levels, number):
    _, ids = FSQ((levels,)).quantise(jnp.zeros((1, 1)))
    assert int(ids[0]) == number


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30, width=32), min_size=5, max_size=5))
def test_codes_are_the_nearest(latents):
    for fsq in PUBLIC:
        codes, ids = fsq.quantise(jnp.asarray(latents, jnp.float32))
        error = np.abs(np.asarray(codes) - np.asarray(jax.nn.sigmoid(jnp.asarray(latents, jnp.float32))))
        assert (error <= 0.5 / (np.asarray(fsq.levels) - 1) + 1e-6).all() and 0 <= int(ids) < fsq.size


def test_gradients_pass_straight_through_the_rounding():
    latents = jnp.asarray([-2.0, -0.3, 0.1, 0.8, 3.0])
    gradient = jax.grad(lambda z: (PUBLIC[0].quantise(z)[0] * jnp.arange(1.0, 6)).sum())(latents)
    smooth = jax.grad(lambda z: (jax.nn.sigmoid(z) * jnp.arange(1.0, 6)).sum())(latents)
    np.testing.assert_allclose(gradient, smooth, rtol=1e-6)
