"""TerraMind's pretraining task: name hidden tokens, given pixels and tokens of any modality (paper, section 4; 4M)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from data_pipelines.recipes.spec import ArraySpec, check_batch
from terra_jax.errors import ConfigError
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.packing import PackedInputs, PackedTargets
from terra_jax.terramind.streams import STREAMS
from terra_jax.terramind.tokenizer_objective import cut_images
from terra_jax.terramind.variants import Variant
from terra_jax.training.objective import Bind, Params, PyTree

LOSSES = ("mod", "token")


class Trained(nnx.Module):
    """What is trained: the public model and nothing else."""

    def __init__(self, model: EncoderDecoder):
        self.model = model


@dataclass(frozen=True)
class PretrainingObjective:
    """Cross-entropy of hidden tokens.

    Attributes:
        variant: sizes of the model.
        batch_spec: what a batch holds (`data_pipelines.recipes.terramind`).
        inputs, outputs: the model's streams; packed slots number them in this order.
        size: pixels per side of the images that crops are resized to.
        loss_kind: how streams are weighed: "mod": all alike, whatever the number of their targets; those without any in
            a batch count 0. "token": by targets times vocabulary, a way of 4M's.
        model_options: further arguments of the model (remat, dtype ...).

    Raises:
        ConfigError: an unknown kind of loss.
    """

    variant: Variant
    batch_spec: Mapping[str, ArraySpec]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size: int
    loss_kind: str = "mod"
    model_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss_kind not in LOSSES:
            raise ConfigError(f"objective.loss={self.loss_kind!r} is unknown; choose {' or '.join(LOSSES)}")

    @property
    def frozen(self) -> dict[str, int]:
        """Everything is trained from the first step on."""
        return {}

    def build(self, rngs: nnx.Rngs) -> Trained:
        """The encoder-decoder with random parameters."""
        model = EncoderDecoder(self.variant, rngs=rngs, inputs=self.inputs, outputs=self.outputs, **self.model_options)
        return Trained(model)

    def extra(self, params: Params) -> PyTree:
        """Nothing rides along: a running mean of the weights hurts, the paper says."""
        return {}

    def loss(self, bind: Bind, params: Params, extra: PyTree, batch, key, step):
        """Mean cross-entropy over streams (or tokens), and each stream's own."""
        check_batch(batch, self.batch_spec, (batch["boxes"].shape[0],))
        model: EncoderDecoder = bind(params).model
        decoded, targets = decode_batch(model, batch, self.size)
        asked = jax.nn.one_hot(targets.stream, len(self.outputs))  # nothing for empty slots
        counts = asked.sum((0, 1))
        total, losses = model.token_loss(decoded, targets, asked @ stream_weights(counts, self.outputs, self.loss_kind))
        means = jnp.einsum("bm,bms->s", losses, asked) / counts  # NaN where a stream has no target
        return total, ({}, {f"loss/{name}": means[i] for i, name in enumerate(self.outputs)})

    def after_update(self, extra: PyTree, params: Params, tally: PyTree, step) -> PyTree:
        """Nothing rides along."""
        return {}


def stream_weights(counts: Float[Array, " s"], outputs: Sequence[str], kind: str) -> Float[Array, " s"]:
    """What a target of each stream counts in the loss.

    Args:
        counts: targets of each stream in the batch.
        outputs: names of the streams.
        kind: a word of `LOSSES`.
    """
    if kind == "mod":
        return 1 / (len(outputs) * jnp.maximum(counts, 1))
    vocabularies = jnp.asarray([float(STREAMS[name].vocabulary) for name in outputs])
    return vocabularies / jnp.maximum((counts * vocabularies).sum(), 1)


def decode_batch(
    model: EncoderDecoder, batch: Mapping[str, Array], size: int
) -> tuple[Float[Array, "b m d"], PackedTargets]:
    """The decoder's tokens for the targets of a batch, and the targets.

    Args:
        model: with the streams that the batch numbers.
        batch: as `data_pipelines.recipes.terramind` makes it.
        size: pixels per side of the images.
    """
    inputs, targets = packed(batch)
    images = {name: cut_images(batch, name, size) for name in pixel_streams(model.inputs)}
    grid = (size // model.variant.patch,) * 2
    context = model.encode(inputs, model.standardise(images), grid)
    return model.decode(context, targets), targets


def packed(batch: Mapping[str, Int[Array, "b n"]]) -> tuple[PackedInputs, PackedTargets]:
    """The slots of a batch."""
    inputs = PackedInputs(*(batch[f"inputs/{name}"] for name in ("stream", "position", "token")))
    return inputs, PackedTargets(*(batch[f"targets/{name}"] for name in ("stream", "position", "token", "label")))


def pixel_streams(inputs: Sequence[str]) -> tuple[str, ...]:
    """Those of the streams that are made of pixels; each is named as its modality."""
    return tuple(name for name in inputs if STREAMS[name].kind == "pixels")
