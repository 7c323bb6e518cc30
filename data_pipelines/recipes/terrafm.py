"""What one batch of TerraFM's objective is: tiles on native grids, boxes of the views, modality masks."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.recipes.tiles import tile_arrays, tile_spec
from data_pipelines.sample import Sample
from data_pipelines.transforms.boxes import random_resized_boxes
from data_pipelines.transforms.cuts import random_cut

GLOBAL_VIEWS = 2
LEFT_OUT = {"S2L1C": ("B10",)}
"""Bands that TerraFM's stems do not take."""


@dataclass(frozen=True)
class TerraFMRecipe:
    """From a sample to one example of self-distillation over crops and modalities.

    Attributes:
        modalities: what views are drawn from.
        tile: side of the square tile that is shipped, 10 m pixels; larger samples are cut at random.
        local_views: number of local crops, beside two global ones.
        global_scale, local_scale: bounds of a crop's area, as fractions of the tile's.
        modalities_per_view: "any": each modality is drawn with probability one half, at least one; "one": exactly one.
        draw: "per_sample", or "per_batch": all examples of a batch share the modalities of their views.
        frequent: scene classes (indices of SCENE_CLASSES) that count as frequent land cover.
        batch_size: of the global batch, for draws per batch.
        seed: of all draws.
    """

    modalities: tuple[str, ...]
    tile: int
    local_views: int
    global_scale: tuple[float, float]
    local_scale: tuple[float, float]
    frequent: tuple[int, ...] = ()
    modalities_per_view: str = "any"
    draw: str = "per_sample"
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for value, choices in ((self.modalities_per_view, ("any", "one")), (self.draw, ("per_sample", "per_batch"))):
            if value not in choices:
                raise DataError(f"unknown way of drawing modalities {value!r}; choose {' or '.join(choices)}")

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        views, kinds = GLOBAL_VIEWS + self.local_views, len(self.modalities)
        return {
            **tile_spec(self.modalities, self.tile, LEFT_OUT),
            "boxes": ArraySpec((views, 4), "float32", "pixel"),
            "student_modalities": ArraySpec((views, kinds), "bool"),
            "teacher_modalities": ArraySpec((GLOBAL_VIEWS, kinds), "bool"),
            "frequent": ArraySpec((), "bool"),
        }

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """One example; a pure function of the sample, the position in the stream and the seed."""
        rng = np.random.default_rng([self.seed, position, 0])
        tile = random_cut(sample, self.tile, rng)
        boxes = [
            random_resized_boxes(rng, GLOBAL_VIEWS, self.tile, self.global_scale),
            random_resized_boxes(rng, self.local_views, self.tile, self.local_scale),
        ]
        group = rng if self.draw == "per_sample" else np.random.default_rng([self.seed, position // self.batch_size, 1])
        available = np.array([name in sample.rasters for name in self.modalities])
        if not available.any():
            raise DataError(f"sample {sample.key} has none of {', '.join(self.modalities)}")
        views = GLOBAL_VIEWS + self.local_views
        return {
            **tile_arrays(tile, self.modalities, self.tile, LEFT_OUT),
            "boxes": np.concatenate(boxes),
            "student_modalities": self._draw_modalities(group, views, available),
            "teacher_modalities": self._draw_modalities(group, GLOBAL_VIEWS, available),
            "frequent": np.asarray(int(sample.attributes.get("scene", -1)) in self.frequent),
        }

    def _draw_modalities(self, rng: np.random.Generator, views: int, available: np.ndarray) -> np.ndarray:
        """(views, modalities) bool: a non-empty set of the available modalities for each view."""
        # One row more of random numbers than modalities, drawn alike whatever is available: streams stay aligned.
        fallback = np.where(available, rng.random((views, len(available))), -1.0).argmax(1)
        chosen = (rng.random((views, len(available))) < 0.5) & available
        if self.modalities_per_view == "one":
            chosen[:] = False
        empty = ~chosen.any(1)
        chosen[empty, fallback[empty]] = True
        return chosen


@dataclass(frozen=True)
class TileRecipe:
    """Whole tiles for evaluation: the arrays of a batch without views, centred where samples are larger."""

    modalities: tuple[str, ...]
    tile: int

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        return tile_spec(self.modalities, self.tile, LEFT_OUT)

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """The tile's arrays; samples larger than the tile are cut the same way at every call."""
        tile = random_cut(sample, self.tile, np.random.default_rng(0))
        return tile_arrays(tile, self.modalities, self.tile, LEFT_OUT)
