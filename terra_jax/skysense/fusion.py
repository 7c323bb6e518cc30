"""Alignment heads and the fusion transformer, which mixes the frames of all modalities position by position.

The fusion is three quarters of the model's arithmetic, in sequences of 1 + 20 + 10 frames and a class token, one for
every position. All positions of a batch are one batch of sequences, so that every projection is one large matmul;
frames are projected to the fusion's width before they are gathered into sequences; and since only the class token is
read, the last block computes its query, its output and its MLP for that token alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from terra_jax.nn.linear import Initialiser, Linear, contract, kaiming_uniform_fan_in, parameter, trunc_normal
from terra_jax.nn.stacking import Stack
from terra_jax.nn.transformer import Block, attend, drop_path
from terra_jax.skysense.torch_weights import fusion_map, head_map
from terra_jax.skysense.variants import FusionSize, SeriesSize
from terra_jax.weights.rules import WeightMap


class UpHead(nnx.Module):
    """From the map of a series' encoder to the Sentinel-2 grid and the channels of the HR encoder: pixel shuffle.

    Args:
        variant: sizes of the encoder that it follows.
        rngs: source of the initial values.
        dtype: compute dtype.
    """

    def __init__(self, variant: SeriesSize, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        alike = _alike(kaiming_uniform_fan_in(variant.width))
        pixels = {"rows": variant.patch, "columns": variant.patch, "aligned": variant.aligned}
        self.projection = Linear({"embed": variant.width}, pixels, rngs=rngs, init=alike, bias_init=alike, dtype=dtype)
        self.variant = variant

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return head_map(self.variant)

    def __call__(self, features: Float[Array, "... y x d"]) -> Float[Array, "... h w c"]:
        """Enlarge the map by the encoder's patch."""
        return rearrange(self.projection(features), "... y x p q c -> ... (y p) (x q) c")


def _alike(init: Initialiser) -> Initialiser:
    """The pixels of a patch start with the same weights (Aitken et al. 2017).

    Drawn one by one, they would lay a chequered pattern over every map that is stronger than what the map shows, and
    that a short training does not undo.
    """

    def draw(key, shape, dtype=jnp.float32, **options):
        return jnp.broadcast_to(init(key, (*shape[:-3], 1, 1, shape[-1]), dtype, **options), shape)

    return draw


class Readout(Block):
    """A last block of which only the first token is wanted: all tokens are looked at, one is computed."""

    def __call__(
        self,
        x: Float[Array, "b n d"],
        drop: Float[Array, ""],
        key: Key[Array, ""] | None,
        mask: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b d"]:
        """The first token after the block; arguments as of `Block`."""
        keys = (None, None) if key is None else jax.random.split(key)
        qkv, dtype = self.attention.qkv, x.dtype
        assert qkv.bias is not None
        kernel, bias = qkv.kernel[...], qkv.bias[...]
        normed = self.norm1(x)
        keys_values = contract(normed, kernel[:, 1:].astype(dtype), 1) + bias[1:].astype(dtype)
        k, v = (jnp.moveaxis(keys_values[:, :, i], 1, 2) for i in range(2))
        q = contract(normed[:, 0], kernel[:, 0].astype(dtype), 1) + bias[0].astype(dtype)
        first = self.attention.out(attend(q[:, :, None], k, v, mask))[:, 0]
        first = x[:, 0] + drop_path(first, drop, keys[0] if self.drop_attention else None)
        return first + drop_path(self.mlp(self.norm2(first)), drop, keys[1])


class Fusion(nnx.Module):
    """Transformer over the frames of one position; its class token is the fused feature.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        drop_path: drop rate of the last block's MLP in training; attention is never dropped.
        eps: of the norms.
        remat: rematerialisation policy of the blocks.
        dtype: compute dtype.
    """

    def __init__(
        self,
        variant: FusionSize,
        *,
        rngs: nnx.Rngs,
        drop_path: float = 0.0,
        eps: float = 1e-5,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        v = variant
        options: dict[str, Any] = {"eps": eps, "drop_attention": False, "dtype": dtype}
        self.variant = v
        self.projection = Linear({"aligned": v.inputs}, {"embed": v.width}, rngs=rngs, dtype=dtype)
        self.cls = parameter(trunc_normal, {"embed": v.width}, rngs)
        self.blocks = (
            Stack(
                lambda r: Block(v.width, v.heads, rngs=r, **options),
                v.depth - 1,
                rngs=rngs,
                drop_path=drop_path * (v.depth - 2) / (v.depth - 1),
                remat=remat,
            )
            if v.depth > 1
            else None
        )
        self.readout = Readout(v.width, v.heads, rngs=rngs, **options)
        self.drop_path = drop_path

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return fusion_map(self.variant)

    def __call__(self, frames: Float[Array, "p n c"], present: Bool[Array, "p n"] | None = None) -> Float[Array, "p f"]:
        """Fused feature of each position.

        Args:
            frames: aligned features of the frames of each position.
            present: which of them count; the others have no influence. None: all.
        """
        return self.fuse(self.projection(frames), present)

    def fuse(
        self,
        tokens: Float[Array, "p n f"],
        present: Bool[Array, "p n"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "p f"]:
        """Fused feature of each position from projected frames; `key` is the randomness of drop path."""
        positions, _, width = tokens.shape
        cls = jnp.broadcast_to(self.cls[...].astype(tokens.dtype), (positions, 1, width))
        x = jnp.concatenate([cls, tokens], axis=1)
        mask = None if present is None else jnp.pad(present, [(0, 0), (1, 0)], constant_values=True)
        keys = (None, None) if key is None or not self.drop_path else jax.random.split(key)
        if self.blocks is not None:
            x, _ = self.blocks(x, keys[0], shared=(mask,))
        return self.readout(x, jnp.asarray(self.drop_path), keys[1], mask)
