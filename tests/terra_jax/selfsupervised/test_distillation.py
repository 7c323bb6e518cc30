import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.selfsupervised.distillation import (
    cross_entropy_of_views,
    dual_centred,
    ema,
    entropy,
    update_centre,
)
from terra_jax.selfsupervised.heads import ProjectionHead


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), local=st.integers(0, 3))
def test_cross_entropy_equals_dinos_double_loop(seed, local):
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(size=(5, 2, 7)), rng.normal(size=(5, 2 + local, 7))
    centre, temperature = rng.normal(size=7), 0.06
    targets = _softmax((teacher - centre) / temperature)
    total, terms = 0.0, 0
    for t in range(2):
        for s in range(2 + local):
            if s != t:
                total += -(targets[:, t] * np.log(_softmax(student[:, s] / 0.1))).sum(-1).mean()
                terms += 1
    pairs = ~np.eye(2, 2 + local, dtype=bool)
    probabilities = dual_centred(jnp.asarray(teacher), centre, rng.normal(size=7), 1.0, temperature)
    np.testing.assert_allclose(probabilities, targets, atol=1e-6)
    loss = cross_entropy_of_views(jnp.asarray(targets), jnp.asarray(student), jnp.asarray(pairs), 0.1)
    np.testing.assert_allclose(loss, total / terms, rtol=1e-5)


def test_dual_centring_mixes_both_centres():
    logits, a, b = np.array([[1.0, 2.0, 0.5]]), np.array([0.5, 0.0, 0.1]), np.array([0.0, 1.0, 0.3])
    expected = _softmax((logits - 0.8 * a - 0.2 * b) / 0.05)
    np.testing.assert_allclose(dual_centred(logits, a, b, 0.8, 0.05), expected, atol=1e-6)


def test_a_centre_without_examples_stays():
    centre = jnp.array([1.0, -2.0])
    assert np.array_equal(update_centre(centre, jnp.zeros(2), jnp.float32(0), 0.9), centre)
    moved = update_centre(centre, jnp.array([4.0, 4.0]), jnp.float32(2), 0.9)
    np.testing.assert_allclose(moved, 0.9 * centre + 0.1 * 2.0, rtol=1e-6)


def test_ema_and_entropy():
    moved = ema({"a": jnp.ones(2)}, {"a": jnp.zeros(2)}, 0.75)
    np.testing.assert_allclose(moved["a"], 0.75)
    np.testing.assert_allclose(entropy(jnp.full((3, 8), 1 / 8)), np.log(8), rtol=1e-6)
    assert float(entropy(jnp.eye(4))) == 0


def test_head_gives_cosine_similarities():
    head = ProjectionHead(8, 12, rngs=nnx.Rngs(0), hidden=16, bottleneck=4)
    logits = head(jax.random.normal(jax.random.key(0), (3, 8)))
    assert logits.shape == (3, 12) and logits.dtype == jnp.float32
    assert float(jnp.abs(logits).max()) <= 1 + 1e-6
    head.prototypes = nnx.Param(head.prototypes[...] * 7, axes=("bottleneck", "prototypes"))
    np.testing.assert_allclose(head(jax.random.normal(jax.random.key(0), (3, 8))), logits, atol=1e-6)
