"""The pre-norm vision transformer block: attention, MLP, drop path."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from terra_jax.nn.linear import Initialiser, LayerNorm, Linear, trunc_normal


@dataclass(frozen=True)
class Style:
    """What transformers of the same plan differ in.

    Attributes:
        bias: whether attention and MLP have biases.
        norm_bias: whether the norms have.
        gated: whether the MLP is gated.
        kernel: (fan in, fan out) -> initialiser of a kernel; a fused projection counts the fan out of one part.
    """

    bias: bool = True
    norm_bias: bool = True
    gated: bool = False
    kernel: Callable[[int, int], Initialiser] = lambda fan_in, fan_out: trunc_normal


VIT = Style()
"""The vision transformer's own."""


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
        out_init: Initialiser | None = None,
        style: Style = VIT,
        dtype: DTypeLike = jnp.float32,
    ):
        head, init = {"heads": heads, "head_dim": width // heads}, style.kernel(width, width)
        options: dict[str, Any] = {"rngs": rngs, "bias": style.bias, "dtype": dtype}
        self.qkv = Linear({"embed": width}, {"qkv": 3, **head}, init=init, **options)
        self.out = Linear(head, {"embed": width}, init=out_init or init, **options)

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | Bool[Array, "b n n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Attend among the n tokens, or among those of them that the mask lets be seen (by each of them)."""
        # Heads in front: on CPU twice as fast as `jax.nn.dot_product_attention`, which keeps the tokens there.
        # Taken apart before they are turned: XLA would turn the whole for each of the three.
        qkv = self.qkv(x)
        q, k, v = (jnp.moveaxis(qkv[:, :, i], 1, 2) for i in range(3))
        return self.out(attend(q, k, v, mask))


class CrossAttention(nnx.Module):
    """Multi-head attention of tokens to a context, keys and values in one projection; softmax in float32."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, style: Style = VIT, dtype: DTypeLike = jnp.float32):
        head, init = {"heads": heads, "head_dim": width // heads}, style.kernel(width, width)
        options: dict[str, Any] = {"rngs": rngs, "bias": style.bias, "init": init, "dtype": dtype}
        self.query = Linear({"embed": width}, head, **options)
        self.kv = Linear({"embed": width}, {"kv": 2, **head}, **options)
        self.out = Linear(head, {"embed": width}, **options)

    def __call__(
        self, x: Float[Array, "b n d"], context: Float[Array, "b m d"], mask: Bool[Array, "b m"] | None = None
    ) -> Float[Array, "b n d"]:
        """Attend to the context, or to those of its tokens that the mask lets be seen."""
        kv = self.kv(context)
        k, v = (jnp.moveaxis(kv[:, :, i], 1, 2) for i in range(2))
        return self.out(attend(jnp.moveaxis(self.query(x), 1, 2), k, v, mask))


def attend(
    q: Float[Array, "b h n d"],
    k: Float[Array, "b h m d"],
    v: Float[Array, "b h m d"],
    mask: Bool[Array, "b m"] | Bool[Array, "b n m"] | None = None,
) -> Float[Array, "b n h d"]:
    """Scaled dot-product attention with the softmax in float32; keys outside the mask have no influence.

    A query that sees no key gets zeros.
    """
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is None:
        return jnp.einsum("bhnm,bhmd->bnhd", jax.nn.softmax(scores).astype(v.dtype), v)
    mask = mask[:, None] if mask.ndim == 2 else mask
    # Not minus infinity: a query without keys would get no number.
    scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    attended = jnp.einsum("bhnm,bhmd->bnhd", jax.nn.softmax(scores).astype(v.dtype), v)
    return jnp.where(mask.any(-1)[:, :, None, None], attended, 0)


class MLP(nnx.Module):
    """Two linear maps with an activation between, by default the exact (erf) GELU."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        activation: Callable[[Array], Array] = exact_gelu,
        style: Style = VIT,
        dtype: DTypeLike = jnp.float32,
    ):
        init = style.kernel(width, hidden)
        options: dict[str, Any] = {"rngs": rngs, "bias": style.bias, "init": init, "dtype": dtype}
        self.up = Linear({"embed": width}, {"mlp": hidden}, **options)
        self.down = Linear({"mlp": hidden}, {"embed": width}, **options)
        self.activation = activation

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Transform each token by itself."""
        return self.down(self.activation(self.up(x)))


class GatedMLP(nnx.Module):
    """down(SiLU(gate x) * up x) (SwiGLU; Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs, style: Style = VIT, dtype: DTypeLike = jnp.float32):
        init = style.kernel(width, hidden)
        options: dict[str, Any] = {"rngs": rngs, "bias": style.bias, "init": init, "dtype": dtype}
        self.gate = Linear({"embed": width}, {"mlp": hidden}, **options)
        self.up = Linear({"embed": width}, {"mlp": hidden}, **options)
        self.down = Linear({"mlp": hidden}, {"embed": width}, **options)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Transform each token by itself."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def feed_forward(
    width: int, hidden: int, *, rngs: nnx.Rngs, style: Style = VIT, dtype: DTypeLike = jnp.float32
) -> MLP | GatedMLP:
    """The MLP that a style asks for."""
    return (GatedMLP if style.gated else MLP)(width, hidden, rngs=rngs, style=style, dtype=dtype)


class Block(nnx.Module):
    """x += DropPath(Attention(LN(x))); x += DropPath(MLP(LN(x))).

    Args:
        width, heads: of the tokens and of the attention.
        rngs: source of the initial values.
        mlp_ratio: hidden width of the MLP, in widths.
        hidden: the same in channels, where it is no such multiple.
        style: biases, gate and initialisation.
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
        hidden: int | None = None,
        eps: float = 1e-6,
        drop_attention: bool = True,
        style: Style = VIT,
        dtype: DTypeLike = jnp.float32,
    ):
        options: dict[str, Any] = {"rngs": rngs, "style": style, "dtype": dtype}
        self.norm1 = LayerNorm({"embed": width}, rngs=rngs, eps=eps, bias=style.norm_bias)
        self.attention = Attention(width, heads, **options)
        self.norm2 = LayerNorm({"embed": width}, rngs=rngs, eps=eps, bias=style.norm_bias)
        self.mlp = feed_forward(width, hidden or int(width * mlp_ratio), **options)
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
