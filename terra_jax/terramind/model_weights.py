"""Encoder-decoder and backbone under the public PyTorch names: one flat, unprefixed state dict for both.

Public norms have no bias but keep a buffer of zeros under that name, and positions are kept with the parameters. The
vector of a stream that goes in and comes out stands there twice, and so does every vocabulary table of the decoder.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from data_pipelines.modalities import modality
from terra_jax.nn.positions import sincos_positions, sincos_sequence
from terra_jax.terramind.streams import SEQUENCE_TABLE, STREAMS, Stream
from terra_jax.terramind.variants import Variant
from terra_jax.weights.rules import WRAPPERS, Fixed, Ignored, Row, Rule, Subset, Tied, WeightMap, linear

UNUSED = ("mask_token", "decoder*", "tokenizer.*", "missing_mod_token")
"""What files hold beside a backbone: the decoder, tokenizers, the filling of TerraTorch's merge by concatenation."""

RELEASED_GRID = 14
"""Patches per side of the released models' images."""


def encoder_decoder_map(variant: Variant, inputs: Sequence[Stream], outputs: Sequence[Stream]) -> WeightMap:
    """The whole correspondence for an encoder-decoder, in the public order of keys."""
    taken, given = [stream.name for stream in inputs], [stream.name for stream in outputs]
    return WeightMap(
        Rule("mask_token", "decoder.mask", "1 1 d -> d"),
        *embedding_rows(variant, inputs),
        *table_rows(variant, outputs, shared=[name for name in given if name in taken]),
        *encoder_rows(variant),
        *decoder_rows(variant),
    )


def backbone_map(variant: Variant, streams: Sequence[Stream], registers: bool) -> WeightMap:
    """The whole correspondence for a backbone, in the public order of keys.

    A file of the encoder-decoder fits too: what a backbone has no use for is ignored. So do those of fine-tuned models,
    which lead the backbone's keys by "encoder.".
    """
    keys = {stream.key for stream in streams}
    return WeightMap(
        *([Rule("register_tokens", "encoder.registers", "1 n d -> n d", optional=True)] if registers else []),
        *embedding_rows(variant, streams),
        *encoder_rows(variant),
        *(Ignored(pattern) for pattern in UNUSED),
        *(Ignored(f"encoder_embeddings.{key}.*") for key in (s.key for s in STREAMS.values()) if key not in keys),
        wrappers=(*WRAPPERS, "encoder"),
    )


def embedding_rows(
    variant: Variant, streams: Sequence[Stream], torch: str = "", jax: str = "encoder.embeddings"
) -> list[Row]:
    """The encoder's embeddings.

    Args:
        variant: sizes.
        streams: in the order of the keys.
        torch: what precedes the public names.
        jax: where the model holds them.
    """
    rows: list[Row] = []
    for stream in streams:
        public, own, optional = f"{torch}encoder_embeddings.{stream.key}", f"{jax}.{stream.name}", not stream.known
        rows += [
            Rule(f"{public}.mod_emb", f"{own}.modality", "1 1 d -> d", optional=optional),
            position_row(public, stream, variant),
        ]
        if stream.kind == "pixels":
            kernel = Rule(
                f"{public}.proj.weight", f"{own}.kernel", "d n -> n d", optional=optional, subset=_subset(stream)
            )
            rows.append(kernel)
        else:
            rows.append(Rule(f"{public}.token_emb.weight", f"{own}.table"))
    return rows


def table_rows(
    variant: Variant, streams: Sequence[Stream], shared: Sequence[str], torch: str = "", jax: str = "decoder"
) -> list[Row]:
    """The decoder's embeddings, which are its heads as well; arguments as of `embedding_rows`.

    Args:
        shared: names of the streams whose vector the encoder holds.
    """
    rows: list[Row] = []
    for stream in streams:
        public = f"{torch}decoder_embeddings.{stream.key}"
        vector: Row = Rule(f"{public}.mod_emb", f"{jax}.modalities.{stream.name}", "1 1 d -> d")
        if stream.name in shared:
            vector = Tied(f"{public}.mod_emb", to=f"{torch}encoder_embeddings.{stream.key}.mod_emb")
        rows += [
            vector,
            position_row(public, stream, variant),
            Rule(f"{public}.token_emb.weight", f"{jax}.tables.{stream.name}"),
            Tied(f"{public}.to_logits.weight", to=f"{public}.token_emb.weight"),
        ]
    return rows


def position_row(public: str, stream: Stream, variant: Variant) -> Fixed:
    """A stream's position table; models of another image size than the released ones may read theirs."""
    if not stream.is_image:
        # Sines of angles up to 511 radians: a last digit of the frequency is 6e-5 there.
        shape = (1, SEQUENCE_TABLE, variant.width)
        return Fixed(f"{public}.pos_emb", shape, partial(_sequence, variant.width), tolerance=5e-4)
    grid, width = variant.grid, variant.width
    released = ((1, RELEASED_GRID**2, width),) if grid != RELEASED_GRID else ()
    return Fixed(f"{public}.pos_emb", (1, grid**2, width), partial(_grid, grid, width), others=released)


def encoder_rows(variant: Variant, torch: str = "", jax: str = "encoder") -> list[Row]:
    """The encoder's blocks and last norm; arguments as of `embedding_rows`."""
    public, own = f"{torch}encoder.{{i}}", f"{jax}.blocks.blocks"
    return [
        *_norm(f"{public}.norm1", f"{own}.norm1", variant),
        *_attention(f"{public}.attn", f"{own}.attention", variant),
        *_norm(f"{public}.norm2", f"{own}.norm2", variant),
        *_mlp(f"{public}.mlp", f"{own}.mlp", variant),
        *_norm(f"{torch}encoder_norm", f"{jax}.norm", variant),
    ]


def decoder_rows(variant: Variant, torch: str = "", jax: str = "decoder") -> list[Row]:
    """The projection of the context, the decoder's blocks and last norm; arguments as of `embedding_rows`."""
    public, own = f"{torch}decoder.{{i}}", f"{jax}.blocks.blocks"
    return [
        *linear(f"{torch}decoder_proj_context", f"{jax}.project"),
        *_norm(f"{public}.norm1", f"{own}.norm1", variant),
        *_attention(f"{public}.self_attn", f"{own}.attention", variant),
        *_projection(f"{public}.cross_attn.q", f"{own}.cross.query", "(h k)", "h k", variant),
        *_projection(f"{public}.cross_attn.kv", f"{own}.cross.kv", "(c h k)", "c h k", variant, {"c": 2}),
        *_out(f"{public}.cross_attn", f"{own}.cross", variant),
        *_norm(f"{public}.query_norm", f"{own}.query_norm", variant),
        *_norm(f"{public}.context_norm", f"{own}.context_norm", variant),
        *_norm(f"{public}.norm2", f"{own}.norm2", variant),
        *_mlp(f"{public}.mlp", f"{own}.mlp", variant),
        *_norm(f"{torch}decoder_norm", f"{jax}.norm", variant),
    ]


def _norm(torch: str, jax: str, variant: Variant) -> list[Row]:
    zeros = Fixed(f"{torch}.bias", (variant.width,), partial(np.zeros, variant.width, np.float32), tolerance=0)
    return [Rule(f"{torch}.weight", f"{jax}.scale"), zeros]


def _attention(torch: str, jax: str, variant: Variant) -> list[Row]:
    qkv = _projection(f"{torch}.qkv", f"{jax}.qkv", "(c h k)", "c h k", variant, {"c": 3})
    return [*qkv, *_out(torch, jax, variant)]


def _projection(
    torch: str, jax: str, flat: str, split: str, variant: Variant, parts: dict[str, int] | None = None
) -> list[Row]:
    """A projection to heads, which PyTorch keeps in one axis with the parts."""
    sizes = {**(parts or {}), "h": variant.heads}
    kernel = Rule(f"{torch}.weight", f"{jax}.kernel", f"{flat} i -> i {split}", sizes)
    bias = Rule(f"{torch}.bias", f"{jax}.bias", f"{flat} -> {split}", sizes)
    return [kernel, bias] if variant.bias else [kernel]


def _out(torch: str, jax: str, variant: Variant) -> list[Row]:
    kernel = Rule(f"{torch}.proj.weight", f"{jax}.out.kernel", "o (h k) -> h k o", {"h": variant.heads})
    return [kernel, Rule(f"{torch}.proj.bias", f"{jax}.out.bias")] if variant.bias else [kernel]


def _mlp(torch: str, jax: str, variant: Variant) -> list[Row]:
    names = {"fc1": "gate", "fc2": "down", "fc3": "up"} if variant.gated else {"fc1": "up", "fc2": "down"}
    return [row for k, name in names.items() for row in linear(f"{torch}.{k}", f"{jax}.{name}", bias=variant.bias)]


def _subset(stream: Stream) -> Subset | None:
    """Which bands of the released projection a stream of fewer bands keeps."""
    if not stream.known:
        return None
    names = modality(stream.modality).band_names
    return None if stream.bands == names else Subset(len(names), tuple(names.index(band) for band in stream.bands))


def _grid(grid: int, width: int) -> np.ndarray:
    return sincos_positions(grid, width).reshape(1, grid * grid, width)


def _sequence(width: int) -> np.ndarray:
    return sincos_sequence(SEQUENCE_TABLE, width)[None]
