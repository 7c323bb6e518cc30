"""The pre-norm vision transformer block: attention, MLP, drop path."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from terra_jax.nn.linear import Initialiser, LayerNorm, Linear, trunc_normal

exact_gelu = partial(jax.nn.gelu, approximate=False)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection; softmax in float32."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        out_init: Initialiser = trunc_normal,
        dtype: DTypeLike = jnp.float32,
    ):
        head = {"heads": heads, "head_dim": width // heads}
        self.qkv = Linear({"embed": width}, {"qkv": 3, **head}, rngs=rngs, dtype=dtype)
        self.out = Linear(head, {"embed": width}, rngs=rngs, init=out_init, dtype=dtype)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Attend among the n tokens."""
        # Heads in front: on CPU twice as fast as `jax.nn.dot_product_attention`, which keeps the tokens there.
        q, k, v = jnp.einsum("bnchd->cbhnd", self.qkv(x))
        scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(v.dtype)
        return self.out(jnp.einsum("bhnm,bhmd->bnhd", weights, v))


class MLP(nnx.Module):
    """Two linear maps with an activation between, by default the exact (erf) GELU."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        activation: Callable[[Array], Array] = exact_gelu,
        dtype: DTypeLike = jnp.float32,
    ):
        self.up = Linear({"embed": width}, {"mlp": hidden}, rngs=rngs, dtype=dtype)
        self.down = Linear({"mlp": hidden}, {"embed": width}, rngs=rngs, dtype=dtype)
        self.activation = activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Transform each token by itself."""
        return self.down(self.activation(self.up(x)))


class Block(nnx.Module):
    """x += DropPath(Attention(LN(x))); x += DropPath(MLP(LN(x)))."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, mlp_ratio: float = 4, dtype: DTypeLike = jnp.float32):
        self.norm1 = LayerNorm({"embed": width}, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs, dtype=dtype)
        self.norm2 = LayerNorm({"embed": width}, rngs=rngs)
        self.mlp = MLP(width, int(width * mlp_ratio), rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "b n d"], drop: Float[Array, ""], key: Key[Array, ""] | None
    ) -> Float[Array, "b n d"]:
        """One block; `drop` is the probability of skipping a branch for a sample, used when `key` is given."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attention(self.norm1(x)), drop, keys[0])
        return x + drop_path(self.mlp(self.norm2(x)), drop, keys[1])


def drop_path(
    x: Float[Array, "b ..."], rate: Float[Array, ""] | float, key: Key[Array, ""] | None
) -> Float[Array, "b ..."]:
    """Zero the branch of whole samples with probability `rate` and rescale the others (Huang et al. 2016)."""
    if key is None:
        return x
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros((), x.dtype))
