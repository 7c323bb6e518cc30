import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.errors import ConfigError
from terra_jax.terramind.sampling import IMPOSSIBLE, draw, filtered, guided

VOCABULARY = 12
LAW = settings(max_examples=60, deadline=None)


@st.composite
def different_logits(draw):
    """Logits no two of which are equal."""
    numbers = draw(st.lists(st.integers(-400, 400), min_size=VOCABULARY, max_size=VOCABULARY, unique=True))
    return np.asarray(numbers, np.float32) / 50


def kept(logits, **options) -> set[int]:
    return set(np.flatnonzero(np.asarray(filtered(jnp.asarray(logits), **options)) > IMPOSSIBLE / 2).tolist())


@LAW
@given(different_logits(), st.floats(0.01, 0.99), st.integers(0, VOCABULARY + 3))
def test_filters_keep_the_most_probable_tokens(logits, top_p, top_k):
    """As a plain loop has it: the first k in falling order, of these until the sum has crossed p."""
    order = np.argsort(-logits)
    assert kept(logits, top_k=top_k) == set(order[: top_k or VOCABULARY].tolist())
    among = order[: top_k or VOCABULARY]
    shares = np.exp(logits[among].astype(np.float64))
    shares /= shares.sum()
    expected, total = set(), 0.0
    for token, share in zip(among.tolist(), shares, strict=True):
        if total > top_p + 1e-6:
            break
        if abs(total - top_p) <= 1e-6:
            return  # within rounding either is right
        expected.add(token)
        total += share
    assert kept(logits, top_k=top_k, top_p=top_p) == expected


def test_the_token_that_crosses_top_p_is_kept():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    assert kept(logits, top_p=0.4) == {0} and kept(logits, top_p=0.6) == {0, 1} and kept(logits, top_p=0.9) == {0, 1, 2}


@LAW
@given(different_logits(), st.integers(0, 2**31), st.floats(0.05, 5))
def test_what_is_drawn_was_kept(logits, seed, temperature):
    keys = jax.random.split(jax.random.key(seed), 8)
    rows = jnp.broadcast_to(jnp.asarray(logits), (8, VOCABULARY))
    tokens, log_probability = draw(rows, keys, temperature, top_k=4, top_p=0.7)
    assert set(np.asarray(tokens).tolist()) <= kept(logits, top_k=4, top_p=0.7)
    assert (np.asarray(log_probability) <= 1e-6).all()


@LAW
@given(different_logits(), st.integers(0, 2**31))
def test_without_temperature_the_most_probable_token_is_taken(logits, seed):
    tokens, _ = draw(jnp.asarray(logits)[None], jax.random.split(jax.random.key(seed), 1), 0.0, top_p=0.9)
    assert int(tokens[0]) == int(np.argmax(logits))


def test_shares_of_draws_are_the_probabilities_after_the_filters():
    """The filter comes before the temperature: which tokens are left does not depend on it."""
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 20_000)
    tokens, surety = draw(jnp.broadcast_to(logits, (20_000, 4)), keys, 2.0, top_p=0.6)
    expected = np.sqrt([0.5, 0.3, 0, 0]) / np.sqrt([0.5, 0.3]).sum()
    shares = np.bincount(np.asarray(tokens), minlength=4) / 20_000
    assert np.abs(shares - expected).max() < 0.015
    assert np.allclose(np.exp(surety), expected[np.asarray(tokens)], atol=1e-6)


def test_a_token_depends_on_its_own_key_alone():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, VOCABULARY)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 6)
    together, _ = draw(logits, keys)
    alone = [int(draw(logits[i : i + 1], keys[i : i + 1])[0][0]) for i in range(6)]
    assert together.tolist() == alone


def test_guidance_leads_away_from_the_unconditional():
    a, b = jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])
    assert guided(a, b, 1.0).tolist() == a.tolist() and guided(a, b, 0.0).tolist() == b.tolist()
    assert guided(a, b, 3.0).tolist() == [3.0, -2.0]


@pytest.mark.parametrize("options", [{"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_filters_are_refused(options):
    with pytest.raises(ConfigError, match="is impossible; use"):
        filtered(jnp.zeros(3), **options)
