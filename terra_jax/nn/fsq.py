"""Finite scalar quantisation (Mentzer et al. 2023) in the sigmoid form: codes lie in [0, 1], nothing is learned."""

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class FSQ:
    """A grid of `prod(levels)` codes; the first dimension counts fastest in a token's id.

    Attributes:
        levels: number of values that each dimension of a code can take, at least 2.
    """

    levels: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of codes."""
        return prod(self.levels)

    @property
    def basis(self) -> tuple[int, ...]:
        """What one step along each dimension adds to the id."""
        return tuple(accumulate(self.levels[:-1], mul, initial=1))

    def quantise(self, latents: Float[Array, "*b d"]) -> tuple[Float[Array, "*b d"], Int[Array, "*b"]]:
        """The nearest codes to sigmoid(latents), and their ids.

        Halves round to even. The codes' gradient is the sigmoid's: it passes the rounding as if that were not there.
        """
        steps = np.asarray(self.levels, np.float32) - 1
        smooth = jax.nn.sigmoid(latents.astype(jnp.float32))
        numbers = jax.lax.stop_gradient(jnp.round(smooth * steps))
        # the difference is zero, so that codes are bit for bit those that `codes` gives for the ids
        codes = numbers / steps + (smooth - jax.lax.stop_gradient(smooth))
        return codes, (numbers.astype(jnp.int32) * np.asarray(self.basis, np.int32)).sum(-1)

    def codes(self, ids: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """The codes in [0, 1] of ids 0..size-1."""
        levels = np.asarray(self.levels, np.int32)
        numbers = ids[..., None] // np.asarray(self.basis, np.int32) % levels
        return numbers.astype(jnp.float32) / (levels - 1).astype(np.float32)
