"""Values that follow the steps of a run."""

import jax
import jax.numpy as jnp


def linear_ramp(step: jax.Array | int, start: float, end: float, steps: int) -> jax.Array:
    """From `start` at step 0 to `end` at step `steps`, constant after."""
    return start + (end - start) * _progress(step, steps)


def cosine_ramp(step: jax.Array | int, start: float, end: float, steps: int) -> jax.Array:
    """From `start` at step 0 to `end` at step `steps` along half a cosine, constant after."""
    return end + (start - end) * (1 + jnp.cos(jnp.pi * _progress(step, steps))) / 2


def _progress(step: jax.Array | int, steps: int) -> jax.Array:
    return jnp.clip(step / max(steps, 1), 0.0, 1.0)
