"""TerraMind: a masked encoder-decoder over pixels and tokens of many modalities (arXiv 2504.11171; 4M, 2312.06647)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, Num

from terra_jax.errors import ConfigError
from terra_jax.nn.grouped import grouped_cross_entropy
from terra_jax.terramind.decoder import Decoder
from terra_jax.terramind.encoder import Encoder, Grid, places
from terra_jax.terramind.inputs import standard_pixels
from terra_jax.terramind.model_weights import encoder_decoder_map
from terra_jax.terramind.packing import PackedInputs, PackedTargets
from terra_jax.terramind.streams import INPUTS, OUTPUTS, STREAMS, nearest, streams_of, with_bands
from terra_jax.terramind.variants import Variant
from terra_jax.weights.rules import WeightMap


@partial(jax.tree_util.register_dataclass, data_fields=("tokens", "valid", "encoded"), meta_fields=("grid",))
@dataclass(frozen=True)
class Context:
    """What the decoder attends to.

    Attributes:
        tokens: projected output of the encoder, plus where the tokens are and which stream they belong to.
        valid: slots that hold a token.
        encoded: normed output of the encoder itself.
        grid: rows and columns of patches of the image.
    """

    tokens: Float[Array, "b n d"]
    valid: Bool[Array, "b n"]
    encoded: Float[Array, "b n d"]
    grid: Grid


class EncoderDecoder(nnx.Module):
    """The pretraining model: some tokens of any streams in, other tokens out.

    Args:
        variant: sizes.
        rngs: source of the initial values.
        inputs: streams that the encoder takes; packed inputs number them in this order.
        outputs: streams that the decoder gives; packed targets number them in this order.
        bands: pixel stream -> bands that it is made of, where they are not the modality's own.
        fingerprints: modality -> fingerprint of the tokenizer whose tokens the model is trained on, where it is known.
        statistics: statistics set that standardises raw inputs.
        drop_path: drop rate of the last block of encoder and decoder in training.
        remat: rematerialisation policy of the blocks (`nn.stacking.REMAT_POLICIES`).
        dtype: compute dtype.

    Raises:
        ConfigError: an unknown stream, band or policy.
    """

    def __init__(
        self,
        variant: Variant,
        *,
        rngs: nnx.Rngs,
        inputs: Sequence[str] = INPUTS,
        outputs: Sequence[str] = OUTPUTS,
        bands: Mapping[str, Sequence[str]] | None = None,
        fingerprints: Mapping[str, str] | None = None,
        statistics: str = "terramind_v1",
        drop_path: float = 0.0,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        bands = bands or {}
        taken, given = streams_of(inputs), streams_of(outputs, [n for n, s in STREAMS.items() if s.vocabulary])
        if unknown := [name for name in bands if name not in inputs]:
            raise ConfigError(
                f"bands of {unknown[0]!r}, which is no input; did you mean {nearest(unknown[0], inputs)}?"
            )
        self.variant = variant
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.fingerprints = tuple(sorted((fingerprints or {}).items()))
        self.statistics = statistics
        options: dict[str, Any] = {"rngs": rngs, "drop_path": drop_path, "remat": remat, "dtype": dtype}
        chosen = [with_bands(stream, bands[stream.name]) if stream.name in bands else stream for stream in taken]
        self.encoder = Encoder(variant, chosen, **options)
        self.decoder = Decoder(variant, given, [name for name in outputs if name not in inputs], **options)

    @property
    def weight_map(self) -> WeightMap:
        """How the parameters are named and laid out in PyTorch."""
        return encoder_decoder_map(self.variant, self.encoder.streams, self.decoder.streams)

    def standardise(
        self,
        inputs: Mapping[str, Num[Array, "b h w c"]],
        *,
        normalised: bool = False,
        bands: Mapping[str, Sequence[str]] | None = None,
        fill: str | None = None,
    ) -> dict[str, Float[Array, "b h w c"]]:
        """Raw images by pixel stream, as `encode` takes them.

        Args:
            inputs: pixel stream -> raw physical values of the modality table, channels last.
            normalised: they are standardised already.
            bands: stream -> names of the image's channels, where they are not the stream's own.
            fill: what stands for bands that are not given: "zero", "mean" or "copy:BAND".

        Raises:
            ConfigError: an unknown stream, or channels that do not match.
        """
        known = {stream.name: stream for stream in self.encoder.streams if stream.kind == "pixels"}
        for name in inputs:
            if name not in known:
                raise ConfigError(f"this model takes no pixels of {name!r}; did you mean {nearest(name, list(known))}?")
        return {
            name: standard_pixels(
                image,
                known[name],
                statistics=self.statistics,
                normalised=normalised,
                bands=(bands or {}).get(name),
                fill=fill,
            )
            for name, image in inputs.items()
        }

    def encode(
        self,
        packed: PackedInputs,
        pixels: Mapping[str, Float[Array, "b h w c"]],
        grid: Grid | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Context:
        """Run the encoder on the packed tokens.

        Args:
            packed: which tokens of which streams.
            pixels: pixel stream -> standardised images (b, h, w, c) of one size; no more than its kept patches are
                embedded.
            grid: rows and columns of patches; needed only where no pixels are given and it is not the usual one.
            key: randomness of drop path; None runs deterministically.

        Raises:
            ConfigError: pixels of an unknown stream, of unequal sizes or not made of whole patches.
        """
        embedded = self.encoder.embed(packed, pixels, grid)
        encoded = self.encoder(embedded.content + embedded.place, embedded.valid, key)
        return Context(self.decoder.project(encoded) + embedded.place, embedded.valid, encoded, embedded.grid)

    def decode(
        self,
        context: Context,
        targets: PackedTargets,
        grid: Grid | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "b m d"]:
        """Run the decoder: normed tokens from which `logits` and `token_loss` are made.

        Args:
            context: of `encode`.
            targets: which tokens of which streams are wanted.
            grid: rows and columns of patches of the targets, where they are not the context's.
            key: randomness of drop path; None runs deterministically.
        """
        decoder = self.decoder
        modalities = jnp.stack([self._modality(name) for name in self.outputs])
        position, grid = decoder.position(targets), grid or context.grid
        place = places(self.variant, decoder.streams, modalities, targets.stream, position, grid)
        x = decoder.content(targets) + place.astype(decoder.dtype)
        shared = (context.tokens, context.valid, decoder.own(targets))
        return decoder.norm(decoder.blocks(x, key, shared=shared)[0])

    def token_loss(
        self, decoded: Float[Array, "b m d"], targets: PackedTargets, weights: Float[Array, "b m"]
    ) -> tuple[Float[Array, ""], Float[Array, "b m"]]:
        """Weighted sum of the targets' cross-entropies, and each of them (0 in empty slots), float32."""
        tables = tuple(self.decoder.tables[name][...] for name in self.outputs)
        return grouped_cross_entropy(decoded, tables, targets.stream, targets.label, weights)

    def logits(self, decoded: Float[Array, "... d"], stream: str) -> Float[Array, "... v"]:
        """Scores of every token of an output stream's vocabulary, float32.

        Raises:
            ConfigError: if the model does not give that stream.
        """
        if stream not in self.outputs:
            raise ConfigError(f"this model gives no {stream!r}; did you mean {nearest(stream, self.outputs)}?")
        table = self.decoder.tables[stream][...].astype(decoded.dtype)
        return jnp.einsum("...d,vd->...v", decoded, table, preferred_element_type=jnp.float32)

    def _modality(self, name: str) -> Float[Array, " d"]:
        held = self.encoder.embeddings[name].modality if name in self.inputs else self.decoder.modalities[name]
        return held[...]
