import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_skysense import FUSED, MODALITIES, REGIONS, STEPS, noise, objective, program, recipe

from terra_jax.errors import ConfigError
from terra_jax.parallel.mesh import make_mesh
from terra_jax.training.build import build
from terra_jax.training.optimiser import AdamW


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Results are compared among themselves, so that nothing is gained from optimised code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def _run(made, batches, **options):
    run = program(made, **options)
    state, losses = run.init(), []
    for batch in batches:
        state, metrics = run.step(state, run.place(batch))
        losses.append({name: float(value) for name, value in metrics.items()})
    return run, losses, state


@pytest.fixture(scope="module")
def trained():
    """A one-device run of STEPS steps: objective, batches, metrics and the last state."""
    made = objective()
    batches = [noise(made.batch_spec, 16, seed=step) for step in range(STEPS)]
    _, losses, state = _run(made, batches)
    return made, batches, losses, jax.device_get(state)


def _differences(state, expected):
    state = jax.device_get(state)
    for part in ("params", "extra"):
        leaves = zip(jax.tree_util.tree_leaves_with_path(expected[part]), jax.tree.leaves(state[part]), strict=True)
        for (path, leaf), other in leaves:
            error = np.linalg.norm(other - leaf) / max(np.linalg.norm(leaf), 1e-3)
            yield f"{part}{jax.tree_util.keystr(path)}", error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "devices"), [((2, 1, 1), 2), ((8, 1, 1), 8), ((2, 2, 2), 8)], ids=["2", "8", "data-fsdp-tensor"]
)
def test_every_mesh_gives_the_one_device_run(trained, shape, devices):
    made, batches, losses, expected = trained
    mesh = make_mesh(*shape, devices=jax.devices()[:devices])
    run, ours, state = _run(made, batches, mesh=mesh)
    rows = state["extra"]["prototypes"].sharding.shard_shape(expected["extra"]["prototypes"].shape)
    assert rows[0] == REGIONS // devices  # the table lies in parts on the devices
    for one, other in zip(ours, losses, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    # The heads divide by the lengths of short vectors, which makes rounding in their biases grow.
    worst = sorted(_differences(state, expected), key=lambda pair: -pair[1])[:5]
    assert worst[0][1] <= 5e-5, worst
    assert run.abstract_state["extra"]["prototypes"].sharding.spec[0] is not None


def test_the_run_moves_what_it_should(trained):
    made, _, losses, state = trained
    assert all(np.isfinite(row["loss"]) for row in losses)
    assert set(state["extra"]["centres"]) == {
        f"{space}_{level}" for space in (*MODALITIES, "fused") for level in ("pixel", "object", "image")
    }
    assert all(np.abs(centre).max() > 0 for centre in state["extra"]["centres"].values())
    first = jax.device_get(program(made).init())
    moved = np.abs(state["extra"]["prototypes"] - first["extra"]["prototypes"]).max((1, 2))
    assert (moved > 0).all()  # every region occurs
    changed = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state["params"], first["params"])
    leaves = jax.tree_util.tree_leaves_with_path(changed)
    resting = {jax.tree_util.keystr(path, simple=True, separator="/") for path, change in leaves if change == 0}
    # Only the last stage's map is fused, and the encoders of series are not fed their class tokens.
    unused = {"hr/norm0/bias", "hr/norm0/scale", "s1/cls", "s2/cls"}
    assert resting == {f"encoder/{name}" for name in unused}
    student, teacher = state["params"]["encoder"], state["extra"]["teacher"]["encoder"]
    assert not np.allclose(student["fusion"]["projection"]["kernel"], teacher["fusion"]["projection"]["kernel"])


@pytest.fixture(scope="module")
def after():
    """A batch, the first extra, and what one step makes of it without an update of the parameters."""
    made = objective()
    run = program(made)
    params = run.init()["params"]
    extra = made.extra(params)

    @jax.jit
    def step(batch):
        loss, (tally, metrics) = made.loss(run.bind, params, extra, batch, jax.random.key(0), jnp.int32(0))
        moved = made.after_update(extra, params, tally, jnp.int32(0))
        return {name: value for name, value in moved.items() if name != "teacher"}, loss, metrics

    return step, extra, made.batch_spec


def test_only_the_regions_of_the_batch_move(after):
    step, before, spec = after
    batch = noise(spec, 4)
    batch["region"] = np.array([5, 5, 2, 5], np.int32)
    first, _, _ = step(batch)
    moved = np.abs(np.asarray(first["prototypes"] - before["prototypes"])).max((1, 2)) > 0
    assert list(np.flatnonzero(moved)) == [2, 5]
    other = {**batch, "HR": batch["HR"].copy()}
    other["HR"][2] = 255 - other["HR"][2]
    again, _, _ = step(other)
    assert np.array_equal(again["prototypes"][5], first["prototypes"][5])
    assert not np.allclose(again["prototypes"][2], first["prototypes"][2])


def test_a_masked_frame_has_no_influence(after):
    step, _, spec = after
    batch = noise(spec, 4)
    batch["S2L2A/frames"][:] = np.arange(3)
    batch["S2L2A/present"][..., 2] = False
    batch["HR/present"][1] = False
    other = {name: array.copy() for name, array in batch.items()}
    other["S2L2A/10"][:, 2] += 1000
    other["S2L2A/20"][:, 2] = 0
    other["S2L2A/days"][..., 2] = 7
    other["HR"][1] = 0
    first, second = step(batch), step(other)
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


def test_parts_of_a_batch_give_the_whole_step():
    """All but the alignment, whose negatives are the other places of a part."""
    made = dataclasses.replace(objective(), alignment_weight=0.0)
    batch = noise(made.batch_spec, 8)
    states = []
    for accumulation in (1, 2):
        run = build(
            made,
            AdamW(steps=STEPS, learning_rate=1e-3, eps=1e-4),
            make_mesh(data=1, devices=jax.devices()[:1]),
            accumulation=accumulation,
        )
        states.append(run.step(run.init(), run.place(batch))[0])
    for name, error in _differences(states[1], jax.device_get(states[0])):
        assert error <= 1e-5, f"{name}: {error}"


def test_local_views_and_prototypes_of_another_width():
    made_by = recipe(local_views=1, high_resolution=False, frames={"S2L2A": 2}, shipped={"S2L2A": 3})
    made = objective(("S2L2A",), made_by, prototype_width=6, head_per="space", levels=("pixel", "image"))
    made = dataclasses.replace(made, outputs={"pixel": 16, "image": 16})
    batch = noise(made.batch_spec, 2)
    run = program(made)
    state = run.init()
    assert state["extra"]["prototypes"].shape == (REGIONS, 4, 6)
    assert set(state["params"]["heads"]) == {"s2l2a", "fused"}
    assert state["params"]["heads"]["fused"]["fc1"]["kernel"].shape[0] == 2 * FUSED
    before = jax.device_get(state["extra"]["prototypes"])
    state, metrics = run.step(state, run.place(batch))
    assert np.isfinite(float(metrics["loss"])) and float(metrics["loss_alignment"]) == 0
    assert np.abs(np.asarray(state["extra"]["prototypes"]) - before).max() > 0


def test_without_geo_context_there_is_no_table():
    made = objective(geo_context=False, levels=("image",), modality_dropout=0.5)
    run = program(made)
    state = run.init()
    assert set(state["extra"]) == {"teacher", "centres"}
    assert state["params"]["heads"]["fused_image"]["fc1"]["kernel"].shape[0] == FUSED
    _, metrics = run.step(state, run.place(noise(made.batch_spec, 2)))
    assert np.isfinite(float(metrics["loss"])) and "loss_pixel" not in metrics


def test_impossible_options_are_named():
    with pytest.raises(ConfigError, match=r"objective\.levels.*must be some of pixel, object, image"):
        objective(levels=("pixels",))
    with pytest.raises(ConfigError, match=r"objective\.outputs lacks image"):
        objective(outputs={"pixel": 4, "object": 4})
    with pytest.raises(ConfigError, match="head_per=space wants equal outputs"):
        program(objective(head_per="space"))
