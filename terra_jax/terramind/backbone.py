"""TerraMind's encoder as a backbone: images and tokens of any modalities to features (`terramind_v1_*`)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isqrt, prod
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from data_pipelines.modalities import ALIASES
from terra_jax.errors import ConfigError
from terra_jax.terramind.encoder import Encoder
from terra_jax.terramind.inputs import standard_pixels
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.model_weights import backbone_map
from terra_jax.terramind.pretrained import begun_as
from terra_jax.terramind.streams import (
    PIXELS,
    SEQUENCE_TABLE,
    STREAMS,
    NewModalities,
    Stream,
    input_stream,
    nearest,
    new_stream,
    with_bands,
)
from terra_jax.terramind.variants import Variant
from terra_jax.weights.rules import WeightMap

REGISTERS = "registers"
"""Key of the register tokens in what the merge "dict" gives."""

MERGES: dict[str, Callable[[Array], Array]] = {
    "mean": lambda stacked: stacked.mean(1),
    "max": lambda stacked: stacked.max(1),
    "concat": lambda stacked: jnp.moveaxis(stacked, 1, 2).reshape(stacked.shape[0], stacked.shape[2], -1),
}
"""Merge -> what it makes of the image modalities' tokens (b, m, n, d)."""

Modalities = Sequence[str | NewModalities] | NewModalities


class Backbone(nnx.Module):
    """Encoder of images, discrete tokens and coordinates, each modality optional at every call.

    Args:
        variant: sizes. `image` decides which grid has the exact table of positions; other sizes at run time resample it
            bicubically, as PyTorch does. A table for 256 pixels differs from the one for 224 resampled to 256.
        rngs: source of the initial values.
        modalities: what it takes: names of modalities, and {name: number of channels or names of bands} for new ones,
            whose weights begin at random and whose images are taken as they are. LULC and NDVI, and "tok_" before any
            other name, stand for discrete tokens; coords for those of a place.
        bands: modality -> its bands in the model, where they are fewer than the modality's own: the weights of the
            others are left out.
        merge: what is given at every block: "mean" or "max" over the image modalities given, "concat" of their
            channels in the order of `modalities`, "dict" of them, or None for all tokens in the order given. Where a
            modality is not given, its channels are zeros (TerraTorch appends a vector of its own at the end instead).
        registers: number of tokens of the model's own, which lead all others.
        statistics: statistics set that standardises raw inputs.
        drop_path: drop rate of the last block in training.
        remat: rematerialisation policy of the blocks (`nn.stacking.REMAT_POLICIES`).
        dtype: compute dtype.

    Raises:
        ConfigError: an unknown modality, band, merge or policy.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        rngs: nnx.Rngs,
        modalities: Modalities = PIXELS,
        bands: Mapping[str, Sequence[str]] | None = None,
        merge: str | None = None,
        registers: int = 0,
        statistics: str = "terramind_v1",
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        if merge not in (None, "dict", *MERGES):
            raise ConfigError(f"unknown merge {merge!r}; choose {', '.join(MERGES)}, dict or None")
        self.variant = variant
        self.merge = merge
        self.statistics = statistics
        self.encoder = Encoder(
            variant,
            chosen_streams(modalities, bands or {}),
            rngs=rngs,
            registers=registers,
            drop_path=drop_path,
            remat=remat,
            dtype=dtype,
        )

    @classmethod
    def of(cls, model: EncoderDecoder, *, seed: int = 0, **options: Any) -> Self:
        """A backbone with the parameters of a pretrained encoder-decoder.

        Args:
            model: trained to take the modalities.
            seed: of what it does not have: embeddings of new modalities, registers.
            options: keyword arguments of the class; `modalities` default to the model's pixels.

        Raises:
            ConfigError: a modality or band that the model does not take, or a thought that it was not trained to give.
        """
        pixels = tuple(name for name in model.inputs if STREAMS[name].kind == "pixels")
        options = {"modalities": pixels, "statistics": model.statistics, **options}
        return begun_as(model, lambda rngs: cls(model.variant, rngs=rngs, **options), seed)

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return backbone_map(self.variant, self.encoder.streams, self.encoder.registers is not None)

    def __call__(
        self,
        inputs: Mapping[str, Num[Array, "b ..."]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
        tokenizers: Mapping[str, Any] | None = None,
    ) -> list[Any]:
        """Features after every block, the last ones normed; compiled.

        Args:
            inputs: modality -> images (b, h, w, channels) in the units of the modality table, sides divisible by the
                patch; discrete tokens (b, rows, columns), or (b, n) of a square; coords as tokens (b, n). Their tokens
                come out in this order (what is compiled takes dicts in the order of their names).
            normalised: the images are standardised.
            bands: modality -> names of the image's channels, where they are not the model's own.
            fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND". With "mean" they have no
                influence, as if their weights had been left out.
            tokenizers: modality -> what makes its tokens of rasters by `tokenize`: with one, LULC and NDVI are given as
                rasters; with `coordinates.CoordinateTokenizer`, coords as longitude and latitude (b, 2).

        Returns:
            For each block what `merge` says: (b, n, d), with "concat" (b, n, d of all modalities), or a dict of them.

        Raises:
            ConfigError: an unknown modality, channels or sizes that do not fit, or modalities on different grids where
                they are merged.
        """
        return self.features(self.prepare(inputs, normalised=normalised, bands=bands, fill=fill, tokenizers=tokenizers))

    def features(self, values: Mapping[str, Num[Array, "b ..."]]) -> list[Any]:
        """Features after every block, as calling the model gives them, of what `prepare` gives; compiled."""
        every, lengths = _every_block(self, tuple(values.values()), tuple(values)), self._lengths(values)
        return [self._merged(x, lengths) for x in every]

    def feature_maps(
        self, inputs: Mapping[str, Num[Array, "b h w c"]], *, blocks: Sequence[int] | None = None, **reading
    ) -> list[Float[Array, "b y x d"]]:
        """Means over the image modalities after chosen blocks, as maps.

        Args:
            inputs: as for calling the model, at least one image among them, all of one size.
            blocks: indices of blocks, counted from 0; default four, evenly spaced, the last one included.
            reading: further arguments as for calling the model.
        """
        depth = self.variant.depth
        chosen = range(depth - 1, -1, -max(1, depth // 4))[:4][::-1] if blocks is None else blocks
        values = self.prepare(inputs, **reading)
        every, lengths = _every_block(self, tuple(values.values()), tuple(values)), self._lengths(values)
        merged = [self._stacked(every[i], lengths).mean(1) for i in chosen]
        grid = next(self._grid(name, value) for name, value in values.items() if self._stream(name).is_image)
        return [x.reshape(x.shape[0], *grid, -1) for x in merged]

    def encode(
        self, values: Mapping[str, Num[Array, "b ..."]], key: Key[Array, ""] | None = None
    ) -> Float[Array, "b n d"]:
        """All normed tokens of the last block, without registers.

        Args:
            values: of `prepare`.
            key: randomness of drop path; None runs deterministically.
        """
        tokens = [self.encoder.embed_whole(name, value) for name, value in values.items()]
        return self.encoder(jnp.concatenate(tokens, axis=1), key=key)

    def prepare(
        self,
        inputs: Mapping[str, Num[Array, "b ..."]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
        tokenizers: Mapping[str, Any] | None = None,
    ) -> dict[str, Num[Array, "b ..."]]:
        """Stream -> standardised images or tokens, from what a user gives; arguments as for calling the model."""
        chosen = {ALIASES.get(name, name): names for name, names in (bands or {}).items()}
        makers = {ALIASES.get(name, name): maker for name, maker in (tokenizers or {}).items()}
        values: dict[str, Num[Array, "b ..."]] = {}
        for given, value in inputs.items():
            stream = self._find(given)
            if stream.name in values:
                raise ConfigError(f"{given} is given twice under two names; give it once")
            if stream.kind == "pixels":
                own = chosen.get(ALIASES.get(given, given))
                values[stream.name] = standard_pixels(
                    value, stream, statistics=self.statistics, normalised=normalised, bands=own, fill=fill
                )
            else:
                values[stream.name] = _tokens(value, stream, makers.get(stream.modality))
        if not values:
            raise ConfigError(f"no input given; name at least one of {', '.join(self._names())}")
        return values

    def _names(self) -> list[str]:
        return [stream.name for stream in self.encoder.streams]

    def _stream(self, name: str) -> Stream:
        return self.encoder.streams[self._names().index(name)]

    def _find(self, given: str) -> Stream:
        name, streams = ALIASES.get(given, given), self.encoder.streams
        found = {stream.name: stream for stream in streams} | {stream.key: stream for stream in streams}
        for candidate in (name, f"tok_{name}"):
            if candidate in found:
                return found[candidate]
        raise ConfigError(f"this model has no modality {given!r}; did you mean {nearest(given, self._names())}?")

    def _grid(self, name: str, value: Num[Array, "b ..."]) -> tuple[int, ...]:
        """Rows and columns of a stream's tokens; of a sequence, its length."""
        patch = self.variant.patch if self._stream(name).kind == "pixels" else 1
        return tuple(side // patch for side in value.shape[1 : 3 if self._stream(name).is_image else 2])

    def _lengths(self, values: Mapping[str, Num[Array, "b ..."]]) -> dict[str, int]:
        return {name: prod(self._grid(name, value)) for name, value in values.items()}

    def _merged(self, x: Float[Array, "b n d"], lengths: Mapping[str, int]) -> Any:
        """What the merge makes of all tokens of one block; `lengths` says whose they are, in order."""
        if self.merge is None:
            return x
        if self.merge == "dict":
            return self._parts(x, lengths)
        return MERGES[self.merge](self._stacked(x, lengths, every=self.merge == "concat"))

    def _stacked(
        self, x: Float[Array, "b n d"], lengths: Mapping[str, int], every: bool = False
    ) -> Float[Array, "b m n d"]:
        """Tokens of the image modalities, one beside the other; `every`: with zeros for those that are not given."""
        parts = {name: part for name, part in self._parts(x, lengths).items() if name in lengths}
        images = {name: part for name, part in parts.items() if self._stream(name).is_image}
        if len({part.shape for part in images.values()}) != 1:
            held = ", ".join(f"{name} of {part.shape[1]} tokens" for name, part in images.items()) or "no image"
            raise ConfigError(f"{held} cannot be merged; give images of one size")
        if every:
            zeros = jnp.zeros_like(next(iter(images.values())))
            images = {s.name: images.get(s.name, zeros) for s in self.encoder.streams if s.is_image}
        return jnp.stack(list(images.values()), axis=1)

    def _parts(self, x: Float[Array, "b n d"], lengths: Mapping[str, int]) -> dict[str, Float[Array, "b m d"]]:
        """All tokens by stream, those of the registers under a name of their own."""
        own = x.shape[1] - sum(lengths.values())
        ends = np.cumsum([own, *lengths.values()])
        parts = dict(zip((REGISTERS, *lengths), jnp.split(x, ends[:-1], axis=1), strict=True))
        return parts if own else {name: part for name, part in parts.items() if name != REGISTERS}


@partial(jax.jit, static_argnames="names")
def _every_block(model: Backbone, values: tuple[Array, ...], names: tuple[str, ...]) -> list[Float[Array, "b n d"]]:
    """All tokens after every block. The names are apart, since dicts lose their order here."""
    tokens = [model.encoder.embed_whole(name, value) for name, value in zip(names, values, strict=True)]
    return model.encoder.every_block(jnp.concatenate(tokens, axis=1))


def chosen_streams(modalities: Modalities, bands: Mapping[str, Sequence[str]]) -> tuple[Stream, ...]:
    """Streams of a backbone, from what a user names.

    Args:
        modalities: names, and {name: number of channels or names of bands} for new ones; or such a dict alone.
        bands: modality -> chosen bands.

    Raises:
        ConfigError, DataError: a modality or band that is unknown, or a modality named twice.
    """
    streams: list[Stream] = []
    for entry in [modalities] if isinstance(modalities, str | Mapping) else modalities:
        if isinstance(entry, str):
            streams.append(input_stream(entry))
        else:
            streams += [new_stream(name, channels) for name, channels in entry.items()]
    names = [stream.name for stream in streams]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"modalities {', '.join(names) or '(none)'} must be named once each, and at least one")
    for name, chosen in bands.items():
        name = ALIASES.get(name, name)
        if name not in names:
            raise ConfigError(f"bands of {name!r}, which the model does not take; did you mean {nearest(name, names)}?")
        place = names.index(name)
        streams[place] = with_bands(streams[place], chosen)
    return tuple(streams)


def _tokens(value: Any, stream: Stream, tokenizer: Any) -> Num[Array, "b ..."]:
    """Discrete tokens of a stream: given as such, or made of rasters or places by a tokenizer."""
    if stream.kind == "sequence":
        if tokenizer is not None:
            place = np.asarray(value)
            value = tokenizer.tokenize(place[..., 0], place[..., 1])
        return _checked(value, stream, 2)
    if tokenizer is not None:
        value = tokenizer.tokenize(value)
    if np.ndim(value) == 2:
        side = isqrt(value.shape[1])
        value = value.reshape(-1, side, side) if side * side == value.shape[1] else value
    return _checked(value, stream, 3)


def _checked(value: Any, stream: Stream, axes: int) -> Num[Array, "b ..."]:
    """Tokens as an array; refused outside the vocabulary where their values are at hand, that is not while tracing."""
    held, value = value, jnp.asarray(value)
    if value.ndim != axes or not jnp.issubdtype(value.dtype, jnp.integer):
        raise ConfigError(
            f"{stream.name} takes discrete tokens (integers of {axes} axes), not {value.dtype} of shape "
            f"{tuple(value.shape)}; for rasters or places give tokenizers={{{stream.modality!r}: tokenizer}}"
        )
    if axes == 2 and value.shape[1] > SEQUENCE_TABLE:
        raise ConfigError(f"{stream.name} of {value.shape[1]} tokens is too long; give at most {SEQUENCE_TABLE}")
    if not isinstance(held, jax.core.Tracer) and (np.min(held) < 0 or np.max(held) >= stream.vocabulary):
        raise ConfigError(
            f"tokens of {stream.name} lie in 0..{stream.vocabulary - 1}, not {np.min(held)}..{np.max(held)}"
        )
    return value
