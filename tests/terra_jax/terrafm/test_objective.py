import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.recipes.terrafm import TerraFMRecipe
from data_pipelines.sources import open_source
from terra_jax.nn.initialisation import initial_params
from terra_jax.parallel.mesh import make_mesh
from terra_jax.terrafm.objective import TerraFMObjective
from terra_jax.terrafm.variants import Variant
from terra_jax.training.build import build
from terra_jax.training.optimiser import AdamW

MODALITIES = ("S2L2A", "S2L1C", "S1RTC")
TINY = Variant(width=32, depth=2, heads=2, patch=8, image=16, queries=2, fusion_heads=4)
STEPS = 20


@pytest.fixture(scope="module")
def source():
    return open_source("procedural", samples=64, tile=24, modalities=MODALITIES)


def _recipe(**changes):
    options = {"tile": 24, "local_views": 2, "global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25)}
    return TerraFMRecipe(**{"modalities": MODALITIES, **options, **changes})


def _objective(recipe, **changes):
    options = {"global_size": 16, "local_size": 8, "prototypes": 64, "head_hidden": 32, "head_bottleneck": 16}
    base = TerraFMObjective(TINY, recipe.batch_spec, recipe.modalities, steps=STEPS, **options)
    return dataclasses.replace(base, **changes)


def _batch(source, recipe, count, start=0):
    examples = [recipe(source[i % len(source)], i) for i in range(start, start + count)]
    return {key: np.stack([e[key] for e in examples]) for key in examples[0]}


def _program(objective, mesh=None, **optimiser):
    # Adam divides by the gradient's size: a larger eps keeps it from blowing up the rounding of vanishing gradients.
    options = {"steps": STEPS, "learning_rate": 1e-3, "eps": 1e-4, **optimiser}
    return build(objective, AdamW(**options), mesh or make_mesh(data=1, devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def trained(source):
    """A one-device run of STEPS steps: batches, losses and the last state."""
    recipe = _recipe()
    objective = _objective(recipe, frozen_head_steps=5)
    batches = [_batch(source, recipe, 16, 16 * step) for step in range(STEPS)]
    for batch in batches:  # frequent land cover on the first shard only
        batch["frequent"] = np.arange(16) < 2
    program = _program(objective, clip_norm=3.0)
    state, losses = program.init(), []
    for batch in batches:
        state, metrics = program.step(state, program.place(batch))
        losses.append(float(metrics["loss"]))
    return objective, batches, losses, jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=["data", "fsdp", "data-fsdp-tensor"])
def test_every_mesh_gives_the_one_device_run(trained, shape):
    objective, batches, losses, expected = trained
    program = _program(objective, make_mesh(*shape), clip_norm=3.0)
    state = program.init()
    for batch, loss in zip(batches, losses, strict=True):
        state, metrics = program.step(state, program.place(batch))
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    state = jax.device_get(state)
    for part in ("params", "extra"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected[part]):
            other = state[part]
            for key in path:
                other = other[key.key]
            error = np.linalg.norm(other - leaf) / max(np.linalg.norm(leaf), 1e-3)
            assert error <= 1e-5, f"{part}{jax.tree_util.keystr(path)}: {error}"


def test_the_run_learns_and_moves_what_it_should(trained):
    objective, _, losses, state = trained
    assert all(np.isfinite(losses))
    assert np.abs(state["extra"]["centre"]).max() > 0
    assert not np.allclose(state["extra"]["centre"], state["extra"]["frequent_centre"])
    student, teacher = state["params"]["encoder"], state["extra"]["teacher"]["encoder"]
    assert not np.allclose(student["norm"]["bias"], teacher["norm"]["bias"])
    start = initial_params(objective.build)["encoder"]["patch_embed"]["fusion"]
    for part, before in start.items():  # moved by gradients: weight decay alone would shrink every entry alike
        assert np.ptp(student["patch_embed"]["fusion"][part] / before) > 1e-3, part


def test_alpha_one_never_reads_the_frequent_centre(source):
    recipe = _recipe()
    batch = _batch(source, recipe, 4)
    objective = _objective(recipe, alpha=1.0)
    program = _program(objective)
    params = program.init()["params"]
    centre = jnp.linspace(-1, 1, 64)

    @jax.jit
    def loss(frequent_centre):
        extra = {**objective.extra(params), "centre": centre, "frequent_centre": frequent_centre}
        return objective.loss(program.bind, params, extra, batch, jax.random.key(0), jnp.int32(3))[0]

    assert loss(jnp.zeros(64)) == loss(jnp.ones(64).at[3].set(9))


def test_without_frequent_examples_their_centre_is_unchanged(source):
    recipe = _recipe()
    batch = {**_batch(source, recipe, 4), "frequent": np.zeros(4, bool)}
    objective = _objective(recipe)
    program = _program(objective)
    params = program.init()["params"]
    extra = {**objective.extra(params), "frequent_centre": jnp.linspace(0, 1, 64)}

    @jax.jit
    def after(batch):
        _, (tally, _) = objective.loss(program.bind, params, extra, batch, jax.random.key(0), jnp.int32(0))
        return objective.after_update(extra, params, tally, jnp.int32(0))

    moved = after(batch)
    assert np.array_equal(moved["frequent_centre"], extra["frequent_centre"])
    assert np.abs(moved["centre"]).max() > 0


def test_same_view_pairs_are_an_option(source):
    assert _objective(_recipe())._pairs(4).sum() == 6
    assert _objective(_recipe(), same_view=True)._pairs(4).sum() == 8


def test_one_modality_needs_no_fusion(source):
    recipe = _recipe(modalities=("S2L2A",), local_views=0)
    objective = _objective(recipe)
    program = _program(objective)
    params = program.init()["params"]
    batch = _batch(source, recipe, 4)

    def loss(params):
        return objective.loss(program.bind, params, objective.extra(params), batch, jax.random.key(0), jnp.int32(0))[0]

    gradient = jax.jit(jax.grad(loss))(params)["encoder"]["patch_embed"]
    assert not any(jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient["fusion"]))
    assert jnp.abs(gradient["s2_l2a"]["embedding"]["kernel"]).max() > 0
