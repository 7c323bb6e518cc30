"""Multi-granularity contrast (paper, section 3.3): teacher and student agree on pixels, objects and whole images.

Both see series of maps of different crops. Pixels are compared where they show the same ground; objects are the
clusters of the pixels that both views show, one assignment for both; images are means over their own crops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from terra_jax.selfsupervised.distillation import centred, cross_entropy, entropy
from terra_jax.selfsupervised.overlap import overlap
from terra_jax.selfsupervised.sinkhorn import cluster, column_means

Head = Callable[[Float[Array, "*b c"]], Float[Array, "*b k"]]


class Views(NamedTuple):
    """Series of feature maps of some views of every example.

    Attributes:
        maps: (b, v, t, h, w, c).
        shown: (b, v, t) frames that count.
        boxes: (b, v, 4) top, left, height, width of what they show.
        flips: (b, v, 2) whether they are mirrored vertically, horizontally.
    """

    maps: Float[Array, "b v t h w c"]
    shown: Bool[Array, "b v t"]
    boxes: Float[Array, "b v 4"]
    flips: Bool[Array, "b v 2"]

    def take(self, views: list[int]) -> "Views":
        """Some of the views, in the order given."""
        return Views(*(array[:, jnp.asarray(views)] for array in self))

    def during(self, frames: slice) -> "Views":
        """Some of the frames."""
        return self._replace(maps=self.maps[:, :, frames], shown=self.shown[:, :, frames])


class Compared(NamedTuple):
    """Features of one level that belong together: `n` of each frame, both sides in one order."""

    student: Float[Array, "b v t n c"]
    teacher: Float[Array, "b v t n c"]
    weight: Float[Array, "b v t n"]

    def during(self, frames: slice) -> "Compared":
        """Those of some frames."""
        return Compared(*(array[:, :, frames] for array in self))


@dataclass(frozen=True)
class Clustering:
    """How pixels become objects.

    Attributes:
        clusters: N_C, objects per image.
        epsilon, iterations: of Sinkhorn-Knopp.
        rounds: how often centres are taken anew.
    """

    clusters: int
    epsilon: float
    iterations: int
    rounds: int


def compare(
    student: Views, teacher: Views, levels: tuple[str, ...], clustering: Clustering
) -> tuple[dict[str, Compared], Float[Array, ""]]:
    """Features of each level for pairs of views, the i-th of the student with the i-th of the teacher.

    Frames are paired in the order of their dates: the i-th of the one sub-series with the i-th of the other.

    Args:
        student, teacher: equally many views of the same examples; the teacher's are constants.
        levels: which of "pixel", "object" and "image" are wanted.
        clustering: of the objects.

    Returns:
        Level -> features, and the mean share of the student's pixels that the teacher shows too.
    """
    both = (student.shown & teacher.shown).astype(jnp.float32)
    here = student.maps.reshape(*student.maps.shape[:3], -1, student.maps.shape[-1])
    (rows, columns), (own_rows, own_columns) = teacher.maps.shape[3:5], student.maps.shape[3:5]
    match = overlap(
        teacher.boxes, teacher.flips, (rows, columns), student.boxes, student.flips, (own_rows, own_columns)
    )
    there = jax.lax.stop_gradient(match.sample(teacher.maps)).reshape(here.shape)
    inside = match.inside.reshape(*match.inside.shape[:2], 1, -1).astype(jnp.float32)
    weight = inside * both[..., None]
    found = {}
    if "pixel" in levels:
        found["pixel"] = Compared(here, there, weight)
    if "object" in levels:
        plan = cluster(
            there,
            clustering.clusters,
            epsilon=clustering.epsilon,
            iterations=clustering.iterations,
            rounds=clustering.rounds,
            weights=weight,
        )
        filled = (plan.sum(-2) > 0).astype(jnp.float32)
        found["object"] = Compared(column_means(plan, here), column_means(plan, there), filled)
    if "image" in levels:
        means = jax.lax.stop_gradient(teacher.maps.mean((3, 4)))
        found["image"] = Compared(student.maps.mean((3, 4))[..., None, :], means[..., None, :], both[..., None])
    return found, inside.mean()


class Contrast(NamedTuple):
    """What comparing one level of one feature space leaves behind.

    Attributes:
        loss: mean over examples and pairs of views of the mean over what is compared.
        logits, number: sum of the raw teacher logits over everything compared, and how much that is.
        teacher_entropy: of the teacher's targets, nats.
        output_entropy: of their mean; low where few outputs serve all, a collapse.
    """

    loss: Float[Array, ""]
    logits: Float[Array, " k"]
    number: Float[Array, ""]
    teacher_entropy: Float[Array, ""]
    output_entropy: Float[Array, ""]


def contrast(
    compared: Compared,
    student_head: Head,
    teacher_head: Head,
    centre: Float[Array, " k"],
    student_temperature: float,
    teacher_temperature: Float[Array, ""],
) -> Contrast:
    """DINO's cross-entropy of the student's logits with the teacher's centred ones (no negatives).

    Args:
        compared: features that belong together.
        student_head, teacher_head: features -> logits.
        centre: running mean of the teacher's logits.
        student_temperature, teacher_temperature: of the softmaxes.
    """
    weight = compared.weight
    logits = jax.lax.stop_gradient(teacher_head(compared.teacher))
    targets = centred(logits, centre, teacher_temperature)
    losses = cross_entropy(targets, student_head(compared.student), student_temperature)
    # Each pair of views counts alike, whatever it shares: then parts of a batch average to the batch.
    mean = (weight * losses).sum((2, 3)) / jnp.maximum(weight.sum((2, 3)), 1e-6)
    total = weight.sum()
    average = jnp.einsum("bvtn,bvtnk->k", weight, targets) / jnp.maximum(total, 1)
    return Contrast(
        mean.mean(),
        jnp.einsum("bvtn,bvtnk->k", weight, logits),
        total,
        entropy(targets),
        entropy(average),
    )
