"""The pre-norm vision transformer block: attention, MLP, drop path."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from terra_jax.nn.linear import Initialiser, LayerNorm, Linear, trunc_normal


@jax.custom_vjp
def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution's cumulative function; the backward pass keeps nothing but x."""
    return _gelu_and_slope(x)[0]


def _gelu_and_slope(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    f = x.astype(jnp.float32)
    share = 0.5 + 0.5 * jax.lax.erf(f * math.sqrt(0.5))
    slope = share + f * jnp.exp(-0.5 * f * f) * (1 / math.sqrt(2 * math.pi))
    return (f * share).astype(x.dtype), slope


exact_gelu.defvjp(
    lambda x: (exact_gelu(x), x),
    lambda x, dy: ((dy * _gelu_and_slope(x)[1]).astype(x.dtype),),
)


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

    def __call__(self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b n d"]:
        """Attend among the n tokens, or among those of them that the mask lets be seen."""
        # Heads in front: on CPU twice as fast as `jax.nn.dot_product_attention`, which keeps the tokens there.
        # Taken apart before they are turned: XLA would turn the whole for each of the three.
        qkv = self.qkv(x)
        q, k, v = (jnp.moveaxis(qkv[:, :, i], 1, 2) for i in range(3))
        return self.out(attend(q, k, v, mask))


def attend(
    q: Float[Array, "b h n d"],
    k: Float[Array, "b h m d"],
    v: Float[Array, "b h m d"],
    mask: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n h d"]:
    """Scaled dot-product attention with the softmax in float32; keys outside the mask have no influence."""
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bhnm,bhmd->bnhd", weights, v)


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
    """x += DropPath(Attention(LN(x))); x += DropPath(MLP(LN(x))).

    Args:
        width, heads: of the tokens and of the attention.
        rngs: source of the initial values.
        mlp_ratio: hidden width of the MLP, in widths.
        eps: of the norms.
        drop_attention: whether the attention branch is dropped too, or the MLP's only.
        dtype: compute dtype.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        mlp_ratio: float = 4,
        eps: float = 1e-6,
        drop_attention: bool = True,
        dtype: DTypeLike = jnp.float32,
    ):
        self.norm1 = LayerNorm({"embed": width}, rngs=rngs, eps=eps)
        self.attention = Attention(width, heads, rngs=rngs, dtype=dtype)
        self.norm2 = LayerNorm({"embed": width}, rngs=rngs, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio), rngs=rngs, dtype=dtype)
        self.drop_attention = drop_attention

    def __call__(
        self,
        x: Float[Array, "b n d"],
        drop: Float[Array, ""],
        key: Key[Array, ""] | None,
        mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b n d"]:
        """One block.

        Args:
            x: tokens.
            drop: probability of skipping a branch for a sample, used when `key` is given.
            key: randomness of drop path.
            mask: tokens that others may attend to; None for all.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attention(self.norm1(x), mask), drop, keys[0] if self.drop_attention else None)
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
