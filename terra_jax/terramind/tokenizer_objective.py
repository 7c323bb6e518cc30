"""The tokenizers' pretraining task: an image through its tokens and back (paper, section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from data_pipelines.modalities import Unit, modality
from data_pipelines.recipes.spec import ArraySpec, check_batch
from terra_jax.nn.diffusion import noised
from terra_jax.nn.resizing import band_order, crop_resize
from terra_jax.selfsupervised.distillation import ema
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.variants import TokenizerVariant
from terra_jax.training.objective import Bind, Params, PyTree


class Trained(nnx.Module):
    """What is trained: the public tokenizer and nothing else."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer


@dataclass(frozen=True)
class TokenizerObjective:
    """Encode, quantise, and decode: denoise an image given its codes, or name the class of every pixel.

    Attributes:
        variant: sizes of the tokenizer.
        batch_spec: what a batch holds (`data_pipelines.recipes.tokenizer`).
        sizes: pixels per side of the network's input; where there are several, every (micro-)batch draws one.
        ema_momentum: of the running mean of the parameters that is kept beside them; 0 keeps none.
        spread: weight of `spread_loss`; 0 leaves the latents to themselves, as published.
        tokenizer_options: further arguments of the tokenizer (remat, dtype ...).
    """

    variant: TokenizerVariant
    batch_spec: Mapping[str, ArraySpec]
    sizes: tuple[int, ...]
    ema_momentum: float = 0.0
    spread: float = 0.0
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frozen(self) -> dict[str, int]:
        """Everything is trained from the first step on."""
        return {}

    def build(self, rngs: nnx.Rngs) -> Trained:
        """The tokenizer with random parameters."""
        return Trained(Tokenizer(self.variant, rngs=rngs, **self.tokenizer_options))

    def extra(self, params: Params) -> PyTree:
        """The running mean, equal to the parameters at first."""
        return {"ema": jax.tree.map(jnp.copy, params)} if self.ema_momentum else {}

    def loss(self, bind: Bind, params: Params, extra: PyTree, batch, key, step):
        """Mean squared error of the denoised image, or cross-entropy of the pixels' classes."""
        check_batch(batch, self.batch_spec, (batch["boxes"].shape[0],))
        key, size_key = jax.random.split(key)
        at_size = [partial(self._loss, bind, size) for size in self.sizes]
        which = jax.random.randint(size_key, (), 0, len(self.sizes))
        loss, perplexity = jax.lax.switch(which, at_size, params, batch, key)
        return loss, ({}, {"code_perplexity": perplexity})

    def after_update(self, extra: PyTree, params: Params, tally: PyTree, step) -> PyTree:
        """Move the running mean."""
        return {"ema": ema(extra["ema"], params, self.ema_momentum)} if self.ema_momentum else {}

    def _loss(
        self, bind: Bind, size: int, params: Params, batch: Mapping[str, Array], key
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Loss at one size of images, and the perplexity of the batch's tokens."""
        tokenizer: Tokenizer = bind(params).tokenizer
        images = cut_images(batch, self.variant.modality, size)
        clean = tokenizer.standardise(images)
        latents = tokenizer.latents(clean, normalised=True)
        codes, ids = tokenizer.quantise(latents)
        if self.variant.kind == "diffusion":
            noisy, t = noised(clean, key)
            loss = jnp.square(tokenizer.denoise(noisy, t, codes) - clean).mean()
        else:
            loss = optax.softmax_cross_entropy(tokenizer.logits(codes), clean).mean()  # clean is one-hot
        if self.spread:
            loss += self.spread * spread_loss(latents)
        return loss, perplexity(ids, self.variant.codebook)


def cut_images(batch: Mapping[str, Array], name: str, size: int) -> Num[Array, "n size size ..."]:
    """Cut, flip and resize the tiles of a batch.

    Args:
        batch: as `data_pipelines.recipes.tokenizer` makes it.
        name: modality.
        size: pixels per side of an image.

    Returns:
        Images in physical units, channels last, all views of one tile next to each other; class ids of int32 without
        channels.
    """
    table = modality(name)
    is_classes = table.unit is Unit.CLASS
    grids = {gsd: batch[f"{name}/{gsd}"] for gsd in table.grids}
    order = band_order(name, tuple(grids), table.band_names)
    views = crop_resize(grids, batch["boxes"], size, order, batch["flips"], nearest=is_classes)
    images = views.reshape(-1, *views.shape[2:])
    return images[..., 0].astype(jnp.int32) if is_classes else images


def spread_loss(latents: Float[Array, "b h w k"]) -> Float[Array, ""]:
    """How far the images of a batch are from filling the codebook at every position of a token.

    A logistic distribution, whose variance is pi^2 / 3, has a uniform sigmoid. Means over images are wanted at 0,
    variances there, and no correlations: all dimensions would otherwise follow the brightness of a patch and saturate.
    Statistics are taken position by position, or a code would tell where a token is, which fills the book as well and
    says nothing of the image. Near 0 where the book is filled evenly, to second order, by many images.
    """
    z = latents / (jnp.pi / jnp.sqrt(3.0))
    mean = z.mean(0)
    covariance = jnp.einsum("bhwi,bhwj->ij", z - mean, z - mean) / (max(len(z) - 1, 1) * mean.shape[0] * mean.shape[1])
    return jnp.square(mean).mean() + jnp.square(covariance - jnp.eye(len(covariance))).mean()


def perplexity(ids: Int[Array, "..."], size: int) -> Float[Array, ""]:
    """exp of the entropy of tokens from a codebook of `size`."""
    counts = jnp.bincount(ids.reshape(-1), length=size)
    return jnp.exp(jax.scipy.special.entr(counts / ids.size).sum())
