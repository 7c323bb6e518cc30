"""SkySense's pretraining task: multi-granularity contrast, cross-modal alignment, geo-context prototypes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from data_pipelines.recipes.skysense import GLOBAL_VIEWS
from data_pipelines.recipes.spec import ArraySpec, check_batch
from terra_jax.errors import ConfigError
from terra_jax.selfsupervised.distillation import ema, update_centre
from terra_jax.skysense import prototypes
from terra_jax.skysense.augmentation import Augmentation
from terra_jax.skysense.geo_context import GeoContextProjections, attend_prototypes
from terra_jax.skysense.granularity import Clustering, Compared, Contrast, Views, compare, contrast
from terra_jax.skysense.heads import FUSED, LEVELS, Alignment, Heads, Student, in_prototype_space, info_nce
from terra_jax.skysense.inputs import STATISTICS
from terra_jax.skysense.model import SkySense
from terra_jax.skysense.variants import SkySenseSize
from terra_jax.skysense.views import cut_views
from terra_jax.training.objective import Bind, Params, PyTree
from terra_jax.training.schedules import cosine_ramp, linear_ramp

ALIGNED = "aligned"
"""Name of the aligned maps of all modalities together; they share boxes, so that they are compared together."""


@dataclass(frozen=True)
class SkySenseObjective:
    """Student and teacher see different crops and frames of a place; modalities of a place agree; regions are learned.

    Attributes:
        variant: sizes of the public model.
        batch_spec: what a batch holds (`data_pipelines.recipes.skysense`).
        modalities: that the batch holds.
        global_size, local_size: Sentinel-2 pixels per side of the views.
        steps: length of the run.
        levels: granularities that are contrasted, of "pixel", "object" and "image".
        outputs: level -> prototypes of its heads.
        head_per: "level" or "space": see `heads.Heads`.
        head_hidden, head_bottleneck: widths of the heads.
        clustering: of pixels to objects.
        contrast_weight, alignment_weight: alpha and beta of the total loss.
        alignment_grid: modalities are aligned on the means of views (0), or on this many pixels along their sides.
        alignment_width, alignment_temperature: of the contrast between modalities.
        student_temperature: of the student's softmax.
        teacher_temperature: first and last value, reached linearly after `teacher_temperature_steps`.
        teacher_momentum: first value; rises to 1 along a cosine over `steps`.
        centre_momentum: of the centres.
        modality_dropout: probability with which a modality is hidden from the student's fusion.
        geo_context: whether fused features look up the prototypes of their region.
        regions, region_prototypes, prototype_width: sizes of the table.
        prototype_momentum, prototype_epsilon, prototype_iterations: how prototypes follow their pixels.
        augmentation: of the colours of high-resolution views.
        statistics: statistics set that standardises the views.
        seed: of the first prototypes.
        encoder_options: further arguments of the public model (drop path, remat, dtype ...).
    """

    variant: SkySenseSize
    batch_spec: Mapping[str, ArraySpec]
    modalities: tuple[str, ...]
    global_size: int
    local_size: int
    steps: int
    outputs: Mapping[str, int]
    clustering: Clustering
    levels: tuple[str, ...] = LEVELS
    head_per: str = "level"
    head_hidden: int = 2048
    head_bottleneck: int = 256
    contrast_weight: float = 1.0
    alignment_weight: float = 0.1
    alignment_grid: int = 0
    alignment_width: int = 256
    alignment_temperature: float = 0.1
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    teacher_temperature_steps: int = 0
    teacher_momentum: float = 0.996
    centre_momentum: float = 0.9
    modality_dropout: float = 0.0
    geo_context: bool = True
    regions: int = 4096
    region_prototypes: int = 100
    prototype_width: int = 512
    prototype_momentum: float = 0.99
    prototype_epsilon: float = 0.05
    prototype_iterations: int = 3
    augmentation: Augmentation = field(default_factory=Augmentation)
    statistics: str = STATISTICS
    seed: int = 0
    encoder_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.levels or not set(self.levels) <= set(LEVELS):
            raise ConfigError(f"objective.levels={self.levels} must be some of {', '.join(LEVELS)}")
        if missing := [level for level in self.levels if level not in self.outputs]:
            raise ConfigError(f"objective.outputs lacks {', '.join(missing)}")

    @property
    def frozen(self) -> dict[str, int]:
        """Nothing rests at first."""
        return {}

    @property
    def extra_axes(self) -> dict[str, tuple[str, ...]]:
        """The table of prototypes is spread over the mesh by regions."""
        return {"prototypes": prototypes.AXES} if self.geo_context else {}

    @property
    def spaces(self) -> tuple[str, ...]:
        """Feature spaces that are contrasted: every modality by itself, and the fused features."""
        return (*self.modalities, FUSED)

    def build(self, rngs: nnx.Rngs) -> Student:
        """The public model and what only training needs, with random parameters."""
        fused, dtype = self.variant.fusion.width, self.encoder_options.get("dtype", jnp.float32)
        widths = dict.fromkeys(self.modalities, self.variant.fusion.inputs)
        widths[FUSED] = 2 * fused if self.geo_context else fused
        outputs = {level: self.outputs[level] for level in self.levels}
        projected = self.geo_context and self.prototype_width != fused
        return Student(
            SkySense(self.variant, rngs=rngs, statistics=self.statistics, **self.encoder_options),
            Heads(
                widths,
                outputs,
                sharing=self.head_per,
                hidden=self.head_hidden,
                bottleneck=self.head_bottleneck,
                rngs=rngs,
                dtype=dtype,
            ),
            Alignment(self.modalities, self.variant.fusion.inputs, self.alignment_width, rngs=rngs, dtype=dtype),
            GeoContextProjections(fused, self.prototype_width, rngs=rngs, dtype=dtype) if projected else None,
        )

    def extra(self, params: Params) -> PyTree:
        """The teacher, equal to the student at first, a centre for each space and level, the table of prototypes."""
        centres = {name: jnp.zeros(self.outputs[level]) for name, level in self._heads()}
        first: PyTree = {"teacher": jax.tree.map(jnp.copy, params), "centres": centres}
        if self.geo_context:
            first["prototypes"] = prototypes.initial(
                self.regions, self.region_prototypes, self.prototype_width, self.seed
            )
        return first

    def loss(self, bind: Bind, params: Params, extra: PyTree, batch, key, step):
        """alpha L_MGCL + beta L_align; the tally holds sums for the centres and the prototypes."""
        examples = batch["boxes"].shape[0]
        check_batch(batch, self.batch_spec, (examples,))
        student, teacher = bind(params), bind(extra["teacher"])
        context = prototypes.gather(extra["prototypes"], batch["region"]) if self.geo_context else None
        keys = jax.random.split(key, 5)

        wide, near = list(range(GLOBAL_VIEWS)), list(range(GLOBAL_VIEWS, batch["boxes"].shape[1]))
        views = self._cut(batch, wide, self.global_size, keys[0])
        seen = jax.lax.stop_gradient(self._features(teacher, views, context, None))
        found = self._features(student, views, context, keys[1])
        # The other crop's teacher for each global view, both teachers for each local one.
        pairs = [({group: (found[group], seen[group].take(wide[::-1])) for group in found}, GLOBAL_VIEWS)]
        if near:
            local = self._features(student, self._cut(batch, near, self.local_size, keys[2]), context, keys[3])
            for i in wide:
                one = {group: (local[group], seen[group].take([i] * len(near))) for group in local}
                pairs.append((one, len(near)))

        temperature = linear_ramp(step, *self.teacher_temperature, self.teacher_temperature_steps)
        contrasts, shared = self._contrasts(pairs, student.heads, teacher.heads, extra["centres"], temperature)
        of_level = {
            level: jnp.stack([contrasts[name].loss for name, of in self._heads() if of == level]).sum()
            for level in self.levels
        }
        alignment = self._alignment(student, found[ALIGNED])
        loss = self.contrast_weight * sum(of_level.values()) + self.alignment_weight * alignment
        tally: PyTree = {"centres": {name: {"sum": c.logits, "count": c.number} for name, c in contrasts.items()}}
        if context is not None:
            tally["prototypes"] = self._prototype_tally(student, found[FUSED], context, batch["region"])
        shown = contrasts[f"{FUSED}_{self.levels[-1]}"]
        metrics = {f"loss_{level}": value for level, value in of_level.items()}
        metrics |= {
            "loss_alignment": alignment,
            "shared_ground": shared,
            "teacher_entropy": shown.teacher_entropy,
            "output_entropy": shown.output_entropy,
            "centre_norm": jnp.linalg.norm(extra["centres"][f"{FUSED}_{self.levels[-1]}"]),
        }
        return loss, (tally, metrics)

    def after_update(self, extra: PyTree, params: Params, tally: PyTree, step) -> PyTree:
        """Move the teacher, the centres and the prototypes of the regions that occurred."""
        momentum = cosine_ramp(step, self.teacher_momentum, 1.0, self.steps)
        counted = tally["centres"]
        moved = {
            "teacher": ema(extra["teacher"], params, momentum),
            "centres": {
                name: update_centre(centre, counted[name]["sum"], counted[name]["count"], self.centre_momentum)
                for name, centre in extra["centres"].items()
            },
        }
        if self.geo_context:
            moved["prototypes"] = prototypes.moved(extra["prototypes"], tally["prototypes"], self.prototype_momentum)
        return moved

    def _heads(self) -> list[tuple[str, str]]:
        """Name of each centre, and its level."""
        return [(f"{space}_{level}", level) for space in self.spaces for level in self.levels]

    def _cut(self, batch, which: list[int], size: int, key):
        """Views as the model takes them, colours augmented; beside them their boxes and flips."""
        images, days, present = cut_views(batch, which, size, self.statistics)
        if "HR" in images:
            images["HR"] = self.augmentation(images["HR"], key, self.statistics)
        chosen = jnp.asarray(which)
        return images, days, present, batch["boxes"][:, chosen], batch["flips"][:, chosen]

    def _features(self, module: Student, views, context, key) -> dict[str, Views]:
        """Aligned maps, the frames of all modalities behind one another, and fused ones beside what they look up."""
        images, days, present, boxes, flips = views
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        examples, count = boxes.shape[:2]
        aligned = module.encoder.aligned(images, present=present, normalised=True, key=keys[0])
        kept = present if key is None else self._hide_modalities(present, keys[1])
        fused = module.encoder.fuse(aligned, days, kept, key=keys[2])
        if context is not None:
            fused = attend_prototypes(fused, jnp.repeat(context, count, axis=0), module.geo_context)

        def separated(array: Array) -> Array:
            return array.reshape(examples, count, *array.shape[1:])

        shown = jnp.concatenate([present[name] for name in self.modalities], axis=1)
        maps = jnp.concatenate([aligned[name] for name in self.modalities], axis=1)
        return {
            ALIGNED: Views(separated(maps), separated(shown), boxes, flips),
            FUSED: Views(separated(fused[:, None]), separated(shown.any(1, keepdims=True)), boxes, flips),
        }

    @property
    def _frames(self) -> dict[str, slice]:
        """Modality -> its frames among the aligned maps."""
        places, start = {}, 0
        for name in self.modalities:
            count = self.batch_spec[f"{name}/present"].shape[1]
            places[name] = slice(start, start + count)
            start += count
        return places

    def _hide_modalities(self, present, key):
        """What the student's fusion is shown: each view loses modalities at random, but never all."""
        if not self.modality_dropout or len(self.modalities) == 1:
            return present
        score = jax.random.uniform(key, (len(self.modalities), len(present[self.modalities[0]])))
        held = jnp.stack([present[name].any(1) for name in self.modalities])
        score = jnp.where(held, score, -1.0)
        kept = (score >= self.modality_dropout) | (score == score.max(0))
        return {name: present[name] & kept[i][:, None] for i, name in enumerate(self.modalities)}

    def _contrasts(
        self, pairs, student: Heads, teacher: Heads, centres, temperature
    ) -> tuple[dict[str, Contrast], Float[Array, ""]]:
        """Every space and level, averaged over the groups of pairs, and the share of ground that pairs share."""
        total = sum(count for _, count in pairs)
        results: dict[str, list[tuple[Contrast, float]]] = {}
        shared = jnp.zeros(())
        for groups, count in pairs:
            compared = {
                group: compare(here, there, self.levels, self.clustering) for group, (here, there) in groups.items()
            }
            shared += compared[FUSED][1] * count / total
            for space in self.spaces:
                for level in self.levels:
                    name = f"{space}_{level}"
                    features = (
                        compared[FUSED][0][level]
                        if space == FUSED
                        else compared[ALIGNED][0][level].during(self._frames[space])
                    )
                    one = self._contrast(space, level, student, teacher)(features, centres[name], temperature)
                    results.setdefault(name, []).append((one, count / total))
        return {name: _averaged(parts) for name, parts in results.items()}, shared

    def _contrast(self, space: str, level: str, student: Heads, teacher: Heads) -> Callable[..., Contrast]:
        """`contrast` with the heads of a level; recomputed in the backward pass where blocks are."""

        def run(features: Compared, centre, temperature) -> Contrast:
            return contrast(
                features,
                lambda x: student(space, level, x),
                lambda x: teacher(space, level, x),
                centre,
                self.student_temperature,
                temperature,
            )

        return run if self.encoder_options.get("remat", "none") == "none" else jax.checkpoint(run)

    def _alignment(self, student: Student, found: Views) -> Float[Array, ""]:
        """Sum over pairs of modalities of the contrast between their features of the same places."""
        features, shown = {}, {}
        for name in self.modalities:
            views = found.during(self._frames[name])
            weight = views.shown.astype(views.maps.dtype)
            mean = jnp.einsum("bvt,bvthwc->bvhwc", weight, views.maps)
            places = self._places(mean / jnp.maximum(weight.sum(2), 1)[..., None, None, None])
            features[name] = student.alignment(name, places)
            shown[name] = jnp.repeat(views.shown.any((1, 2)), len(places) // len(weight)).astype(jnp.float32)
        return sum(
            (
                info_nce(features[a], features[b], shown[a] * shown[b], self.alignment_temperature)
                for a, b in combinations(self.modalities, 2)
            ),
            start=jnp.zeros(()),
        )

    def _places(self, maps: Float[Array, "b v h w c"]) -> Float[Array, "n v c"]:
        """What modalities are aligned on: each view's mean, or some of its pixels on an even grid."""
        if not self.alignment_grid:
            return maps.mean((2, 3))
        count = self.alignment_grid
        rows, columns = (((jnp.arange(count) + 0.5) * size / count).astype(jnp.int32) for size in maps.shape[2:4])
        chosen = maps[:, :, rows][:, :, :, columns]
        return chosen.transpose(0, 2, 3, 1, 4).reshape(-1, *chosen.shape[1:2], chosen.shape[-1])

    def _prototype_tally(self, student: Student, found: Views, context, region) -> prototypes.Tally:
        """Where the prototypes of the batch's regions should go: the student's fused pixels, without gradient."""
        fused = found.maps[..., : self.variant.fusion.width]
        pixels = in_prototype_space(fused, student.geo_context).reshape(len(region), -1, self.prototype_width)
        means = prototypes.pixel_means(
            pixels, context, epsilon=self.prototype_epsilon, iterations=self.prototype_iterations
        )
        return prototypes.tally(means, region, self.regions)


def _averaged(parts: list[tuple[Contrast, float]]) -> Contrast:
    """Contrasts of groups of pairs as one: sums add, the rest is weighted by the groups' shares."""
    summed = jax.tree.map(lambda *values: sum(values[1:], start=values[0]), *(one for one, _ in parts))
    shares = [share for _, share in parts]

    def mean(*values: Array) -> Array:
        return sum((share * value for share, value in zip(shares, values, strict=True)), start=jnp.zeros(()))

    averaged = jax.tree.map(mean, *(one for one, _ in parts))
    return averaged._replace(logits=summed.logits, number=summed.number)
