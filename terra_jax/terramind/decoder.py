"""TerraMind's decoder: mask tokens attend to their own stream and to all that the encoder saw (paper, section 4)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from terra_jax.nn.grouped import grouped_lookup
from terra_jax.nn.linear import LayerNorm, Linear, parameter, xavier_uniform
from terra_jax.nn.stacking import Stack
from terra_jax.nn.transformer import Attention, CrossAttention, drop_path, feed_forward
from terra_jax.terramind.encoder import normal, style
from terra_jax.terramind.packing import PackedTargets
from terra_jax.terramind.streams import Stream
from terra_jax.terramind.variants import Variant


class DecoderBlock(nnx.Module):
    """Self-attention, attention to the context and MLP, each after a norm; the context has a norm of its own."""

    def __init__(self, variant: Variant, *, rngs: nnx.Rngs, dtype: DTypeLike):
        v, axis = variant, {"embed": variant.width}
        options: dict[str, Any] = {"rngs": rngs, "style": style(variant), "dtype": dtype}
        self.norm1 = LayerNorm(axis, rngs=rngs, bias=False)
        self.attention = Attention(v.width, v.heads, **options)
        self.query_norm = LayerNorm(axis, rngs=rngs, bias=False)
        self.context_norm = LayerNorm(axis, rngs=rngs, bias=False)
        self.cross = CrossAttention(v.width, v.heads, **options)
        self.norm2 = LayerNorm(axis, rngs=rngs, bias=False)
        self.mlp = feed_forward(v.width, v.hidden, **options)

    def __call__(
        self,
        x: Float[Array, "b m d"],
        drop: Float[Array, ""],
        key: Key[Array, ""] | None,
        context: Float[Array, "b n d"],
        seen: Bool[Array, "b n"],
        own: Bool[Array, "b m m"],
    ) -> Float[Array, "b m d"]:
        """One block.

        Args:
            x: tokens.
            drop: probability of skipping a branch for a sample, used when `key` is given.
            key: randomness of drop path.
            context: what the encoder made of its input.
            seen: which tokens of the context there are.
            own: which tokens each token attends to.
        """
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        x = x + drop_path(self.attention(self.norm1(x), own), drop, keys[0])
        x = x + drop_path(self.cross(self.query_norm(x), self.context_norm(context), seen), drop, keys[1])
        return x + drop_path(self.mlp(self.norm2(x)), drop, keys[2])


class Decoder(nnx.Module):
    """Vocabulary tables that are both embedding and head, the projection of the context, and the blocks.

    Args:
        variant: sizes.
        streams: what it gives; packed targets number them in this order.
        apart: those whose vector the encoder does not hold.
        rngs: source of the initial values.
        drop_path: drop rate of the last block in training.
        remat: rematerialisation policy of the blocks.
        dtype: compute dtype.
    """

    def __init__(
        self,
        variant: Variant,
        streams: Sequence[Stream],
        apart: Sequence[str],
        *,
        rngs: nnx.Rngs,
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        v, width = variant, variant.width
        self.streams = tuple(streams)
        self.dtype = jnp.dtype(dtype)
        self.tables = nnx.Dict({stream.name: _table(stream, width, rngs) for stream in streams})
        self.modalities = nnx.Dict({name: parameter(normal, {"embed": width}, rngs) for name in apart})
        self.mask = parameter(normal, {"embed": width}, rngs)
        self.project = Linear(
            {"embed": width}, {"embed_out": width}, rngs=rngs, init=xavier_uniform(width, width), dtype=dtype
        )
        self.blocks = Stack(
            lambda r: DecoderBlock(v, rngs=r, dtype=dtype),
            v.decoder_depth,
            rngs=rngs,
            drop_path=drop_path,
            remat=remat,
        )
        self.norm = LayerNorm({"embed": width}, rngs=rngs, bias=False)

    def content(self, targets: PackedTargets) -> Float[Array, "b m d"]:
        """What the decoder is told of each target: nothing, or a sequence's token before it."""
        sequences = [i for i, stream in enumerate(self.streams) if not stream.is_image]
        mask = self.mask[...].astype(self.dtype)
        if not sequences:
            return jnp.where((targets.stream >= 0)[..., None], mask, 0)
        group = jnp.asarray([sequences.index(i) if i in sequences else -1 for i in range(len(self.streams))] + [-1])
        tables = tuple(self.tables[self.streams[i].name][...].astype(self.dtype) for i in sequences)
        groups = group.astype(jnp.int32)[targets.stream]
        told = grouped_lookup(tables, groups, targets.token)
        return jnp.where(((targets.stream >= 0) & (groups < 0))[..., None], mask, told)

    def position(self, targets: PackedTargets) -> Int[Array, "b m"]:
        """Positions; those of a sequence beyond its longest length are the first."""
        lengths = jnp.asarray([stream.length for stream in self.streams])[targets.stream]
        return jnp.where((lengths > 0) & (targets.position >= lengths), 0, targets.position)

    def own(self, targets: PackedTargets) -> Bool[Array, "b m m"]:
        """Which tokens each token attends to: those of its stream, of a sequence those up to itself.

        Empty slots attend to each other, so that every row has something to attend to.
        """
        same = targets.stream[:, :, None] == targets.stream[:, None]
        sequence = jnp.asarray([not stream.is_image for stream in self.streams])[targets.stream]
        earlier = targets.position[:, :, None] >= targets.position[:, None]
        return same & (earlier | ~sequence[:, :, None] | (targets.stream < 0)[:, :, None])


def _table(stream: Stream, width: int, rngs: nnx.Rngs) -> nnx.Param:
    axes = {"vocabulary": stream.vocabulary, "embed": width}
    return parameter(xavier_uniform(width, stream.vocabulary), axes, rngs)
