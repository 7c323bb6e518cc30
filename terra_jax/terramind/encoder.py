"""TerraMind's encoder: embeddings of every stream and a pre-norm transformer over all of them together (paper, 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from terra_jax.errors import ConfigError
from terra_jax.nn.grouped import grouped_lookup, grouped_projection
from terra_jax.nn.linear import LayerNorm, contract, parameter, xavier_uniform
from terra_jax.nn.patches import patchify
from terra_jax.nn.positions import sincos_sequence
from terra_jax.nn.stacking import Stack
from terra_jax.nn.transformer import Block, Style
from terra_jax.terramind.codec import resampled_table
from terra_jax.terramind.packing import PackedInputs
from terra_jax.terramind.streams import SEQUENCE_TABLE, Stream, nearest
from terra_jax.terramind.variants import Variant

normal = jax.nn.initializers.normal(0.02)

Grid = tuple[int, int]


def style(variant: Variant) -> Style:
    """How TerraMind's blocks differ from other transformers: norms without biases, uniform initial kernels."""
    return Style(bias=variant.bias, norm_bias=False, gated=variant.gated, kernel=xavier_uniform)


class StreamEmbedding(nnx.Module):
    """What one stream's tokens are made with: a projection of patches or a table, and the stream's own vector."""

    def __init__(self, stream: Stream, variant: Variant, *, rngs: nnx.Rngs):
        width = variant.width
        if stream.kind == "pixels":
            fan_in = variant.patch**2 * len(stream.bands)
            self.kernel = parameter(xavier_uniform(fan_in, width), {"patch": fan_in, "embed": width}, rngs)
        else:
            self.table = parameter(normal, {"vocabulary": stream.vocabulary, "embed": width}, rngs)
        self.modality = parameter(normal, {"embed": width}, rngs)


@dataclass(frozen=True)
class Embedded:
    """Packed tokens before the first block; empty slots are zero.

    Attributes:
        content: what the tokens hold.
        place: where they are and which stream they belong to.
        valid: slots that hold a token.
        grid: rows and columns of patches of the image.
    """

    content: Float[Array, "b n d"]
    place: Float[Array, "b n d"]
    valid: Bool[Array, "b n"]
    grid: Grid


class Encoder(nnx.Module):
    """Embeddings and transformer, shared by the encoder-decoder and the backbone.

    Args:
        variant: sizes.
        streams: what it takes; packed inputs number them in this order.
        rngs: source of the initial values.
        registers: tokens of its own that go in before all others.
        drop_path: drop rate of the last block in training.
        remat: rematerialisation policy of the blocks (`nn.stacking.REMAT_POLICIES`).
        dtype: compute dtype.
    """

    def __init__(
        self,
        variant: Variant,
        streams: Sequence[Stream],
        *,
        rngs: nnx.Rngs,
        registers: int = 0,
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        v = variant
        self.variant = v
        self.streams = tuple(streams)
        self.dtype = jnp.dtype(dtype)
        self.embeddings = nnx.Dict({stream.name: StreamEmbedding(stream, v, rngs=rngs) for stream in streams})
        self.registers = parameter(normal, {"registers": registers, "embed": v.width}, rngs) if registers else None
        self.blocks = Stack(
            lambda r: Block(v.width, v.heads, rngs=r, hidden=v.hidden, style=style(v), dtype=dtype),
            v.depth,
            rngs=rngs,
            drop_path=drop_path,
            remat=remat,
        )
        self.norm = LayerNorm({"embed": v.width}, rngs=rngs, bias=False)

    def embed(
        self, packed: PackedInputs, pixels: Mapping[str, Float[Array, "b h w c"]], grid: Grid | None = None
    ) -> Embedded:
        """Embed the packed tokens and no others.

        Args:
            packed: which; a slot that points at pixels that are not given is empty.
            pixels: name of a stream -> standardised images, all of one size.
            grid: rows and columns of patches; needed only where no pixels are given and it is not the usual one.

        Raises:
            ConfigError: pixels of an unknown stream, of unequal sizes or not made of whole patches.
        """
        grid = self._grid(pixels, grid)
        given = [stream.name for stream in self.streams if stream.name in pixels]
        tables = [stream.name for stream in self.streams if stream.vocabulary]
        valid = _numbers(self.streams, [*given, *tables])[packed.stream] >= 0
        stream = jnp.where(valid, packed.stream, -1)
        content = jnp.zeros((*stream.shape, self.variant.width), self.dtype)
        if given:
            content += grouped_projection(
                _numbers(self.streams, given)[stream],
                packed.position,
                tuple(pixels[name] for name in given),
                tuple(self.embeddings[name].kernel[...].astype(self.dtype) for name in given),
            )
        if tables:
            content += grouped_lookup(
                tuple(self.embeddings[name].table[...].astype(self.dtype) for name in tables),
                _numbers(self.streams, tables)[stream],
                packed.token,
            )
        modalities = jnp.stack([self.embeddings[s.name].modality[...] for s in self.streams])
        place = places(self.variant, self.streams, modalities, stream, packed.position, grid).astype(self.dtype)
        return Embedded(content, place, valid, grid)

    def embed_whole(self, name: str, value: Num[Array, "b ..."]) -> Float[Array, "b n d"]:
        """All tokens of one stream, with their places.

        Args:
            name: of the stream.
            value: standardised images (b, h, w, c), or discrete tokens, (b, h, w) of images and (b, n) of sequences.
        """
        stream = next(stream for stream in self.streams if stream.name == name)
        held, v = self.embeddings[name], self.variant
        if stream.kind == "pixels":
            grid = self._grid({name: value}, None)
            content = contract(patchify(value, v.patch).astype(self.dtype), held.kernel[...].astype(self.dtype), 1)
        else:
            grid = (value.shape[1], value.shape[-1])
            content = held.table[...][value.reshape(value.shape[0], -1)].astype(self.dtype)
        if stream.is_image:
            table = position_table(v.grid, grid, v.width)
        else:
            table = sincos_sequence(SEQUENCE_TABLE, v.width)[: content.shape[1]]
        return content + (jnp.asarray(table) + held.modality[...]).astype(self.dtype)

    def __call__(
        self, x: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b n d"]:
        """Normed tokens after the last block, those of the registers left out.

        Args:
            x: tokens with their places.
            valid: which may be attended to; None for all.
            key: randomness of drop path; None runs deterministically.
        """
        x, valid = self._registered(x, valid)
        count = 0 if self.registers is None else self.registers.shape[0]
        return self.norm(self.blocks(x, key, shared=(valid,))[0])[:, count:]

    def every_block(self, x: Float[Array, "b n d"]) -> list[Float[Array, "b m d"]]:
        """Tokens after every block, the last ones normed; those of the registers lead."""
        x, _ = self._registered(x, None)
        last, every = self.blocks(x, every=True)
        return [*every[:-1], self.norm(last)]

    def _registered(self, x, valid):
        if self.registers is None:
            return x, valid
        own = jnp.broadcast_to(self.registers[...].astype(x.dtype), (x.shape[0], *self.registers.shape))
        if valid is not None:
            valid = jnp.concatenate([jnp.ones(own.shape[:2], bool), valid], axis=1)
        return jnp.concatenate([own, x], axis=1), valid

    def _grid(self, pixels: Mapping[str, Float[Array, "b h w c"]], grid: Grid | None) -> Grid:
        patch, names = self.variant.patch, [s.name for s in self.streams if s.kind == "pixels"]
        grids = {grid} if grid else set()
        for name, image in pixels.items():
            if name not in names:
                raise ConfigError(f"this model takes no pixels of {name!r}; did you mean {nearest(name, names)}?")
            height, width = image.shape[1:3]
            if height % patch or width % patch or not height * width:
                raise ConfigError(
                    f"{name} of {height} x {width} pixels is not made of whole patches; "
                    f"give sides that are multiples of {patch}"
                )
            grids.add((height // patch, width // patch))
        if len(grids) > 1:
            sizes = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(grids))
            raise ConfigError(f"images of {sizes} patches do not lie on one grid; give images of one size")
        return grids.pop() if grids else (self.variant.grid, self.variant.grid)


def places(
    variant: Variant,
    streams: Sequence[Stream],
    modalities: Float[Array, "s d"],
    stream: Int[Array, "b n"],
    position: Int[Array, "b n"],
    grid: Grid,
) -> Float[Array, "b n d"]:
    """Fixed position and learned vector of the stream, of packed tokens; zero where a slot is empty."""
    table = position_table(variant.grid, grid, variant.width)
    if any(not known.is_image for known in streams):
        table = np.concatenate([table, sincos_sequence(SEQUENCE_TABLE, variant.width)])
        sequence = jnp.asarray([not known.is_image for known in streams])[stream]
        position = position + prod(grid) * sequence
    # A product with ones and zeros: the gradient of a gather adds row by row.
    chosen = jax.nn.one_hot(stream, len(streams)) @ modalities
    return jnp.where((stream >= 0)[..., None], jnp.asarray(table)[position] + chosen, 0)


def position_table(table: int, grid: Grid, width: int) -> Float[np.ndarray, "n width"]:
    """Positions of an image's patches, row by row: the exact table of a square grid, resampled to another grid."""
    return resampled_table(table, grid, width).reshape(-1, width)


def _numbers(streams: Sequence[Stream], names: Sequence[str]) -> Int[Array, " s+1"]:
    """Index of a stream -> its place among `names`, -1 for others; the last entry is for empty slots, index -1."""
    return jnp.asarray([names.index(s.name) if s.name in names else -1 for s in streams] + [-1], jnp.int32)
