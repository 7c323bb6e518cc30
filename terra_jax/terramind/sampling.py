"""Drawing tokens from logits: top-k and top-p on the raw logits, then temperature; guidance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from terra_jax.errors import ConfigError

IMPOSSIBLE = -1e30
"""Logit of a token that must not be drawn: finite, so that no arithmetic on it gives NaN."""


def check_filters(top_k: int, top_p: float) -> None:
    """Refuse impossible filters.

    Raises:
        ConfigError: top_k below 0, or top_p outside 0..1.
    """
    if top_k < 0:
        raise ConfigError(f"top_k={top_k} is impossible; use 1 or more, or 0 for all tokens")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p={top_p:g} is impossible; use more than 0, at most 1 for all tokens")


def filtered(logits: Float[Array, "... v"], top_k: int = 0, top_p: float = 1.0) -> Float[Array, "... v"]:
    """Logits with those of improbable tokens made `IMPOSSIBLE`; equal ones share one fate.

    Args:
        logits: as the model gives them.
        top_k: tokens that stay; 0 for all.
        top_p: then the fewest tokens stay whose probabilities sum to more than this: the one that crosses it is kept.

    Raises:
        ConfigError: impossible filters.
    """
    check_filters(top_k, top_p)
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, IMPOSSIBLE)
    if top_p < 1:
        falling = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        least = jnp.min(jnp.where(before <= top_p, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, IMPOSSIBLE)
    return logits


def draw(
    logits: Float[Array, "... v"],
    keys: Key[Array, "..."],
    temperature: Float[Array, ""] | float = 1.0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """One token from each row of logits.

    Args:
        logits: as the model gives them.
        keys: one for each row, so that a token depends on no other row, nor on how many there are.
        temperature: of the filtered distribution; 0 takes the most probable token.
        top_k, top_p: as of `filtered`.

    Returns:
        The tokens, int32, and the logarithms of their probabilities.
    """
    kept = filtered(logits.astype(jnp.float32), top_k, top_p)
    cold = jnp.asarray(temperature, jnp.float32) <= 0
    kept = jnp.where(kept > IMPOSSIBLE / 2, kept / jnp.where(cold, 1.0, temperature), IMPOSSIBLE)
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, kept.shape[-1:]))(keys.reshape(-1)).reshape(kept.shape)
    tokens = jnp.argmax(kept + jnp.where(cold, 0.0, gumbel), axis=-1)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(kept, axis=-1), tokens[..., None], axis=-1)[..., 0]
    return tokens.astype(jnp.int32), chosen


def guided(conditional: Float[Array, "..."], unconditional: Float[Array, "..."], scale: float) -> Float[Array, "..."]:
    """Classifier-free guidance: away from what would be said without the condition (Ho and Salimans 2022)."""
    return unconditional + scale * (conditional - unconditional)
