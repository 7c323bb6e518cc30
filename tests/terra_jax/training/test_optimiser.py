import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from terra_jax.errors import ConfigError
from terra_jax.training.optimiser import AdamW, clip_by_tensor

AXES = {"kernel": ("embed", "mlp"), "bias": ("mlp",), "blocks": {"scale": ("layers", "embed")}}


def params():
    return {
        "kernel": jnp.asarray([[1.0, -2.0], [3.0, 0.5]]),
        "bias": jnp.asarray([1.0, 1.0]),
        "blocks": {"scale": jnp.ones((3, 2))},
    }


def test_two_steps_of_adamw_by_hand():
    b1, b2, eps, lr, wd = 0.9, 0.99, 1e-8, 0.1, 0.04
    optimiser = AdamW(steps=10, learning_rate=lr, weight_decay=wd, final_learning_rate=lr, betas=(b1, b2), eps=eps)
    transform = optimiser.transform(AXES, {})
    values, state = params(), transform.init(params())
    gradients = [jax.tree.map(lambda p, s=s: s * (p + 0.3), params()) for s in (1.0, -0.5)]
    kernel, m, v = np.asarray(values["kernel"]), 0.0, 0.0
    scale, ms, vs = np.ones((3, 2)), 0.0, 0.0
    for count, gradient in enumerate(gradients, 1):
        updates, state = transform.update(gradient, state, values)
        values = jax.tree.map(jnp.add, values, updates)
        g, gs = np.asarray(gradient["kernel"]), np.asarray(gradient["blocks"]["scale"])
        m, v, ms, vs = (
            b1 * m + (1 - b1) * g,
            b2 * v + (1 - b2) * g * g,
            b1 * ms + (1 - b1) * gs,
            b2 * vs + (1 - b2) * gs * gs,
        )
        unbiased = lambda m, v, n=count: (m / (1 - b1**n)) / (np.sqrt(v / (1 - b2**n)) + eps)  # noqa: E731
        kernel = kernel - lr * (unbiased(m, v) + wd * kernel)
        scale = scale - lr * unbiased(ms, vs)  # a vector a layer: no decay
    np.testing.assert_allclose(values["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(values["blocks"]["scale"], scale, rtol=1e-5)


@pytest.mark.parametrize(("undecayed", "shrinks"), [("vectors", {"kernel"}), ("norms", {"kernel", "mask"})])
def test_what_decays_is_a_choice(undecayed, shrinks):
    axes = {**AXES, "mask": ("embed",)}
    values = {**params(), "mask": jnp.ones(2)}
    transform = AdamW(steps=10, learning_rate=0.1, weight_decay=0.5, undecayed=undecayed).transform(axes, {})
    updates, _ = transform.update(jax.tree.map(jnp.zeros_like, values), transform.init(values), values)
    moved = {path[0].key for path, leaf in jax.tree_util.tree_leaves_with_path(updates) if np.any(leaf)}
    assert moved == shrinks
    with pytest.raises(ConfigError, match=r"optimizer.undecayed='all' must be vectors or norms"):
        AdamW(steps=1, learning_rate=0.1, undecayed="all")


def test_schedules_warm_up_and_end_where_they_should():
    optimiser = AdamW(steps=100, learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1, final_weight_decay=0.4)
    assert float(optimiser.learning_rate_at(0)) == 0.0
    assert float(optimiser.learning_rate_at(5)) == pytest.approx(0.5)
    assert float(optimiser.learning_rate_at(10)) == pytest.approx(1.0)
    assert float(optimiser.learning_rate_at(55)) == pytest.approx(0.55)
    assert float(optimiser.learning_rate_at(100)) == pytest.approx(0.1)
    assert float(optimiser.weight_decay_at(0)) == pytest.approx(0.04)
    assert float(optimiser.weight_decay_at(50)) == pytest.approx(0.22)
    assert float(optimiser.weight_decay_at(100)) == pytest.approx(0.4)


def test_the_warm_up_may_start_above_zero():
    optimiser = AdamW(steps=100, learning_rate=1.0, warmup_steps=10, first_learning_rate=0.2)
    assert [float(optimiser.learning_rate_at(step)) for step in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])


def test_clipping_over_all_keeps_the_direction():
    transform = AdamW(steps=1, learning_rate=1.0, clip_norm=1.0, clip="all").transform(AXES, {})
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), params())
    _, state = transform.update(gradients, transform.init(params()), params())
    moments = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(optax.tree.get(state, "mu"))])
    assert np.ptp(moments) == 0 and np.linalg.norm(moments) == pytest.approx(0.1, rel=1e-5)


def test_clipping_is_by_tensor_and_by_layer():
    layers = jnp.asarray([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    gradients = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.asarray([0.1, 0.0]), "blocks": {"scale": layers}}
    clipped, _ = clip_by_tensor(1.0, AXES).update(gradients, None)
    assert float(jnp.linalg.norm(clipped["kernel"])) == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_array_equal(clipped["bias"], gradients["bias"])
    np.testing.assert_allclose(clipped["blocks"]["scale"], [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]], rtol=1e-5)


def test_moments_are_float32():
    transform = AdamW(steps=1, learning_rate=1.0).transform(AXES, {})
    state = transform.init(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params()))
    assert {leaf.dtype for leaf in jax.tree.leaves(state[0].mu)} == {jnp.dtype("float32")}


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="frozen prefix 'haed' names no parameter"):
        AdamW(steps=1, learning_rate=1.0).transform(AXES, {"haed": 2})
    with pytest.raises(ConfigError, match=r"optimizer.clip='global' must be tensor or all"):
        AdamW(steps=1, learning_rate=1.0, clip="global")
    with pytest.raises(ConfigError, match=r"optimizer.*momentum"):
        AdamW.from_config({"learning_rate": 1.0, "momentum": 0.9}, 10)
