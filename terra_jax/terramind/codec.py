"""Vision transformers of the tokenizers: images to tokens' latents, codes to class logits (public ViT-VQ code)."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from terra_jax.nn.linear import LayerNorm, Linear, kaiming_uniform_fan_in
from terra_jax.nn.patches import patchify
from terra_jax.nn.positions import bicubic_interpolation, sincos_positions
from terra_jax.nn.stacking import Stack
from terra_jax.nn.transformer import MLP, Block
from terra_jax.terramind.variants import TokenizerVariant


class Trunk(nnx.Module):
    """Fixed positions, transformer blocks without a norm at the end, and one more MLP with a tanh, in float32."""

    def __init__(self, variant: TokenizerVariant, *, rngs: nnx.Rngs, remat: str, dtype: DTypeLike):
        v = variant
        self.table = v.table
        self.blocks = Stack(lambda r: Block(v.width, v.heads, rngs=r, dtype=dtype), v.depth, rngs=rngs, remat=remat)
        self.norm = LayerNorm({"embed": v.width}, rngs=rngs)
        self.mlp = MLP(v.width, 4 * v.width, activation=jnp.tanh, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Transform a grid of tokens."""
        tokens, _ = self.blocks(self._placed(x))
        return self._finished(tokens).reshape(x.shape)

    def feature_maps(self, x: Float[Array, "b h w d"]) -> list[Float[Array, "b h w d"]]:
        """The tokens after every block, the last with the MLP."""
        tokens, maps = self.blocks(self._placed(x), every=True)
        return [m.astype(jnp.float32).reshape(x.shape) for m in (*maps[:-1], self._finished(tokens))]

    def _placed(self, x: Float[Array, "b h w d"]) -> Float[Array, "b n d"]:
        _, rows, columns, width = x.shape
        positions = resampled_table(self.table, (rows, columns), width)
        return rearrange(x + jnp.asarray(positions, x.dtype), "b h w d -> b (h w) d")

    def _finished(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        tokens = tokens.astype(jnp.float32)
        return tokens + self.mlp(self.norm(tokens))


class Encoder(nnx.Module):
    """Images to latents, one a token, before quantisation."""

    def __init__(self, variant: TokenizerVariant, *, rngs: nnx.Rngs, remat: str, dtype: DTypeLike):
        v = variant
        pixels = v.patch**2 * v.channels
        uniform = kaiming_uniform_fan_in(pixels)
        self.patch = v.patch
        self.embedding = Linear(
            {"patch": pixels}, {"embed": v.width}, rngs=rngs, init=uniform, bias_init=uniform, dtype=dtype
        )
        self.trunk = Trunk(v, rngs=rngs, remat=remat, dtype=dtype)
        # Begun as the convolution that it is in PyTorch: with less, all images would begin as the same few tokens.
        self.out = Linear({"embed": v.width}, {"code": len(v.levels)}, rngs=rngs, init=kaiming_uniform_fan_in(v.width))

    def embed(self, image: Float[Array, "b y x c"]) -> Float[Array, "b h w d"]:
        """Patches as tokens, where they stand."""
        grid = (image.shape[1] // self.patch, image.shape[2] // self.patch)
        return self.embedding(patchify(image, self.patch)).reshape(image.shape[0], *grid, -1)

    def __call__(self, image: Float[Array, "b y x c"]) -> Float[Array, "b h w k"]:
        """Encode standardised images."""
        return self.out(self.trunk(self.embed(image)))


class ClassDecoder(nnx.Module):
    """Codes to class logits of every pixel."""

    def __init__(self, variant: TokenizerVariant, *, rngs: nnx.Rngs, remat: str, dtype: DTypeLike):
        v = variant
        self.patch = v.patch
        uniform = kaiming_uniform_fan_in(len(v.levels))  # likewise
        self.embedding = Linear({"code": len(v.levels)}, {"embed": v.width}, rngs=rngs, init=uniform, dtype=dtype)
        self.trunk = Trunk(v, rngs=rngs, remat=remat, dtype=dtype)
        self.out = Linear({"embed": v.width}, {"patch": v.channels * v.patch**2}, rngs=rngs)

    def __call__(self, codes: Float[Array, "b h w k"]) -> Float[Array, "b y x c"]:
        """Decode."""
        patches = self.out(self.trunk(self.embedding(codes)))
        return rearrange(patches, "b h w (c p q) -> b (h p) (w q) c", p=self.patch, q=self.patch)


def resampled_table(table: int, grid: tuple[int, int], width: int) -> Float[np.ndarray, "h w width"]:
    """The sine-cosine table of a square grid, resampled to another grid; a constant of the compiled program."""
    rows, columns = (bicubic_interpolation(table, side) for side in grid)
    return np.einsum("yr,xc,rcd->yxd", rows, columns, sincos_positions(table, width), optimize=True)
