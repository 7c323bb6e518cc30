"""Balanced soft assignment by Sinkhorn-Knopp, and the clustering of an image's pixels that rests on it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from terra_jax.selfsupervised.heads import inverse_norm


def cosine_similarity(a: Float[Array, "*b n d"], b: Float[Array, "*b k d"]) -> Float[Array, "*b n k"]:
    """Cosine of the angle between every row of `a` and every row of `b`, float32."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum("...nd,...kd->...nk", a * inverse_norm(a, axis=-1), b * inverse_norm(b, axis=-1))


def sinkhorn(
    scores: Float[Array, "*b n k"],
    *,
    epsilon: float,
    iterations: int,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n k"]:
    """Spread n rows over k columns by their scores so that every column gets the same share (Cuturi 2013; SwAV).

    The plan exp(scores / epsilon) is scaled to its marginals in turn, in logarithms, columns first: whatever the number
    of iterations, a row sums to its own mass exactly; columns approach 1 / k. No gradient flows through it.

    Args:
        scores: similarity of each row to each column.
        epsilon: temperature; small values assign nearly hard.
        iterations: rounds of scaling.
        weights: how much each row counts, >= 0 (None: all alike). Rows of weight 0 have no influence and get zeros;
            where all weigh 0 the whole plan is 0.

    Returns:
        Mass in each cell; all of it sums to 1.
    """
    scores = jax.lax.stop_gradient(scores).astype(jnp.float32) / epsilon
    rows, columns = scores.shape[-2:]
    weights = jnp.ones(scores.shape[:-1]) if weights is None else weights.astype(jnp.float32)
    total = weights.sum(-1, keepdims=True)
    # An empty image is assigned as if all its rows counted, and the result thrown away: no logarithm of 0 / 0.
    mass = jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 1.0 / rows)
    log_mass = jnp.log(mass)

    def scale(_: int, of_row: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        return log_mass - jax.nn.logsumexp(scores + balance(of_row), axis=-1)

    def balance(of_row: Float[Array, "*b n"]) -> Float[Array, "*b 1 k"]:
        """Factor of each column, in logarithms, that gives all columns the same mass."""
        return -jnp.log(columns) - jax.nn.logsumexp(scores + of_row[..., None], axis=-2, keepdims=True)

    of_row = jax.lax.fori_loop(0, iterations - 1, scale, log_mass)
    plan = mass[..., None] * jax.nn.softmax(scores + balance(of_row), axis=-1)
    return jnp.where(total[..., None] > 0, plan, 0.0)


def column_means(plan: Float[Array, "*b n k"], features: Float[Array, "*b n d"]) -> Float[Array, "*b k d"]:
    """Mean of the rows' features in each column, weighted by the plan: its columns are scaled to sum to one."""
    share = plan / jnp.maximum(plan.sum(-2, keepdims=True), 1e-12)
    return jnp.einsum("...nk,...nd->...kd", share.astype(features.dtype), features)


def cluster(
    features: Float[Array, "*b n d"],
    clusters: int,
    *,
    epsilon: float,
    iterations: int,
    rounds: int,
    weights: Float[Array, "*b n"] | None = None,
) -> Float[Array, "*b n k"]:
    """Assign the pixels of one image to `clusters` centres of equal mass.

    Centres start as the means of equally many pixels each, taken in raster order; every round assigns the pixels by
    cosine similarity and takes the centres anew. Neither draws random numbers nor lets a gradient through.

    Args:
        features: of the pixels, in raster order.
        clusters: number of centres.
        epsilon, iterations: of `sinkhorn`.
        rounds: assignments made, one at least.
        weights: how much each pixel counts, 0 for those that do not (None: all alike).

    Returns:
        The last assignment, as `sinkhorn` gives it.
    """
    features = jax.lax.stop_gradient(features)
    weights = jnp.ones(features.shape[:-1]) if weights is None else weights.astype(jnp.float32)
    before = jnp.cumsum(weights, axis=-1) - weights
    total = jnp.maximum(weights.sum(-1, keepdims=True), 1e-12)
    first = jnp.clip(jnp.floor(before / total * clusters + 1e-4).astype(jnp.int32), 0, clusters - 1)

    def again(_: int, plan: Float[Array, "*b n k"]) -> Float[Array, "*b n k"]:
        similarity = cosine_similarity(features, column_means(plan, features))
        return sinkhorn(similarity, epsilon=epsilon, iterations=iterations, weights=weights)

    return jax.lax.fori_loop(0, rounds, again, jax.nn.one_hot(first, clusters) * weights[..., None])
