"""Attentive geo-context integration (paper, section 3.4): fused features look up the prototypes of their region."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from terra_jax.errors import ConfigError
from terra_jax.nn.linear import Linear


class GeoContextProjections(nnx.Module):
    """Learned maps between fused features and prototypes of another width.

    The paper gives none. With 512-wide prototypes its 215 M parameters leave room for maps to and from the fused
    width, of which these are the four of an attention; they are needed wherever the two widths differ.

    Args:
        width: of the fused features.
        prototype_width: of the prototypes.
        rngs: source of the initial values.
        dtype: compute dtype.
    """

    def __init__(self, width: int, prototype_width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        inner = {"context": width}
        self.query = Linear({"embed": width}, inner, rngs=rngs, dtype=dtype)
        self.key = Linear({"prototype": prototype_width}, inner, rngs=rngs, dtype=dtype)
        self.value = Linear({"prototype": prototype_width}, inner, rngs=rngs, dtype=dtype)
        self.out = Linear(inner, {"embed": width}, rngs=rngs, dtype=dtype)


def attend_prototypes(
    fused: Float[Array, "b h w f"],
    prototypes: Float[Array, "b p d"],
    projections: GeoContextProjections | None = None,
) -> Float[Array, "b h w 2f"]:
    """Concatenate each feature with softmax(Q K^T / sqrt(d)) V over the prototypes of its sample's region.

    Args:
        fused: features of the fusion, the queries.
        prototypes: those of each sample's region, keys and values; no gradient reaches them.
        projections: maps for prototypes of another width.

    Raises:
        ConfigError: prototypes of another width without projections.
    """
    prototypes = jax.lax.stop_gradient(prototypes).astype(fused.dtype)
    query, key, value = fused, prototypes, prototypes
    if projections is not None:
        query, key, value = projections.query(fused), projections.key(prototypes), projections.value(prototypes)
    elif fused.shape[-1] != prototypes.shape[-1]:
        raise ConfigError(
            f"features of width {fused.shape[-1]} cannot look up prototypes of width {prototypes.shape[-1]}; "
            "give projections"
        )
    scores = jnp.einsum("bhwd,bpd->bhwp", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    context = jnp.einsum("bhwp,bpd->bhwd", jax.nn.softmax(scores).astype(value.dtype), value)
    return jnp.concatenate([fused, context if projections is None else projections.out(context)], axis=-1)
