"""Features that look up the prototypes of their region."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_tokenizer import random_module

from terra_jax.errors import ConfigError
from terra_jax.skysense.geo_context import GeoContextProjections, attend_prototypes

RNG = np.random.default_rng(0)
FUSED = jnp.asarray(RNG.standard_normal((2, 3, 4, 8), np.float32))
PROTOTYPES = jnp.asarray(RNG.standard_normal((2, 5, 8), np.float32))


def test_equals_the_formula():
    q, v = np.asarray(FUSED[1, 2, 3]), np.asarray(PROTOTYPES[1])
    weights = np.exp(v @ q / np.sqrt(8))
    expected = np.concatenate([q, (weights / weights.sum()) @ v])
    result = attend_prototypes(FUSED, PROTOTYPES)
    assert result.shape == (2, 3, 4, 16)
    np.testing.assert_allclose(result[1, 2, 3], expected, rtol=1e-5)


def test_prototypes_of_another_width_need_projections():
    narrow = PROTOTYPES[..., :6]
    with pytest.raises(ConfigError, match="width 8 cannot look up prototypes of width 6; give projections"):
        attend_prototypes(FUSED, narrow)
    projections = random_module(lambda rngs: GeoContextProjections(8, 6, rngs=rngs))
    result = attend_prototypes(FUSED, narrow, projections)
    assert result.shape == (2, 3, 4, 16)
    np.testing.assert_array_equal(result[..., :8], FUSED)


def test_no_gradient_reaches_the_prototypes():
    loss = lambda fused, prototypes: jnp.square(attend_prototypes(fused, prototypes)).sum()  # noqa: E731
    of_fused, of_prototypes = jax.grad(loss, argnums=(0, 1))(FUSED, PROTOTYPES)
    assert np.asarray(of_fused).any() and not np.asarray(of_prototypes).any()
