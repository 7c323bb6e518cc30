import functools

import jax
import numpy as np
import pytest
from toy_run import Toy, batch_at

from terra_jax.parallel.mesh import make_mesh
from terra_jax.training.build import build
from terra_jax.training.checkpoints import Checkpoints
from terra_jax.training.optimiser import AdamW

STEPS = 20
OPTIMISER = AdamW(
    steps=STEPS, learning_rate=1e-2, warmup_steps=5, weight_decay=0.04, final_weight_decay=0.4, clip_norm=0.3
)
ONE, EIGHT = {"data": 1}, {"data": 8}
MESHES = [
    EIGHT,
    {"data": 1, "fsdp": 8},
    {"data": 2, "fsdp": 4},
    {"data": 4, "tensor": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
]


@pytest.fixture(scope="module", autouse=True)
def quick_compiles():
    """Results are compared among themselves, so that nothing is gained from optimised code."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def mesh_of(axes):
    return make_mesh(**axes, devices=jax.devices()[: np.prod(list(axes.values()))])


@functools.cache
def first_state():
    return jax.device_get(build(Toy(), OPTIMISER, mesh_of(ONE)).init())


@functools.cache
def one_device():
    return run(ONE)


def run(axes, accumulation=1, steps=STEPS):
    program = build(Toy(), OPTIMISER, mesh_of(axes), accumulation=accumulation)
    state = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), first_state(), program.abstract_state)
    losses = []
    for step in range(steps):
        state, metrics = program.step(state, program.place(batch_at(16 * step, 16)))
        losses.append(metrics["loss"])
    return program, state, jax.device_get({"losses": losses, "params": state["params"], "extra": state["extra"]})


def largest_difference(ours, reference):
    relative = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b)) / np.max(np.abs(b))), ours, reference)
    return max(jax.tree.leaves(relative))


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_every_mesh_gives_the_run_of_one_device(axes):
    # batch_at puts the only example that the centre is made of on the first shard
    program, state, values = run(axes)
    assert largest_difference(values, one_device()[2]) < 1e-5
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    assert jax.tree.leaves(where) == [leaf.sharding for leaf in jax.tree.leaves(program.abstract_state)]
    sharded = where["params"]["head"]
    assert sharded == where["extra"]["teacher"]["head"] == where["opt"][1].mu["head"] == where["opt"][1].nu["head"]
    assert sharded.is_fully_replicated == (axes == EIGHT)


def test_accumulation_equals_the_big_batch():
    assert largest_difference(run(ONE, accumulation=4)[2], one_device()[2]) < 1e-5


def test_accumulation_over_a_mesh_equals_the_big_batch():
    assert largest_difference(run({"data": 2, "fsdp": 4}, accumulation=2)[2], one_device()[2]) < 1e-5


def test_every_mesh_starts_from_the_same_values():
    state = build(Toy(), OPTIMISER, mesh_of({"data": 2, "fsdp": 2, "tensor": 2})).init()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), first_state())


def test_a_frozen_part_is_untouched_until_it_thaws_and_then_starts_afresh():
    program = build(Toy(frozen={"head": 3}), OPTIMISER, mesh_of(ONE))
    state = program.init()
    first = jax.device_get(state["params"])
    for step in range(5):
        state, _ = program.step(state, program.place(batch_at(16 * step, 16)))
        moments = state["opt"].inner_states["head"].inner_state.inner_state[1]
        if step < 3:
            np.testing.assert_array_equal(state["params"]["head"], first["head"])
            assert not moments.mu["head"].any() and not moments.nu["head"].any()
        else:
            assert np.abs(state["params"]["head"] - first["head"]).max() > 0
        assert moments.count == max(step - 2, 0)
    assert np.abs(state["params"]["encoder"]["stem"] - first["encoder"]["stem"]).max() > 0


def test_a_checkpoint_of_eight_devices_restores_on_two_and_on_one(tmp_path):
    _, state, _ = run({"data": 2, "fsdp": 2, "tensor": 2}, steps=2)
    expected = jax.device_get(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, {"position": 32}, {"model": "toy"})
    checkpoints.close()
    for axes in ({"data": 1, "fsdp": 2}, ONE):
        program = build(Toy(), OPTIMISER, mesh_of(axes))
        restored = Checkpoints(tmp_path).restore(program.abstract_state)
        assert restored.step == 2 and restored.data == {"position": 32}
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored.state), expected)
        assert restored.state["params"]["head"].sharding.mesh == program.mesh


def test_the_batch_and_state_are_known_without_running(tmp_path):
    program = build(Toy(), OPTIMISER, mesh_of({"data": 2, "fsdp": 4}))
    batch = program.abstract_batch(16)
    assert batch["view"].shape == (16, 8) and batch["common"].dtype == bool
    assert program.logical_axes["encoder"]["blocks"]["up"] == ("layers", "embed", "mlp")
    program.step.lower(program.abstract_state, batch)
