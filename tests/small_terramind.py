"""TerraMind models far smaller than nano, with random parameters, and packed sequences by hand."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from random_tokenizer import random_module

from terra_jax.terramind.backbone import Backbone
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.packing import PackedInputs, PackedTargets
from terra_jax.terramind.streams import STREAMS
from terra_jax.terramind.variants import Variant

PLAIN = Variant(16, 2, 2, 2, hidden=24, gated=False, bias=True, patch=4, image=16)
GATED = Variant(16, 2, 2, 2, hidden=24, gated=True, bias=False, patch=4, image=16)
INPUTS = ("S2L2A", "S1GRD", "tok_LULC", "coords")
OUTPUTS = ("tok_LULC", "tok_NDVI", "coords")


def small_encoder_decoder(variant: Variant = GATED, inputs=INPUTS, outputs=OUTPUTS, **options) -> EncoderDecoder:
    return random_module(lambda rngs: EncoderDecoder(variant, rngs=rngs, inputs=inputs, outputs=outputs, **options))


def small_backbone(variant: Variant = GATED, **options) -> Backbone:
    return random_module(lambda rngs: Backbone(variant, rngs=rngs, **options))


def random_pixels(names: Sequence[str], side: int = 16, batch: int = 2, seed: int = 0) -> dict:
    """Standardised images."""
    rng = np.random.default_rng(seed)
    shapes = {name: (batch, side, side, len(STREAMS[name].bands)) for name in names}
    return {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}


def packed_inputs(
    names: Sequence[str], slots: Mapping[str, Sequence], padding: int = 0, batch: int = 2
) -> PackedInputs:
    """Slots of every stream, equal in the whole batch.

    Args:
        names: the model's inputs.
        slots: stream -> positions of pixels, (position, token) of tokens, tokens of a sequence.
        padding: empty slots at the end, which hold rubbish.
    """
    rows = [(names.index(name), *_slot(name, i, slot)) for name, held in slots.items() for i, slot in enumerate(held)]
    columns = np.asarray(rows + [(-1, 3, 7)] * padding, np.int32).T
    return PackedInputs(*(jnp.asarray(np.tile(column, (batch, 1))) for column in columns))


def packed_targets(
    names: Sequence[str], slots: Mapping[str, Sequence], padding: int = 0, batch: int = 2
) -> PackedTargets:
    """Targets as of `packed_inputs`: (position, label) of tokens, (token before, label) of a sequence."""
    rows = []
    for name, held in slots.items():
        for i, (first, label) in enumerate(held):
            place = (first, 0) if STREAMS[name].is_image else (i, first)
            rows.append((names.index(name), *place, label))
    columns = np.asarray(rows + [(-1, 2, 5, 1)] * padding, np.int32).T
    return PackedTargets(*(jnp.asarray(np.tile(column, (batch, 1))) for column in columns))


def _slot(name: str, rank: int, slot) -> tuple[int, int]:
    if STREAMS[name].kind == "pixels":
        return slot, 0
    return slot if STREAMS[name].is_image else (rank, slot)
