"""Any modalities to any others: encoder-decoder and tokenizers together (TerraTorch's `terramind_v1_*_generate`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Num

from data_pipelines import radiometry
from data_pipelines.modalities import ALIASES, Unit, modality
from data_pipelines.sample import Raster
from terra_jax.errors import ConfigError
from terra_jax.terramind.composite_weights import generator_map
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.fingerprint import fingerprint
from terra_jax.terramind.generation import (
    NOISE,
    Conditions,
    Decoding,
    Plan,
    Script,
    Tokens,
    check_plan,
    generate_tokens,
    over_samples,
    place_keys,
)
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.streams import STREAMS, Stream, nearest
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.weights.rules import WeightMap

COORDINATES = "coords"


class Generator(nnx.Module):
    """Encoder-decoder, tokenizers of images, and the vocabulary of places.

    Args:
        model: trained on tokens of these tokenizers.
        tokenizers: modality -> tokenizer; for every modality that is given as tokens or wanted as a raster.
        coordinates: where coordinates are given or wanted.

    Raises:
        ConfigError: a tokenizer that is not the one of the model's training, or that does not fit it.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        tokenizers: Mapping[str, Tokenizer],
        coordinates: CoordinateTokenizer | None = None,
    ):
        check_tokenizers(model, tokenizers, coordinates)
        self.model = model
        self.held = tuple(tokenizers)
        for name, tokenizer in tokenizers.items():
            setattr(self, name, tokenizer)
        self.coordinates = coordinates

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """Modality -> tokenizer."""
        return {name: getattr(self, name) for name in self.held}

    @property
    def weight_map(self) -> dict[str, WeightMap]:
        """Part -> how its parameters are named and laid out in PyTorch."""
        return {"model": self.model.weight_map, **{name: held.weight_map for name, held in self.tokenizers.items()}}

    @property
    def whole_map(self) -> WeightMap:
        """The same of all parts in one file, as TerraTorch writes it."""
        inner, tokenizers = self.model, {name: held.variant for name, held in self.tokenizers.items()}
        return generator_map(inner.variant, inner.encoder.streams, inner.decoder.streams, tokenizers)

    @property
    def patch(self) -> int:
        """Pixels per side of a token."""
        return self.model.variant.patch

    @property
    def image(self) -> int:
        """Pixels per side of a usual image."""
        return self.model.variant.image

    @property
    def multiple(self) -> int:
        """What the sides of an image must be divisible by, pixels."""
        return lcm(self.patch, *(held.variant.multiple for held in self.tokenizers.values()))

    def generate(
        self,
        inputs: Mapping[str, Num[Array, "b ..."]],
        outputs: Sequence[str],
        *,
        key: Key[Array, ""],
        steps: int | None = None,
        decoding: Decoding | Mapping[str, Decoding] | None = None,
        samples: int = 1,
        chained: bool = True,
        probabilities: bool = False,
        diffusion_steps: int = 10,
        clip: str | None = None,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
        numbers: Int[Array, " b"] | None = None,
        places: Int[Array, "b t"] | None = None,
        mesh: Mesh | None = None,
    ) -> dict[str, Num[Array, "b ..."]]:
        """Generate modalities from others.

        The same key gives the same bytes, on any number of devices.

        Args:
            inputs: modality -> raw rasters (b, y, x, band) in the units of the modality table, all of one size; land
                cover as class ids (b, y, x); "tok_" and a modality: its tokens (b, rows, columns); coords: longitude
                and latitude (b, 2). None of them is changed.
            outputs: modalities, in the order in which they are decided; "tok_" and a modality for tokens instead of a
                raster. Those that are among the inputs are handed back.
            key: of all that is random.
            steps: of the decoding of each image's tokens, in place of the decoding's own.
            decoding: how tokens are drawn, for all outputs or by modality.
            samples: of which the mean is given: of class logits, physical values, places on the sphere.
            chained: whether outputs are seen by those that follow.
            probabilities: give land cover as probabilities (b, y, x, class).
            diffusion_steps, clip: of the tokenizers' decoders (`Tokenizer.decode_tokens`).
            normalised, bands, fill: of the inputs of pixels (`EncoderDecoder.standardise`).
            numbers: of the samples, which decide what is drawn; default 0, 1, ...
            places: of the patches, likewise; default 0, 1, ... row by row.
            mesh: devices that share the batch.

        Returns:
            Modality -> physical values (b, y, x, band), class ids (b, y, x), tokens (b, rows, columns), or longitude
            and latitude (b, 2).

        Raises:
            ConfigError, DataError: a modality that is unknown, not given or not trained, shapes or units that do not
                fit, or an impossible decoding.
        """
        known = self._read(inputs, normalised, bands, fill)
        back = {ALIASES.get(name, name): value for name, value in inputs.items()}
        asked = {name: self._asked(name, samples) for name in outputs if ALIASES.get(name, name) not in back}
        wanted = tuple(stream for stream in dict.fromkeys(asked.values()) if stream.name not in known.tokens)
        plan = Plan(
            tuple((stream.name, self._decoding(stream, steps, decoding)) for stream in wanted), known.grid, chained
        )
        check_plan(self.model, plan, (*known.pixels, *known.tokens))
        if samples < 1:
            raise ConfigError(f"samples={samples} is too few; use 1 or more")
        if mesh is not None and known.batch % mesh.size:
            raise ConfigError(f"{known.batch} samples do not divide among {mesh.size} devices; give a multiple")
        count = known.grid[0] * known.grid[1]
        numbers = jnp.arange(known.batch) if numbers is None else jnp.asarray(numbers)
        places = jnp.broadcast_to(jnp.arange(count) if places is None else jnp.asarray(places), (known.batch, count))
        options = {"steps": diffusion_steps, "clip": clip, "mesh": mesh}
        sums: dict[str, Any] = {}
        for i in range(samples):
            keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, i)))(numbers)
            conditions = Conditions(known.pixels, known.tokens, keys, places)
            made = known.tokens | generate_tokens(
                self.model, conditions, self._scripts(wanted), plan=plan, mesh=mesh, singly=True
            )
            for name, stream in asked.items():
                soft = self._decoded(name, stream, made[stream.name], conditions, known.grid, options)
                sums[name] = sums[name] + soft if i else soft
        found = {name: self._finished(name, asked[name], sums[name], samples, probabilities) for name in asked}
        return {name: found[name] if name in found else back[ALIASES.get(name, name)] for name in outputs}

    # ---- inputs --------------------------------------------------------------------------------------------------

    def _read(self, inputs, normalised: bool, bands, fill: str | None) -> "_Known":
        """Inputs as the model takes them."""
        images: dict[str, Any] = {}
        tokens: dict[str, Tokens] = {}
        grids: dict[str, tuple[int, int]] = {}
        for name, given in inputs.items():
            stream, value = self._taken(name), given if isinstance(given, jax.Array) else np.asarray(given)
            if stream.name in images or stream.name in tokens:
                raise ConfigError(f"{name} is given twice under two names; give it once")
            if stream.kind == "pixels":
                _check_unit(name, value, normalised)
                images[stream.name], grids[name] = value, self._grid(name, value)
            elif stream.kind == "sequence":
                tokens[stream.name] = _whole(self._located(value))
            else:
                ids = _checked(name, value, stream) if name.startswith("tok_") else self._tokenised(name, value)
                rows, columns = ids.shape[1:]
                tokens[stream.name], grids[name] = _whole(ids.reshape(-1, rows * columns)), (rows, columns)
        chosen = {ALIASES.get(name, name): names for name, names in (bands or {}).items()}
        pixels = self.model.standardise(images, normalised=normalised, bands=chosen, fill=fill)
        sizes = {len(value) for value in inputs.values()}
        if len(sizes) > 1 or len(set(grids.values())) > 1:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
            raise ConfigError(f"inputs of different sizes cannot go together: {shapes}; give rasters of one size")
        grid = next(iter(grids.values()), (self.model.variant.grid,) * 2)
        return _Known(pixels, tokens, (int(grid[0]), int(grid[1])), next(iter(sizes), 0))

    def _taken(self, name: str) -> Stream:
        """The stream of an input: pixels where the model has them, else tokens."""
        own = ALIASES.get(name, name)
        for candidate in (own, f"tok_{own}"):
            if candidate in self.model.inputs:
                return next(stream for stream in self.model.encoder.streams if stream.name == candidate)
        raise ConfigError(f"the model takes no {name!r}; did you mean {nearest(name, self.model.inputs)}?")

    def _grid(self, name: str, image: Any) -> tuple[int, int]:
        sides = image.shape[1:3]
        if image.ndim < 3 or any(side % self.multiple or not side for side in sides):
            size = " x ".join(map(str, sides))
            raise ConfigError(
                f"{name} is {size} pixels; give (batch, y, x, band) with sides divisible by {self.multiple}"
            )
        return sides[0] // self.patch, sides[1] // self.patch

    def _tokenised(self, name: str, value: Any) -> Int[Array, "b h w"]:
        self._grid(name, value)
        tokenizer = self._tokenizer(ALIASES.get(name, name))
        _check_unit(name, value, tokenizer.variant.kind == "vit" and value.ndim == 4 and value.shape[-1] > 1)
        return tokenizer.tokenize(value)

    def _located(self, value) -> Int[Array, "b l"]:
        value = np.asarray(value)
        if value.ndim != 2 or value.shape[1] != 2:
            raise ConfigError(f"coords have shape {value.shape}; give longitude and latitude (batch, 2)")
        return jnp.asarray(self._vocabulary.tokenize(value[:, 0], value[:, 1]))

    # ---- outputs -------------------------------------------------------------------------------------------------

    def _asked(self, name: str, samples: int) -> Stream:
        """The stream of an output."""
        own = ALIASES.get(name, name)
        if name.startswith("tok_") and samples > 1:
            raise ConfigError(f"tokens have no mean; ask for {own.removeprefix('tok_')} instead, or for one sample")
        for candidate in (own, f"tok_{own}"):
            if candidate in self.model.outputs:
                if STREAMS[candidate].is_image and candidate != own:
                    self._tokenizer(own)
                return STREAMS[candidate]
        known = [stream.removeprefix("tok_") for stream in self.model.outputs]
        raise ConfigError(f"the model was not trained to give {name!r}; it gives {', '.join(known)}")

    def _decoding(self, stream: Stream, steps: int | None, decoding) -> Decoding:
        if isinstance(decoding, Mapping):
            decoding = decoding.get(stream.modality, decoding.get(stream.name))
        how = decoding or Decoding()
        return how if steps is None or not stream.is_image else how.with_steps(steps)

    def _scripts(self, wanted: Sequence[Stream]) -> dict[str, Script]:
        sequences = [stream for stream in wanted if not stream.is_image]
        return {stream.name: Script.of(self._vocabulary, stream.vocabulary) for stream in sequences}

    def _decoded(self, name: str, stream: Stream, tokens: Tokens, conditions: Conditions, grid, options) -> Any:
        """What is averaged over samples."""
        if not stream.is_image:
            return _on_sphere(*self._vocabulary.decode(np.asarray(tokens.ids)))
        ids = tokens.ids.reshape(-1, *grid)
        if name == stream.name:
            return ids
        keys = place_keys(conditions.keys, conditions.places, self.model.outputs.index(stream.name), NOISE)
        return _maps(self._tokenizer(stream.modality), ids, keys, **options)

    def _finished(self, name: str, stream: Stream, total: Any, samples: int, probabilities: bool) -> Any:
        if not stream.is_image:
            return _degrees(total)
        if name == stream.name:
            return total
        if self._tokenizer(stream.modality).variant.kind == "vit":
            return jax.nn.softmax(total / samples) if probabilities else total.argmax(-1).astype(jnp.int32)
        return total / samples

    def _tokenizer(self, name: str) -> Tokenizer:
        if name not in self.held:
            raise ConfigError(f"{name} needs its tokenizer; give it as the part {name}=PATH")
        return getattr(self, name)

    @property
    def _vocabulary(self) -> CoordinateTokenizer:
        if self.coordinates is None:
            raise ConfigError(f"coordinates need their vocabulary; give it as the part {COORDINATES}=FILE")
        return self.coordinates


@dataclass(frozen=True)
class _Known:
    """Inputs as the model takes them."""

    pixels: dict[str, Float[Array, "b y x c"]]
    tokens: dict[str, Tokens]
    grid: tuple[int, int]
    batch: int


def check_tokenizers(
    model: EncoderDecoder, tokenizers: Mapping[str, Tokenizer], coordinates: CoordinateTokenizer | None
) -> None:
    """Refuse tokenizers that do not go with a model.

    Raises:
        ConfigError: naming the modality.
    """
    trained = dict(model.fingerprints)
    for name, tokenizer in tokenizers.items():
        stream, variant = f"tok_{name}", tokenizer.variant
        if variant.modality != name:
            raise ConfigError(f"the tokenizer given for {name} is one of {variant.modality}; give that of {name}")
        if stream not in (*model.inputs, *model.outputs):
            raise ConfigError(f"the model knows no tokens of {name}; it gives {', '.join(model.outputs)}")
        if variant.codebook != STREAMS[stream].vocabulary or variant.patch != model.variant.patch:
            raise ConfigError(
                f"the tokenizer of {name} has {variant.codebook} tokens of {variant.patch} pixels, the model "
                f"{STREAMS[stream].vocabulary} of {model.variant.patch}; give the tokenizer of its training"
            )
        if name in trained and (held := fingerprint(tokenizer)) != trained[name]:
            raise ConfigError(
                f"the tokenizer of {name} is {held}, the model was trained on tokens of {trained[name]}; "
                "tokens of different tokenizers do not mix: give the one of its training"
            )
    if coordinates and trained.get(COORDINATES, coordinates.fingerprint) != coordinates.fingerprint:
        raise ConfigError(
            f"the vocabulary of coordinates is {coordinates.fingerprint}, the model was trained with "
            f"{trained[COORDINATES]}; give that one"
        )


@partial(jax.jit, static_argnames=("steps", "clip", "mesh"))
def _maps(
    tokenizer: Tokenizer,
    ids: Int[Array, "b h w"],
    keys: Key[Array, "b t"],
    *,
    steps: int,
    clip: str | None,
    mesh: Mesh | None,
) -> Float[Array, "b y x c"]:
    """Physical values, or class logits, of tokens."""

    def run(tokenizer: Tokenizer, batch: tuple[Int[Array, "b h w"], Key[Array, "b t"]]) -> Float[Array, "b y x c"]:
        (ids, keys), variant = batch, tokenizer.variant
        if variant.kind == "vit":
            return tokenizer.logits(tokenizer.codes(ids))
        draw = lambda key: jax.random.normal(key, (variant.patch, variant.patch, variant.channels))  # noqa: E731
        noise = rearrange(jax.vmap(jax.vmap(draw))(keys), "b (h w) p q c -> b (h p) (w q) c", h=ids.shape[1])
        return tokenizer.decode_tokens(ids, steps, noise=noise, clip=clip)

    return over_samples(run, (tokenizer,), (ids, keys), mesh, singly=True)


def _checked(name: str, ids: Any, stream: Stream) -> Any:
    """Tokens of an image; refused where they are none, as far as they are at hand."""
    if ids.ndim != 3 or ids.dtype.kind not in "iu":
        raise ConfigError(f"{name} has {ids.dtype} of shape {tuple(ids.shape)}; give integers (batch, rows, columns)")
    if not isinstance(ids, jax.core.Tracer) and ids.size and not (ids.min() >= 0 and ids.max() < stream.vocabulary):
        raise ConfigError(f"{name} has tokens {ids.min()}..{ids.max()}; they lie in 0..{stream.vocabulary - 1}")
    return ids


def _whole(ids: Int[Array, "b t"]) -> Tokens:
    ids = jnp.asarray(ids, jnp.int32)
    return Tokens(ids, jnp.ones(ids.shape, bool))


def _check_unit(name: str, value: Any, unchecked: bool) -> None:
    """Refuse numbers of another unit, where they are at hand and said to be physical."""
    if unchecked or isinstance(value, jax.core.Tracer) or not np.size(value):
        return
    unit = modality(name).unit
    values = np.asarray(value)
    if unit is Unit.CLASS and values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise ConfigError(f"{name} takes class ids, not fractions; give integers (batch, y, x)")
    radiometry.check_plausible(name, Raster({10: values}, unit))


def _on_sphere(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    """Degrees to unit vectors."""
    lon, lat = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def _degrees(vectors: np.ndarray) -> np.ndarray:
    """Vectors to longitude and latitude, degrees (b, 2)."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.degrees(np.stack([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y))], axis=-1))
