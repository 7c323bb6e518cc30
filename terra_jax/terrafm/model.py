"""The TerraFM encoder: stems, fusion and a DINO vision transformer (arXiv 2506.06281; public terrafm.py)."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, Num

from data_pipelines.modalities import ALIASES, modality
from terra_jax.errors import ConfigError
from terra_jax.nn.linear import LayerNorm, parameter, trunc_normal
from terra_jax.nn.normalisation import arrange_bands
from terra_jax.nn.positions import resample_positions
from terra_jax.nn.stacking import Stack
from terra_jax.nn.transformer import Block
from terra_jax.terrafm.stems import PatchEmbedding
from terra_jax.terrafm.torch_weights import weight_map
from terra_jax.terrafm.variants import STEM_RATIO, Variant
from terra_jax.weights.rules import WeightMap

STEMS = {"S2L2A": "s2_l2a", "S2L1C": "s2_l1c", "S1RTC": "s1", "S1GRD": "s1"}
"""Modality -> stem. The public training used S1RTC; GRD shares the stem."""


def input_bands(name: str) -> tuple[str, ...]:
    """Bands that TerraFM's stem for a modality takes, in order: the table's, without the cirrus band."""
    return tuple(band for band in modality(name).band_names if band != "B10")


class TerraFM(nnx.Module):
    """Encoder of Sentinel-1 and Sentinel-2 images, one modality or several fused.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        drop_path: drop rate of the last block in training.
        statistics: statistics set that standardises raw inputs (the public one is unknown).
        upstream_compat: send S2L2A through the L1C stem, as the public model's forward does for any 12 channels.
        remat: rematerialisation policy of the blocks (`terra_jax.nn.stacking.REMAT_POLICIES`).
        dtype: compute dtype.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        rngs: nnx.Rngs,
        drop_path: float = 0.0,
        statistics: str = "ssl4eo_s12",
        upstream_compat: bool = False,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        v, width = variant, variant.width
        self.variant = v
        self.statistics = statistics
        self.stems = {**STEMS, "S2L2A": "s2_l1c"} if upstream_compat else STEMS
        self.grid = v.image // v.patch
        self.patch_embed = PatchEmbedding(
            patch=v.patch,
            stem_width=STEM_RATIO * width,
            width=width,
            heads=v.fusion_heads,
            queries=v.queries,
            rngs=rngs,
            dtype=dtype,
        )
        self.cls = parameter(trunc_normal, {"embed": width}, rngs)
        self.positions = parameter(trunc_normal, {"tokens": 1 + self.grid**2, "embed": width}, rngs)
        self.blocks = Stack(
            lambda r: Block(width, v.heads, rngs=r, dtype=dtype), v.depth, rngs=rngs, drop_path=drop_path, remat=remat
        )
        self.norm = LayerNorm({"embed": width}, rngs=rngs)

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return weight_map(self.variant)

    def __call__(
        self,
        inputs: Mapping[str, Num[Array, "b h w c"]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> Float[Array, "b d"]:
        """Class-token embedding of one modality, or of several fused.

        Args:
            inputs: modality name -> image of any size (at least a patch), channels last. Raw physical units of the
                modality table (Sentinel-2 digital numbers without offset, backscatter in dB), all its bands in order.
            normalised: the images are what the network sees: standardised, Sentinel-2 without B10.
            bands: modality -> names of the image's channels, where they are not all of the table's.
            fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".

        Raises:
            ConfigError: unknown modality, channels that do not match, or two modalities that share a stem.
        """
        images = self.prepare(inputs, normalised=normalised, bands=bands, fill=fill)
        return self.encode(images)[:, 0]

    def feature_maps(
        self,
        inputs: Mapping[str, Num[Array, "b h w c"]],
        *,
        blocks: Sequence[int] | None = None,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> list[Float[Array, "b y x d"]]:
        """Patch features after chosen blocks, each through the final norm.

        Args:
            inputs, normalised, bands, fill: as for calling the model.
            blocks: indices of blocks, counted from 0; default four, evenly spaced, the last one included
                (depth 12: 2, 5, 8, 11; depth 24: 5, 11, 17, 23).
        """
        images = self.prepare(inputs, normalised=normalised, bands=bands, fill=fill)
        depth = self.variant.depth
        chosen = range(depth // 4 - 1, depth, depth // 4) if blocks is None else blocks
        height, width = next(iter(images.values())).shape[1:3]
        tokens = self._embed(images)
        _, every = self.blocks(tokens, every=True)
        shape = (-1, height // self.variant.patch, width // self.variant.patch, self.variant.width)
        return [self.norm(every[i])[:, 1:].reshape(shape) for i in chosen]

    def prepare(
        self,
        inputs: Mapping[str, Num[Array, "b h w c"]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> dict[str, Float[Array, "b h w c"]]:
        """Named inputs -> stem name -> standardised image in the stem's band order."""
        images: dict[str, Float[Array, "b h w c"]] = {}
        for name, image in inputs.items():
            name = ALIASES.get(name, name)
            if name not in self.stems:
                raise ConfigError(f"TerraFM has no stem for {name!r}; it takes {', '.join(STEMS)}")
            stem = self.stems[name]
            if stem in images:
                raise ConfigError(f"{name} shares the stem {stem!r} with another input; give only one of them")
            wanted = input_bands(name)
            given = (bands or {}).get(name) or (wanted if normalised else None)
            mean, std = modality(name).statistics_for(self.statistics, wanted)
            image = arrange_bands(jnp.asarray(image, jnp.float32), name, wanted, given, fill, mean * (not normalised))
            images[stem] = image if normalised else (image - mean) / std
        if not images:
            raise ConfigError(f"no input given; name at least one of {', '.join(STEMS)}")
        return images

    def encode(
        self,
        images: Mapping[str, Float[Array, "b h w c"]],
        present: Mapping[str, Bool[Array, " b"]] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b n d"]:
        """Normed tokens, class token first.

        Args:
            images: stem name -> standardised image, all of one size.
            present: stem name -> which examples have it (None: all).
            key: randomness of drop path (None: deterministic).
        """
        tokens = self._embed(images, present)
        return self.norm(self.blocks(tokens, key)[0])

    def _embed(self, images, present=None) -> Float[Array, "b n d"]:
        height, width = next(iter(images.values())).shape[1:3]
        tokens = self.patch_embed(images, present)
        cls = jnp.broadcast_to(self.cls[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[2]))
        return jnp.concatenate([cls, tokens], axis=1) + self._positions(height, width).astype(tokens.dtype)

    def _positions(self, height: int, width: int) -> Float[Array, "n d"]:
        """The table as it is for square images of its own grid; else its patch rows resampled, as DINO does."""
        table, grid = self.positions[...], (height // self.variant.patch, width // self.variant.patch)
        if grid[0] * grid[1] == self.grid**2 and height == width:
            return table
        return jnp.concatenate([table[:1], resample_positions(table[1:], (self.grid, self.grid), grid)])
