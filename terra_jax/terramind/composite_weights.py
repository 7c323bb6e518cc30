"""Models of several parts under the public PyTorch names: TerraTorch's generation and Thinking in Modalities.

Both hold the encoder-decoder as "sampler.model." and their tokenizers as "tokenizer.KEY.". Thinking in Modalities has a
second encoder, the one that is trained, without a prefix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from terra_jax.terramind.model_weights import (
    decoder_rows,
    embedding_rows,
    encoder_decoder_map,
    encoder_rows,
    table_rows,
)
from terra_jax.terramind.streams import STREAMS, Stream
from terra_jax.terramind.torch_weights import weight_map
from terra_jax.terramind.variants import TokenizerVariant, Variant
from terra_jax.weights.rules import Ignored, Row, Rule, Tied, WeightMap

SAMPLER = "sampler.model."
"""What precedes the names of the encoder-decoder."""


def generator_map(
    variant: Variant, inputs: Sequence[Stream], outputs: Sequence[Stream], tokenizers: Mapping[str, TokenizerVariant]
) -> WeightMap:
    """A whole `generator.Generator` in one state dict.

    Args:
        variant: sizes of the encoder-decoder.
        inputs, outputs: its streams.
        tokenizers: modality -> sizes.
    """
    rows = [_led(row, SAMPLER, "model.") for row in encoder_decoder_map(variant, inputs, outputs).rows]
    for name, held in tokenizers.items():
        rows += [_led(row, f"tokenizer.{STREAMS[f'tok_{name}'].key}.", f"{name}.") for row in weight_map(held).rows]
    return WeightMap(*rows)


def tim_map(
    variant: Variant, streams: Sequence[Stream], inputs: Sequence[Stream], outputs: Sequence[Stream], registers: bool
) -> WeightMap:
    """A whole `tim.TiM` in one state dict; tokenizers that stand beside it are ignored.

    Public files repeat the embeddings of the encoder-decoder, which their model shares with the trained encoder and so
    never trains; here they are two.

    Args:
        variant: sizes.
        streams: of the encoder that is trained.
        inputs, outputs: of the encoder-decoder.
        registers: whether that encoder has tokens of its own.
    """
    shared = [stream.name for stream in outputs if stream in inputs]
    return WeightMap(
        *([Rule("register_tokens", "encoder.registers", "1 n d -> n d", optional=True)] if registers else []),
        *embedding_rows(variant, streams),
        Rule(f"{SAMPLER}mask_token", "sampler.decoder.mask", "1 1 d -> d"),
        *embedding_rows(variant, inputs, SAMPLER, "sampler.encoder.embeddings"),
        *table_rows(variant, outputs, shared, SAMPLER, "sampler.decoder"),
        *encoder_rows(variant, SAMPLER, "sampler.encoder"),
        *decoder_rows(variant, SAMPLER, "sampler.decoder"),
        *encoder_rows(variant),
        Ignored("tokenizer.*"),
    )


def _led(row: Row, torch: str, jax: str) -> Row:
    """A row with both names led by prefixes."""
    led = replace(row, torch=torch + row.torch)
    if isinstance(led, Rule):
        return replace(led, jax=jax + led.jax)
    return replace(led, to=torch + led.to) if isinstance(led, Tied) else led
