"""TerraMind's image tokenizers: encoder, finite scalar quantisation, diffusion or class decoder (arXiv 2504.11171)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Num

from data_pipelines.modalities import LAND_COVER, modality
from terra_jax.errors import ConfigError
from terra_jax.nn.diffusion import CLIPS, sample
from terra_jax.nn.fsq import FSQ
from terra_jax.nn.normalisation import arrange_bands
from terra_jax.nn.unet import UNet
from terra_jax.terramind.codec import ClassDecoder, Encoder
from terra_jax.terramind.torch_weights import weight_map
from terra_jax.terramind.variants import TokenizerVariant
from terra_jax.weights.rules import WeightMap


class Tokenizer(nnx.Module):
    """Images of one modality to discrete tokens and back.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        statistics: statistics set that standardises raw inputs; class ids have none.
        clip: bound of the predicted image while a diffusion decoder samples, a word of `nn.diffusion.CLIPS`. The
            public sampler clamps to one standard deviation around the mean ("unit").
        remat: rematerialisation policy of the blocks (`nn.stacking.REMAT_POLICIES`).
        dtype: compute dtype.

    Raises:
        ConfigError: unknown clip or remat.
    """

    def __init__(
        self,
        variant: TokenizerVariant,
        *,
        rngs: nnx.Rngs,
        statistics: str = "terramind_v1",
        clip: str = "none",
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        if clip not in CLIPS:
            raise ConfigError(f"unknown clip {clip!r}; choose {' or '.join(CLIPS)}")
        self.variant = variant
        self.statistics = statistics
        self.clip = clip
        self.encoder = Encoder(variant, rngs=rngs, remat=remat, dtype=dtype)
        if variant.unet:
            self.decoder: nnx.Module = UNet(
                variant.unet, variant.channels, len(variant.levels), rngs=rngs, remat=remat, dtype=dtype
            )
        else:
            self.decoder = ClassDecoder(variant, rngs=rngs, remat=remat, dtype=dtype)

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return weight_map(self.variant)

    @property
    def fsq(self) -> FSQ:
        """The codebook."""
        return FSQ(self.variant.levels)

    def standardise(
        self,
        x: Num[Array, "b y x ..."],
        *,
        normalised: bool = False,
        bands: Sequence[str] | None = None,
        fill: str | None = None,
    ) -> Float[Array, "b y x c"]:
        """What the network sees.

        Args:
            x: raw physical values of the modality table, channels last, sides divisible by `variant.multiple`. Land
                cover: class ids (b, y, x) or (b, y, x, 1), or one channel a class.
            normalised: `x` is standardised already.
            bands: names of x's channels, where they are not all of the table's.
            fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".

        Raises:
            ConfigError: sides, channels or class ids that do not fit.
        """
        v = self.variant
        if v.kind == "vit":
            image = _one_hot(x, v)
        else:
            mean, std = self._statistics()
            given = bands or modality(v.modality).band_names
            image = arrange_bands(
                jnp.asarray(x, jnp.float32),
                v.modality,
                modality(v.modality).band_names,
                given,
                fill,
                mean * (not normalised),
            )
            image = image if normalised else (image - mean) / std
        if image.ndim != 4 or any(side % v.multiple for side in image.shape[1:3]):
            sides = "x".join(map(str, image.shape[1:-1]))
            raise ConfigError(
                f"an image of {sides} pixels has no whole tokens; the {v.modality} tokenizer takes (batch, height, "
                f"width, channels) with sides divisible by {v.multiple}"
            )
        return image

    def destandardise(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
        """Physical units from what the network sees."""
        mean, std = self._statistics()
        return x * std + mean

    def latents(self, x: Num[Array, "b y x ..."], **reading) -> Float[Array, "b h w k"]:
        """What is quantised; `x` and the options as `standardise` takes them."""
        return self.encoder(self.standardise(x, **reading))

    def feature_maps(self, x: Num[Array, "b y x ..."], **reading) -> list[Float[Array, "b h w d"]]:
        """The encoder's tokens after every block; `x` and the options as `standardise` takes them."""
        return self.encoder.trunk.feature_maps(self.encoder.embed(self.standardise(x, **reading)))

    def quantise(self, latents: Float[Array, "b h w k"]) -> tuple[Float[Array, "b h w k"], Int[Array, "b h w"]]:
        """Codes in [0, 1], through which gradients pass, and tokens."""
        return self.fsq.quantise(latents)

    def tokenize(self, x: Num[Array, "b y x ..."], **reading) -> Int[Array, "b h w"]:
        """Tokens of images; compiled. `x` and the options as `standardise` takes them."""
        return _tokens(self, self.standardise(x, **reading))

    def codes(self, ids: Int[Array, "b h w"]) -> Float[Array, "b h w k"]:
        """Codes of tokens.

        Raises:
            ConfigError: ids outside the codebook, where their values are at hand.
        """
        ids = _checked(ids, self.fsq.size, f"tokens of the {self.variant.modality} tokenizer")
        return self.fsq.codes(ids)

    def denoise(
        self, noisy: Float[Array, "b y x c"], t: Int[Array, " b"], codes: Float[Array, "b h w k"]
    ) -> Float[Array, "b y x c"]:
        """The diffusion decoder's estimate of the clean image, standardised as `noisy` is.

        Args:
            noisy: `nn.diffusion.add_noise` of a standardised image.
            t: timestep, 0..999.
            codes: of the clean image.
        """
        return self.decoder(noisy, codes, t)

    def logits(self, codes: Float[Array, "b h w k"]) -> Float[Array, "b y x c"]:
        """The class decoder's logits of every pixel."""
        return self.decoder(codes)

    def decode_tokens(
        self,
        ids: Int[Array, "b h w"],
        steps: int = 10,
        *,
        key: Key[Array, ""] | None = None,
        noise: Float[Array, "b y x c"] | None = None,
        sampler: str = "ddim",
        clip: str | None = None,
    ) -> Num[Array, "b y x ..."]:
        """Images of tokens; compiled.

        Args:
            ids: tokens.
            steps: of the diffusion; like all that follows without a meaning for land cover, whose decoder is exact.
            key: draws the initial noise, and that of "ddpm".
            noise: the initial noise itself, standard normal.
            sampler: "ddim" or "ddpm".
            clip: bound of the predicted image; None: the tokenizer's own.

        Returns:
            Physical values (b, y, x, c), or class ids (b, y, x) of int32.

        Raises:
            ConfigError: ids outside the codebook, or options that do not fit.
        """
        return self.decode_codes(self.codes(ids), steps, key=key, noise=noise, sampler=sampler, clip=clip)

    def decode_codes(
        self,
        codes: Float[Array, "b h w k"],
        steps: int = 10,
        *,
        key: Key[Array, ""] | None = None,
        noise: Float[Array, "b y x c"] | None = None,
        sampler: str = "ddim",
        clip: str | None = None,
    ) -> Num[Array, "b y x ..."]:
        """Images of codes, which may lie between those of tokens; all else as of `decode_tokens`."""
        if self.variant.kind == "vit":
            return _classes(self, codes)
        return _sampled(self, codes, key, noise, steps=steps, sampler=sampler, clip=clip or self.clip)

    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        return modality(self.variant.modality).statistics_for(self.statistics)


@jax.jit
def _tokens(tokenizer: Tokenizer, image: Float[Array, "b y x c"]) -> Int[Array, "b h w"]:
    return tokenizer.quantise(tokenizer.encoder(image))[1]


@jax.jit
def _classes(tokenizer: Tokenizer, codes: Float[Array, "b h w k"]) -> Int[Array, "b y x"]:
    return tokenizer.logits(codes).argmax(-1).astype(jnp.int32)


@partial(jax.jit, static_argnames=("steps", "sampler", "clip"))
def _sampled(tokenizer: Tokenizer, codes, key, noise, *, steps: int, sampler: str, clip: str):
    v = tokenizer.variant
    shape = (codes.shape[0], codes.shape[1] * v.patch, codes.shape[2] * v.patch, v.channels)
    if key is None and noise is None:
        raise ConfigError("a diffusion decoder starts from noise; give key=jax.random.key(SEED), or noise")
    if noise is None:
        key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, shape)
    if noise.shape != shape:
        raise ConfigError(f"noise of shape {noise.shape} does not fit the tokens, which make an image of {shape}")
    denoise = partial(tokenizer.denoise, codes=codes)
    return tokenizer.destandardise(sample(denoise, noise, steps=steps, sampler=sampler, clip=clip, key=key))


def _one_hot(x: Num[Array, "b y x ..."], variant: TokenizerVariant) -> Float[Array, "b y x c"]:
    """Class ids as one channel a class; what is that already stays as it is."""
    if x.ndim == 4 and x.shape[-1] == variant.channels:
        return jnp.asarray(x, jnp.float32)
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.ndim != 3:
        raise ConfigError(
            f"{variant.modality} of shape {tuple(x.shape)} is unclear; give class ids (batch, height, width) or "
            f"{variant.channels} channels"
        )
    ids = _checked(x, variant.channels, f"{variant.modality} class ids ({', '.join(LAND_COVER)})")
    return jax.nn.one_hot(ids, variant.channels)


def _checked(ids: Num[Array, "..."], size: int, what: str) -> Int[Array, "..."]:
    """Ids as int32; refused outside 0..size-1 where their values are at hand, that is not while tracing."""
    if not isinstance(ids, jax.core.Tracer):
        low, high = np.min(ids), np.max(ids)
        if low < 0 or high >= size:
            raise ConfigError(f"{what} lie in 0..{size - 1}, not {low}..{high}")
    return jnp.asarray(ids, jnp.int32)
