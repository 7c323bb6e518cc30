from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx
from random_tokenizer import random_module

from terra_jax.nn.initialisation import abstract, initialise
from terra_jax.nn.unet import Conv, GroupNorm, UNet, UNetSize, Upsample, enlarged, plan, timestep_embedding

SMALL = UNetSize(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), patch=2, groups=4)
SMALLER = replace(SMALL, multipliers=(1,), attention=())


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def unet():
    return random_module(lambda rngs: UNet(SMALL, 3, 5, rngs=rngs))


call = jax.jit(UNet.__call__)


def test_the_public_plan():
    down, up = plan(UNetSize())
    assert [step.resample for step in down] == ["", "", "", "down"] * 3 + [""] * 3
    assert [step.outputs for step in down] == [256] * 4 + [512] * 11
    assert [i for i, step in enumerate(down) if step.attention] == [8, 9, 10, 12, 13, 14]
    assert [step.inputs for step in up] == [1024] * 11 + [768] * 2 + [512] * 3
    assert [step.outputs for step in up] == [512] * 12 + [256] * 4
    assert [i for i, step in enumerate(up) if step.attention] == list(range(8))
    assert [i for i, step in enumerate(up) if step.resample == "up"] == [3, 7, 11]
    assert UNetSize().multiple == 32


def test_images_of_any_fitting_size_keep_their_shape(unet):
    for rows, columns in ((8, 8), (4, 12)):
        image = jnp.ones((2, rows, columns, 3))
        assert call(unet, image, jnp.ones((2, rows // 4, columns // 4, 5)), jnp.asarray([0, 999])).shape == image.shape


def test_everything_given_matters_and_examples_do_not_mix(unet):
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    codes = jax.random.uniform(jax.random.key(2), (2, 2, 2, 5))
    t = jnp.asarray([100, 700])
    output = call(unet, image, codes, t)
    for changed in ((image.at[1].add(1), codes, t), (image, codes.at[1].set(0), t), (image, codes, t.at[1].set(5))):
        other = call(unet, *changed)
        np.testing.assert_allclose(other[0], output[0], atol=1e-5)
        assert np.abs(other[1] - output[1]).max() > 1e-3


def test_training_starts_from_zero():
    fresh = initialise(lambda rngs: UNet(SMALLER, 3, 5, rngs=rngs))
    assert not np.any(call(fresh, jnp.ones((1, 8, 8, 3)), jnp.ones((1, 2, 2, 5)), jnp.zeros(1, int)))


def test_rematerialisation_changes_no_gradient():
    arguments = jnp.ones((1, 4, 4, 3)), jnp.ones((1, 2, 2, 5)), jnp.asarray([300])

    def gradient(remat):
        model = random_module(lambda rngs: UNet(SMALLER, 3, 5, rngs=rngs, remat=remat))
        return jax.tree.leaves(jax.jit(jax.grad(lambda model: jnp.square(model(*arguments)).sum()))(model))

    for kept, recomputed in zip(gradient("none"), gradient("full"), strict=True):
        np.testing.assert_allclose(recomputed, kept, rtol=1e-4, atol=1e-4)


def test_parameters_and_result_stay_float32_in_bfloat16():
    graphdef, params = abstract(lambda rngs: UNet(SMALL, 3, 5, rngs=rngs, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    arguments = (jnp.ones((1, 8, 8, 3)), jnp.ones((1, 2, 2, 5)), jnp.zeros(1, int))
    output = jax.eval_shape(lambda params: nnx.merge(graphdef, nnx.State(params))(*arguments), params)
    assert output.dtype == jnp.float32


def test_group_norm_is_the_textbook_one():
    x = np.random.default_rng(0).normal(3, 2e-3, (2, 3, 5, 8)).astype(np.float32)  # variance comparable with eps
    norm = initialise(lambda rngs: GroupNorm(8, 4, rngs=rngs))
    split = x.astype(np.float64).reshape(2, 15, 4, 2)
    centred = split - split.mean((1, 3), keepdims=True)
    expected = centred / np.sqrt(split.var((1, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(x), expected.reshape(x.shape), atol=1e-3)
    assert norm.eps == 1e-5


def test_timestep_embedding_has_cosines_first():
    embedding = timestep_embedding(jnp.asarray([0, 500]), 256)
    np.testing.assert_array_equal(embedding[0], np.repeat([1.0, 0.0], 128))
    np.testing.assert_allclose(embedding[1, 64], np.cos(500 * 10_000**-0.5), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 1, 6)])
def test_upsampling_by_parities_equals_convolving_the_larger_image(shape):
    layer = random_module(lambda rngs: Upsample(6, 5, rngs=rngs))
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_allclose(layer(x), Conv.__call__(layer, enlarged(x, 2)), atol=1e-5)


def test_enlarging_repeats_pixels():
    np.testing.assert_array_equal(enlarged(jnp.arange(4).reshape(1, 2, 2, 1), 2)[0, :, :, 0], [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3],
    ])  # fmt: skip
