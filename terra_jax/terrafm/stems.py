"""TerraFM's modality stems and the per-position cross-modal fusion (paper, section 3; reviews and code comments)."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from terra_jax.nn.linear import LayerNorm, Linear, kaiming_uniform_fan_in, parameter, trunc_normal, zeros
from terra_jax.nn.patches import patchify

STEM_CHANNELS = {"s2_l2a": 12, "s2_l1c": 12, "s1": 2}
"""Input channels of the three stems; both Sentinel-2 products come without B10."""


class Stem(nnx.Module):
    """Patch embedding of one modality, plus a learned vector that tells its tokens from the others'."""

    def __init__(self, channels: int, patch: int, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        fan_in = patch * patch * channels
        uniform = kaiming_uniform_fan_in(fan_in)
        self.patch = patch
        self.embedding = Linear(
            {"patch": fan_in}, {"stem": width}, rngs=rngs, init=uniform, bias_init=uniform, dtype=dtype
        )
        self.modality = parameter(zeros, {"stem": width}, rngs)

    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b n e"]:
        """Tokens T_m of a normalised image."""
        tokens = self.embedding(patchify(image, self.patch))
        return tokens + self.modality[...].astype(tokens.dtype)


class Fusion(nnx.Module):
    """Cross-attention over the modalities of one position, with learned queries that are then pooled.

    z'_j = softmax(q_j K^T / sqrt(e / heads)) V over the modalities present,
    fused = sum_j softmax_j(LN(z'_j) p) LN(z'_j).

    With one modality the attention weight is 1, so the result is LN(V): the public single-modality path.
    No public weights hold these parameters.
    """

    def __init__(self, width: int, heads: int, queries: int, *, rngs: nnx.Rngs):
        head = {"fusion_heads": heads, "head_dim": width // heads}
        self.key = parameter(trunc_normal, {"stem": width, **head}, rngs)
        self.query = parameter(jax.nn.initializers.normal(1.0), {"queries": queries, **head}, rngs)
        self.pool = parameter(trunc_normal, {"stem": width}, rngs)

    def attend(
        self, tokens: Float[Array, "b m n e"], values: Float[Array, "b m n e"], present: Bool[Array, "b m"]
    ) -> Float[Array, "b n q e"]:
        """One fused value per position and query."""
        # The keys are only ever met by the few queries, so the queries are carried through the key projection
        # instead of projecting every token: queries x heads vectors of width e rather than e x e.
        key, query = self.key[...], self.query[...]
        heads, size = key.shape[1:]
        probes = jnp.einsum("ehd,qhd->eqh", key, query) * size**-0.5
        logits = jnp.einsum("bmne,eqh->bnqhm", tokens, probes.astype(tokens.dtype), preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1, where=present[:, None, None, None, :]).astype(values.dtype)
        split = values.reshape(*values.shape[:3], 1, heads, size)
        # A handful of modalities: sums of products, which fuse, where a batched matmul would be thousands of tiny ones.
        parts = [weights[..., m, None] * split[:, m] for m in range(values.shape[1])]
        fused = functools.reduce(jnp.add, parts)
        return fused.reshape(*fused.shape[:3], heads * size)

    def pooled(self, fused: Float[Array, "b n q e"]) -> Float[Array, "b n e"]:
        """Weighted mean over queries."""
        scores = jnp.einsum("bnqe,e->bnq", fused.astype(jnp.float32), self.pool[...])
        weights = jax.nn.softmax(scores, axis=-1).astype(fused.dtype)
        return (weights[..., None] * fused).sum(2)


class TokenProjection(nnx.Module):
    """From stem tokens to transformer tokens: value projection, norm, two linear maps, no other non-linearity."""

    def __init__(self, stem_width: int, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        stem = {"stem": stem_width}
        self.value = Linear(stem, {"stem_out": stem_width}, rngs=rngs, bias=False, dtype=dtype)
        self.norm = LayerNorm(stem, rngs=rngs, eps=1e-5)
        self.hidden = Linear(stem, {"stem_out": stem_width}, rngs=rngs, dtype=dtype)
        self.out = Linear(stem, {"embed": width}, rngs=rngs, dtype=dtype)

    def finish(self, normed: Float[Array, "... e"]) -> Float[Array, "... d"]:
        """What follows the norm."""
        return self.out(self.hidden(normed))


class PatchEmbedding(nnx.Module):
    """Images of any of the three modalities, alone or together, to transformer tokens."""

    def __init__(
        self,
        *,
        patch: int,
        stem_width: int,
        width: int,
        heads: int,
        queries: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        for name, channels in STEM_CHANNELS.items():
            setattr(self, name, Stem(channels, patch, stem_width, rngs=rngs, dtype=dtype))
        self.projection = TokenProjection(stem_width, width, rngs=rngs, dtype=dtype)
        self.fusion = Fusion(stem_width, heads, queries, rngs=rngs)

    def __call__(
        self, images: Mapping[str, Float[Array, "b h w c"]], present: Mapping[str, Bool[Array, " b"]] | None = None
    ) -> Float[Array, "b n d"]:
        """Embed one modality directly, or fuse several.

        Args:
            images: stem name -> normalised image, all of one size.
            present: stem name -> whether each example has it, at least one; absent ones have no influence and get no
                gradient. None: all. By name, since dicts lose their order in `jax.jit`.
        """
        tokens = [getattr(self, name)(image) for name, image in images.items()]
        if len(tokens) == 1 and present is None:
            return self.projection.finish(self.projection.norm(self.projection.value(tokens[0])))
        stacked = jnp.stack(tokens, axis=1)
        if present is None:
            mask = jnp.ones(stacked.shape[:2], bool)
        else:
            mask = jnp.stack([present[name] for name in images], axis=1)
        stacked = jnp.where(mask[:, :, None, None], stacked, 0)
        fused = self.fusion.attend(stacked, self.projection.value(stacked), mask)
        return self.projection.finish(self.fusion.pooled(self.projection.norm(fused)))
