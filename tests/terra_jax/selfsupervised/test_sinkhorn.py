import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.selfsupervised import sinkhorn as module
from terra_jax.selfsupervised.sinkhorn import column_means

sinkhorn = jax.jit(module.sinkhorn, static_argnames=("epsilon", "iterations"))
cluster = jax.jit(module.cluster, static_argnums=1, static_argnames=("epsilon", "iterations", "rounds"))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.sampled_from([8, 13]), columns=st.sampled_from([2, 5]))
def test_marginals(seed, rows, columns):
    scores = np.random.default_rng(seed).uniform(-1, 1, (3, rows, columns))
    few = sinkhorn(jnp.asarray(scores), epsilon=0.05, iterations=3)
    np.testing.assert_allclose(few.sum(-1), 1 / rows, rtol=1e-5)  # rows exactly, however few rounds
    plan = sinkhorn(jnp.asarray(scores), epsilon=0.3, iterations=300)
    np.testing.assert_allclose(plan.sum(-1), 1 / rows, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(-2), 1 / columns, rtol=1e-3)


def test_equals_scaling_in_plain_numbers():
    scores = np.random.default_rng(0).uniform(-1, 1, (6, 4))
    plan = np.exp(scores / 0.1)
    for _ in range(3):  # SwAV, appendix: prototypes first, samples last
        plan = plan / plan.sum(0) / 4
        plan = plan / plan.sum(1, keepdims=True) / 6
    np.testing.assert_allclose(sinkhorn(jnp.asarray(scores), epsilon=0.1, iterations=3), plan, rtol=1e-4)


def test_rows_without_weight_have_no_influence():
    rng = np.random.default_rng(1)
    scores, weights = rng.uniform(-1, 1, (7, 3)), np.array([1, 0, 2, 1, 0, 1, 1.0])
    kept = weights > 0
    plan = np.asarray(sinkhorn(jnp.asarray(scores), epsilon=0.1, iterations=4, weights=jnp.asarray(weights)))
    alone = sinkhorn(jnp.asarray(scores[kept]), epsilon=0.1, iterations=4, weights=jnp.asarray(weights[kept]))
    np.testing.assert_allclose(plan[kept], alone, rtol=1e-5)
    assert not plan[~kept].any()
    np.testing.assert_allclose(plan.sum(-1), weights / weights.sum(), rtol=1e-5)
    empty = sinkhorn(jnp.asarray(scores), epsilon=0.1, iterations=4, weights=jnp.zeros(7))
    assert not np.asarray(empty).any()


def test_no_gradient_passes():
    scores = jnp.linspace(-1, 1, 12).reshape(4, 3)
    gradient = jax.grad(lambda s: jnp.square(sinkhorn(s, epsilon=0.1, iterations=2)).sum())(scores)
    assert not np.asarray(gradient).any()


def test_clusters_find_groups_of_pixels():
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1, 2, 3], 9)
    centres = rng.normal(size=(4, 16))
    order = rng.permutation(len(group))
    features = (centres[group] + 0.05 * rng.normal(size=(36, 16)))[order]
    plan = np.asarray(cluster(jnp.asarray(features), 4, epsilon=0.05, iterations=5, rounds=6))
    chosen = plan.argmax(-1)
    same = chosen[:, None] == chosen[None]
    assert (same == (group[order][:, None] == group[order][None])).all()
    means = np.asarray(column_means(jnp.asarray(plan), jnp.asarray(features)))
    assert np.abs(means[chosen] - features).max() < 0.5


def test_masked_pixels_do_not_move_the_clusters():
    rng = np.random.default_rng(3)
    features, weights = rng.normal(size=(2, 20, 8)), rng.random((2, 20)) < 0.6
    other = np.where(weights[..., None], features, 100 * rng.normal(size=features.shape))
    options = {"epsilon": 0.05, "iterations": 3, "rounds": 3, "weights": jnp.asarray(weights, jnp.float32)}
    first, second = (cluster(jnp.asarray(x, jnp.float32), 3, **options) for x in (features, other))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.isfinite(cluster(jnp.asarray(features), 3, **{**options, "weights": jnp.zeros((2, 20))})).all()
