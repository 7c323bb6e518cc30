"""TerraFM's pretraining task: self-distillation over crops and modalities with dual centring (paper, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from data_pipelines.modalities import modality
from data_pipelines.recipes.spec import ArraySpec, check_batch
from terra_jax.nn.resizing import band_order, crop_resize
from terra_jax.selfsupervised.distillation import (
    cross_entropy_of_views,
    dual_centred,
    ema,
    entropy,
    update_centre,
)
from terra_jax.selfsupervised.heads import ProjectionHead
from terra_jax.terrafm.model import STEMS, TerraFM, input_bands
from terra_jax.terrafm.variants import Variant
from terra_jax.training.objective import Bind, Params, PyTree
from terra_jax.training.schedules import cosine_ramp, linear_ramp

GLOBAL_VIEWS = 2


class Student(nnx.Module):
    """What is trained: the public encoder and a projection head."""

    def __init__(self, encoder: TerraFM, head: ProjectionHead):
        self.encoder = encoder
        self.head = head


@dataclass(frozen=True)
class TerraFMObjective:
    """Student and teacher see different crops and modalities of a place and must agree.

    Attributes:
        variant: sizes of the encoder.
        batch_spec: what a batch holds (`data_pipelines.recipes.terrafm`).
        modalities: what views are drawn from, in the order of the batch's masks.
        global_size, local_size: pixels per side of the views.
        prototypes: K, outputs of the projection head.
        head_hidden, head_bottleneck: widths of the projection head.
        alpha: weight of the global centre in dual centring; 1 is DINO.
        centre_momentum: of both centres.
        student_temperature: of the student's softmax.
        teacher_temperature: first and last value, reached linearly after `teacher_temperature_steps`.
        teacher_momentum: first value; rises to 1 along a cosine over `steps`.
        same_view: whether a global crop is also compared with itself: student and teacher may see other modalities.
        steps: length of the run.
        frozen_head_steps: first steps in which the prototypes are not updated.
        statistics: statistics set that standardises the views.
        encoder_options: further arguments of the encoder (drop path, remat, dtype ...).
    """

    variant: Variant
    batch_spec: Mapping[str, ArraySpec]
    modalities: tuple[str, ...]
    global_size: int
    local_size: int
    prototypes: int
    steps: int
    head_hidden: int = 2048
    head_bottleneck: int = 256
    alpha: float = 0.8
    centre_momentum: float = 0.9
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.06)
    teacher_temperature_steps: int = 0
    teacher_momentum: float = 0.996
    same_view: bool = False
    frozen_head_steps: int = 0
    statistics: str = "ssl4eo_s12"
    encoder_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frozen(self) -> dict[str, int]:
        """The prototypes rest at first, so that the encoder does not chase them while they are random (DINO)."""
        return {"head/prototypes": self.frozen_head_steps} if self.frozen_head_steps else {}

    def build(self, rngs: nnx.Rngs) -> Student:
        """Encoder and head with random parameters."""
        encoder = TerraFM(self.variant, rngs=rngs, statistics=self.statistics, **self.encoder_options)
        head = ProjectionHead(
            self.variant.width,
            self.prototypes,
            rngs=rngs,
            hidden=self.head_hidden,
            bottleneck=self.head_bottleneck,
            dtype=self.encoder_options.get("dtype", jnp.float32),
        )
        return Student(encoder, head)

    def extra(self, params: Params) -> PyTree:
        """The teacher, equal to the student at first, and both centres."""
        centre = jnp.zeros(self.prototypes)
        return {"teacher": jax.tree.map(jnp.copy, params), "centre": centre, "frequent_centre": jnp.zeros_like(centre)}

    def loss(self, bind: Bind, params: Params, extra: PyTree, batch, key, step):
        """Cross-entropy between views; the tally holds sums of raw teacher logits for the centres."""
        examples = batch["boxes"].shape[0]
        check_batch(batch, self.batch_spec, (examples,))
        student, teacher = bind(params), bind(extra["teacher"])
        boxes, masks = batch["boxes"], batch["student_modalities"]
        keys = jax.random.split(key)

        global_views = self.views(batch, boxes[:, :GLOBAL_VIEWS], self.global_size)
        teacher_logits = self._logits(teacher, global_views, batch["teacher_modalities"], None)
        student_logits = [self._logits(student, global_views, masks[:, :GLOBAL_VIEWS], keys[0])]
        if boxes.shape[1] > GLOBAL_VIEWS:
            local_views = self.views(batch, boxes[:, GLOBAL_VIEWS:], self.local_size)
            student_logits.append(self._logits(student, local_views, masks[:, GLOBAL_VIEWS:], keys[1]))

        teacher_logits = jax.lax.stop_gradient(teacher_logits)
        temperature = linear_ramp(step, *self.teacher_temperature, self.teacher_temperature_steps)
        targets = dual_centred(teacher_logits, extra["centre"], extra["frequent_centre"], self.alpha, temperature)
        loss = cross_entropy_of_views(
            targets,
            jnp.concatenate(student_logits, axis=1),
            jnp.asarray(self._pairs(boxes.shape[1])),
            self.student_temperature,
        )
        frequent = batch["frequent"].astype(jnp.float32)
        tally = {
            "logits": teacher_logits.sum((0, 1)),
            "count": jnp.float32(GLOBAL_VIEWS * examples),
            "frequent_logits": jnp.einsum("b,btk->k", frequent, teacher_logits),
            "frequent_count": GLOBAL_VIEWS * frequent.sum(),
        }
        metrics = {
            "teacher_entropy": entropy(targets),
            "prototype_entropy": entropy(targets.mean((0, 1))),  # low: few prototypes serve all, a collapse
            "frequent_share": frequent.mean(),
            "centre_norm": jnp.linalg.norm(extra["centre"]),
            "frequent_centre_norm": jnp.linalg.norm(extra["frequent_centre"]),
        }
        return loss, (tally, metrics)

    def after_update(self, extra: PyTree, params: Params, tally: PyTree, step) -> PyTree:
        """Move the teacher and both centres."""
        momentum = cosine_ramp(step, self.teacher_momentum, 1.0, self.steps)
        m = self.centre_momentum
        return {
            "teacher": ema(extra["teacher"], params, momentum),
            "centre": update_centre(extra["centre"], tally["logits"], tally["count"], m),
            "frequent_centre": update_centre(
                extra["frequent_centre"], tally["frequent_logits"], tally["frequent_count"], m
            ),
        }

    def views(
        self, batch: Mapping[str, Array], boxes: Float[Array, "b v 4"], size: int
    ) -> dict[str, Float[Array, "bv h w c"]]:
        """Stem name -> standardised views of every tile, views of one tile next to each other."""
        return standardised_views(batch, boxes, size, self.modalities, self.statistics)

    def _logits(self, module: Student, views, masks: Bool[Array, "b v m"], key) -> Float[Array, "b v k"]:
        present = {STEMS[name]: masks[..., i].reshape(-1) for i, name in enumerate(self.modalities)}
        tokens = module.encoder.encode(views, present if len(self.modalities) > 1 else None, key)
        return module.head(tokens[:, 0]).reshape(*masks.shape[:2], -1)

    def _pairs(self, views: int) -> np.ndarray:
        """(teacher view, student view): all pairs but, unless `same_view`, those of one crop with itself."""
        pairs = np.ones((GLOBAL_VIEWS, views), bool)
        if not self.same_view:
            np.fill_diagonal(pairs, False)
        return pairs


def standardised_views(
    batch: Mapping[str, Array], boxes: Float[Array, "b v 4"], size: int, modalities: Sequence[str], statistics: str
) -> dict[str, Float[Array, "bv h w c"]]:
    """Cut, resize and standardise the tiles of a batch.

    Args:
        batch: arrays "MODALITY/GSD" (b, band, y, x) as `data_pipelines.recipes.tiles.tile_spec` names them.
        boxes: (top, left, height, width) per tile and view, 10 m pixels.
        size: pixels per side of a view.
        modalities: which to take; stems are named in this order.
        statistics: statistics set of the modality table.
    """
    images = {}
    for name in modalities:
        bands = input_bands(name)
        grids = {gsd: batch[f"{name}/{gsd}"] for gsd in modality(name).grids}
        views = crop_resize(grids, boxes, size, band_order(name, tuple(grids), bands))
        mean, std = modality(name).statistics_for(statistics, bands)
        images[STEMS[name]] = ((views - mean) / std).reshape(-1, size, size, len(bands))
    return images
