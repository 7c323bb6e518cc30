"""Self-distillation without labels: cross-entropy over pairs of views, centring, EMA teacher, schedules."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def cross_entropy_of_views(
    teacher: Float[Array, "b t k"],
    student: Float[Array, "b s k"],
    pairs: Bool[Array, "t s"],
    temperature: float,
) -> Float[Array, ""]:
    """Mean over the chosen pairs of views and the batch of -sum_k p_t log p_s (DINO, eq. 3).

    Args:
        teacher: probabilities per teacher view.
        student: logits per student view.
        pairs: which (teacher view, student view) are compared.
        temperature: of the student's softmax.
    """
    logits = student / temperature
    # log p_s = logits - logsumexp, and p_t sums to one: the k-sized log-probabilities are never stored.
    similarity = jnp.einsum("btk,bsk->bts", teacher, logits, preferred_element_type=jnp.float32)
    loss = jax.nn.logsumexp(logits, axis=-1)[:, None, :] - similarity
    return (loss.mean(0) * pairs).sum() / pairs.sum()


def cross_entropy(
    targets: Float[Array, "*b k"], logits: Float[Array, "*b k"], temperature: float
) -> Float[Array, "*b"]:
    """-sum_k p_k log q_k of each row.

    Args:
        targets: probabilities p.
        logits: q is their softmax.
        temperature: of that softmax.
    """
    logits = logits / temperature
    return jax.nn.logsumexp(logits, axis=-1) - (targets * logits).sum(-1)


def centred(
    logits: Float[Array, "*b k"], centre: Float[Array, " k"], temperature: Float[Array, ""] | float
) -> Float[Array, "*b k"]:
    """Teacher probabilities, softmax((z - c) / tau) (DINO).

    Args:
        logits: raw teacher logits z.
        centre: their running mean c.
        temperature: tau.
    """
    return jax.nn.softmax((logits - centre) / temperature, axis=-1)


def dual_centred(
    logits: Float[Array, "*b k"],
    centre: Float[Array, " k"],
    frequent_centre: Float[Array, " k"],
    alpha: float,
    temperature: Float[Array, ""],
) -> Float[Array, "*b k"]:
    """Teacher probabilities, softmax((z - alpha c - (1 - alpha) c_h) / tau) (TerraFM, dual centring).

    Args:
        logits: raw teacher logits z.
        centre: running mean c over all examples.
        frequent_centre: running mean c_h over examples of frequent land-cover classes.
        alpha: weight of the first; 1 is DINO.
        temperature: tau.
    """
    return jax.nn.softmax((logits - alpha * centre - (1 - alpha) * frequent_centre) / temperature, axis=-1)


def update_centre(
    centre: Float[Array, " k"], total: Float[Array, " k"], count: Float[Array, ""], momentum: float
) -> Float[Array, " k"]:
    """Exponential running mean; with nothing counted the centre stays as it is.

    Args:
        centre: present value.
        total, count: sum of logits and number of rows over the whole batch, all devices: divided once.
        momentum: share of the present value that stays.
    """
    mean = total / jnp.maximum(count, 1)
    return jnp.where(count > 0, momentum * centre + (1 - momentum) * mean, centre)


def ema(average, current, momentum: Float[Array, ""] | float):
    """theta_t <- m theta_t + (1 - m) theta_s, leaf by leaf."""
    return jax.tree.map(lambda a, c: momentum * a + (1 - momentum) * c, average, current)


def entropy(probabilities: Float[Array, "*b k"]) -> Float[Array, ""]:
    """Mean entropy in nats."""
    return -jax.scipy.special.xlogy(probabilities, probabilities).sum(-1).mean()
