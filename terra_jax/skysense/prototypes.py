"""Geo-context prototypes: what the ground of a region looks like, learned without labels or gradients (section 3.4).

Each region of the globe has its own few prototypes. The pixels of a sample are spread over those of its region by
Sinkhorn-Knopp, so that no prototype is left over, and each moves towards the mean of its pixels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from terra_jax.selfsupervised.sinkhorn import column_means, cosine_similarity, sinkhorn

AXES = ("regions", "tokens", "head_dim")
"""Logical names of the table's dimensions: its rows are spread over the mesh."""

Tally = dict[str, Array]
"""Per region, sums over examples: "sum" (regions, p, d) of the examples' means, "count" (regions) of examples."""


def initial(regions: int, prototypes: int, width: int, seed: int) -> Float[Array, "regions p d"]:
    """Random prototypes with entries of unit variance, the scale of normalised features.

    Args:
        regions, prototypes: number of regions, and of prototypes in each.
        width: d of a prototype.
        seed: of the draw.
    """
    return jax.random.normal(jax.random.fold_in(jax.random.key(seed), regions), (regions, prototypes, width))


def gather(table: Float[Array, "regions p d"], region: Int[Array, " b"]) -> Float[Array, "b p d"]:
    """Prototypes of each example's region, constant to the loss."""
    return jax.lax.stop_gradient(table[region])


def pixel_means(
    features: Float[Array, "b n d"], prototypes: Float[Array, "b p d"], *, epsilon: float, iterations: int
) -> Float[Array, "b p d"]:
    """Mean feature of the pixels that Sinkhorn-Knopp assigns to each prototype, example by example.

    Args:
        features: of an example's pixels.
        prototypes: of its region.
        epsilon, iterations: of the assignment.
    """
    features = jax.lax.stop_gradient(features).astype(jnp.float32)
    plan = sinkhorn(cosine_similarity(features, prototypes), epsilon=epsilon, iterations=iterations)
    return column_means(plan, features)


def tally(means: Float[Array, "b p d"], region: Int[Array, " b"], regions: int) -> Tally:
    """Sum the examples' means by region."""
    return {
        "sum": jax.ops.segment_sum(means, region, regions),
        "count": jax.ops.segment_sum(jnp.ones(len(region)), region, regions),
    }


def moved(table: Float[Array, "regions p d"], counted: Tally, momentum: float) -> Float[Array, "regions p d"]:
    """P_r <- m P_r + (1 - m) mean of the region's examples; regions without examples stay as they are."""
    count = counted["count"][:, None, None]
    means = counted["sum"] / jnp.maximum(count, 1)
    return jnp.where(count > 0, momentum * table + (1 - momentum) * means, table)
