"""What SkySense trains beside the public model: projection heads, alignment projections, geo-context projections."""

from collections.abc import Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from terra_jax.errors import ConfigError
from terra_jax.nn.linear import Linear
from terra_jax.parallel.activations import split_examples
from terra_jax.selfsupervised.heads import ProjectionHead, inverse_norm
from terra_jax.skysense.geo_context import GeoContextProjections
from terra_jax.skysense.model import SkySense

FUSED = "fused"
"""Name of the fused features among the feature spaces; the others are modalities."""

LEVELS = ("pixel", "object", "image")
SHARING = ("level", "space")
"""Option -> which features share a head: those of one level of one space, or all levels of a space."""


class Heads(nnx.Module):
    """A projection head for each feature space and level, or one for all levels of a space.

    Args:
        widths: feature space (modality or "fused") -> width of its features.
        outputs: level -> prototypes of its heads.
        sharing: a word of `SHARING`.
        hidden, bottleneck: widths of the heads.
        rngs: source of the initial values.
        dtype: compute dtype.

    Raises:
        ConfigError: an unknown way of sharing, or a shared head whose levels want different outputs.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        outputs: Mapping[str, int],
        *,
        sharing: str,
        hidden: int,
        bottleneck: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        if sharing not in SHARING:
            raise ConfigError(f"unknown objective.head_per={sharing!r}; choose {' or '.join(SHARING)}")
        if sharing == "space" and len(set(outputs.values())) > 1:
            raise ConfigError(f"objective.head_per=space wants equal outputs on all levels, not {dict(outputs)}")
        self.sharing = sharing
        head = partial(ProjectionHead, rngs=rngs, hidden=hidden, bottleneck=bottleneck, dtype=dtype)
        for space, width in widths.items():
            for level, count in outputs.items():
                if not hasattr(self, self._name(space, level)):
                    setattr(self, self._name(space, level), head(width, count))

    def __call__(self, space: str, level: str, features: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        """Logits of a level's features."""
        return getattr(self, self._name(space, level))(features)

    def _name(self, space: str, level: str) -> str:
        return f"{space}_{level}".lower() if self.sharing == "level" else space.lower()


class Alignment(nnx.Module):
    """A linear map of each modality to the space in which modalities of one place are to agree."""

    def __init__(
        self,
        modalities: Iterable[str],
        aligned: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        for name in modalities:
            setattr(self, name.lower(), Linear({"embed": aligned}, {"bottleneck": width}, rngs=rngs, dtype=dtype))

    def __call__(self, name: str, features: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        """Unit vectors of a modality's features, float32."""
        x = getattr(self, name.lower())(features).astype(jnp.float32)
        return x * inverse_norm(x, axis=-1)


class Student(nnx.Module):
    """What is trained: the public model as `encoder`, and what only training needs."""

    def __init__(
        self,
        encoder: SkySense,
        heads: Heads,
        alignment: Alignment,
        geo_context: GeoContextProjections | None,
    ):
        self.encoder = encoder
        self.heads = heads
        self.alignment = alignment
        self.geo_context = geo_context


def in_prototype_space(fused: Float[Array, "*b f"], projections: GeoContextProjections | None) -> Float[Array, "*b d"]:
    """What the attention compares the prototypes with: the features, or the queries seen through the key's map.

    Its inner product with a prototype is their score in the attention, so that prototypes of any width are learned
    from the features that will look them up.
    """
    if projections is None:
        return fused
    query = projections.query(fused)
    return split_examples(jnp.einsum("...c,dc->...d", query, projections.key.kernel[...].astype(query.dtype)))


def info_nce(
    first: Float[Array, "b v d"],
    second: Float[Array, "b v d"],
    both: Float[Array, " b"],
    temperature: float,
) -> Float[Array, ""]:
    """Cross-entropy of finding the same place among all places of the batch, from either side (InfoNCE).

    Args:
        first, second: unit vectors of two modalities, per example and view.
        both: 1 for examples that have both modalities, 0 for those that neither ask nor answer.
        temperature: of the softmax.
    """
    similarity = jnp.einsum("bvd,cvd->vbc", first, second, preferred_element_type=jnp.float32) / temperature
    known = both > 0
    hits = jnp.diagonal(similarity, axis1=1, axis2=2)
    loss = jnp.zeros(())
    for scores in (similarity, similarity.swapaxes(1, 2)):
        among = jax.nn.logsumexp(jnp.where(known, scores, -1e9), axis=-1)
        loss += jnp.where(known, among - hits, 0.0).mean(0).sum() / jnp.maximum(known.sum(), 1)
    return loss
