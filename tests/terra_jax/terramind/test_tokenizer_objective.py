import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation

from data_pipelines.recipes.tokenizer import TokenizerRecipe, WindowRecipe
from data_pipelines.sources import open_source
from data_pipelines.sources.cached import CachedSource
from terra_jax.nn.unet import UNetSize
from terra_jax.parallel.mesh import make_mesh
from terra_jax.terramind.tokenizer_objective import TokenizerObjective, cut_images, perplexity, spread_loss
from terra_jax.terramind.variants import TokenizerVariant
from terra_jax.training.build import build
from terra_jax.training.optimiser import AdamW

NAMES = ("S2L2A", "LULC")
STEPS = 12


@pytest.fixture(scope="module", autouse=True)
def fast(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def source():
    return CachedSource(open_source("procedural", samples=32, tile=36, modalities=NAMES))


def variant(name):
    size = UNetSize(channels=16, multipliers=(1,), blocks=1, attention=(), groups=8)
    options = {"width": 32, "depth": 1, "heads": 2, "patch": 8, "table": 4, "image": 32}
    levels = (4, 4, 4, 3, 3)
    return TokenizerVariant(name, levels=levels, unet=None if name == "LULC" else size, **options)


def objective(name, **changes):
    return dataclasses.replace(
        TokenizerObjective(variant(name), TokenizerRecipe(name, 36).batch_spec, sizes=(32,)), **changes
    )


def batch_of(source, recipe, count, start=0):
    examples = [recipe(source[i % len(source)], i) for i in range(start, start + count)]
    return {key: np.stack([e[key] for e in examples]) for key in examples[0]}


def program_of(made, mesh=None, **options):
    # Adam divides by the gradient's size: a larger eps keeps it from blowing up the rounding of vanishing gradients.
    optimiser = AdamW(steps=STEPS, learning_rate=3e-3, eps=1e-4, clip_norm=1.0, clip="all")
    return build(made, optimiser, mesh or make_mesh(data=1, devices=jax.devices()[:1]), **options)


def run(source, name, program):
    """Losses of STEPS steps and the last state."""
    state, losses = program.init(), []
    for step in range(STEPS):
        batch = batch_of(source, TokenizerRecipe(name, 36), 16, 16 * step)
        state, metrics = program.step(state, program.place(batch))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


@pytest.fixture(scope="module", params=NAMES)
def trained(request, source):
    name = request.param
    return name, *run(source, name, program_of(objective(name, ema_momentum=0.9)))


def test_the_run_learns_and_its_mean_follows(trained):
    name, losses, state = trained
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    params, mean = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
                    for tree in (state["params"], state["extra"]["ema"]))  # fmt: skip
    start = program_of(objective(name)).init()["params"]
    first = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(jax.device_get(start))])
    assert 0 < np.linalg.norm(mean - params) < np.linalg.norm(first - params)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=["data", "data-fsdp-tensor"])
def test_every_mesh_gives_the_one_device_run(trained, source, shape):
    name, losses, state = trained
    others, other = run(source, name, program_of(objective(name, ema_momentum=0.9), make_mesh(*shape)))
    assert others == pytest.approx(losses, rel=2e-4)
    for mine, yours in zip(jax.tree.leaves(state["extra"]), jax.tree.leaves(other["extra"]), strict=True):
        assert np.linalg.norm(mine - yours) <= 2e-3 * max(np.linalg.norm(mine), 0.1)


def test_gradients_reach_the_encoder_through_the_quantisation(source):
    for name in NAMES:
        made = objective(name)
        program = program_of(made)
        batch = batch_of(source, TokenizerRecipe(name, 36), 4)
        params = program.init()["params"]
        if name == "S2L2A":  # the public UNet's last convolution begins at zero: nothing passes it at first
            kernel = params["tokenizer"]["decoder"]["out"]["kernel"]
            params["tokenizer"]["decoder"]["out"]["kernel"] = jnp.full_like(kernel, 0.01)

        def loss(params, made=made, program=program, batch=batch):
            return made.loss(program.bind, params, {}, batch, jax.random.key(0), jnp.int32(0))[0]

        gradient = jax.jit(jax.grad(loss))(params)["tokenizer"]["encoder"]
        assert jnp.abs(gradient["embedding"]["kernel"]).max() > 0


def test_without_a_mean_nothing_rides_along(source):
    made = objective("LULC")
    params = program_of(made).init()["params"]
    assert made.extra(params) == made.after_update({}, params, {}, jnp.int32(0)) == {}


def test_batches_draw_their_size(source):
    made = objective("LULC", sizes=(16, 32))
    program = program_of(made)
    params, batch = program.init()["params"], batch_of(source, TokenizerRecipe("LULC", 36), 2)

    def loss(made, key):
        return made.loss(program.bind, params, {}, batch, key, jnp.int32(0))[0]

    drawn = jax.jit(lambda keys: jax.lax.map(lambda key: loss(made, key), keys))(
        jax.random.split(jax.random.key(0), 12)
    )
    single = {
        float(jax.jit(lambda s=size: loss(objective("LULC", sizes=(s,)), jax.random.key(0)))()) for size in (16, 32)
    }
    assert {round(float(value), 4) for value in drawn} == {round(value, 4) for value in single} and len(single) == 2


def test_whole_windows_are_cut_exactly(source):
    sample = source[3]
    for name in NAMES:
        batch = {key: value[None] for key, value in WindowRecipe(name, 36, 16)(sample, 0).items()}
        images = cut_images(batch, name, 16)
        assert images.shape[:3] == (4, 16, 16)
        fine = batch[f"{name}/10"][0]
        if name == "LULC":
            assert images.dtype == jnp.int32
            np.testing.assert_array_equal(images[1], fine[0, 2:18, 18:34])
        else:
            np.testing.assert_allclose(images[1][..., [1, 2, 3, 7]], fine[:, 2:18, 18:34].transpose(1, 2, 0), atol=2e-2)


def test_perplexity_counts_codes_that_are_used_alike():
    assert float(perplexity(jnp.array([[0, 1], [2, 3]]), 50)) == pytest.approx(4)
    assert float(perplexity(jnp.zeros((2, 2), jnp.int32), 50)) == pytest.approx(1)


def test_the_spread_is_measured_against_codes_that_are_used_alike():
    rng = np.random.default_rng(0)
    even = rng.logistic(size=(200, 10, 10, 5)).astype(np.float32)
    assert float(spread_loss(even)) < 0.01
    assert np.ptp(np.histogram(jax.nn.sigmoid(even), bins=8)[0]) < 0.05 * even.size / 8
    same = np.repeat(even[..., :1], 5, axis=-1)
    assert float(spread_loss(same)) == pytest.approx(0.8, abs=0.1)  # all five follow one
    assert float(spread_loss(0.0 * even)) == pytest.approx(0.2) and float(spread_loss(4 * even)) > 20


def test_codes_that_tell_the_position_alone_fill_no_codebook():
    position = np.random.default_rng(0).logistic(size=(1, 20, 20, 5)).astype(np.float32)
    assert float(spread_loss(np.repeat(position, 8, axis=0))) > 0.2
