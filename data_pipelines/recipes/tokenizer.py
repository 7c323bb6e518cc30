"""What one batch of a tokenizer's objective is: tiles of one modality on native grids, and where they are cut."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.recipes.tiles import tile_arrays, tile_spec
from data_pipelines.sample import Sample
from data_pipelines.transforms.boxes import random_resized_boxes
from data_pipelines.transforms.cuts import random_cut


@dataclass(frozen=True)
class TokenizerRecipe:
    """From a sample to one example: a tile with one random crop.

    Attributes:
        modality: what the tokenizer is of.
        tile: side of the square tile that is shipped, 10 m pixels; larger samples are cut at random.
        scale: bounds of the crop's area, as fractions of the tile's.
        flip: probability of a horizontal flip.
        seed: of all draws.
    """

    modality: str
    tile: int
    scale: tuple[float, float] = (0.8, 1.0)
    flip: float = 0.5
    seed: int = 0

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        return _spec(self.modality, self.tile, views=1)

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """One example; a pure function of the sample, the position in the stream and the seed."""
        rng = np.random.default_rng([self.seed, position])
        arrays = _arrays(random_cut(sample, self.tile, rng), self.modality, self.tile)
        boxes = random_resized_boxes(rng, 1, self.tile, self.scale)
        return {**arrays, "boxes": boxes, "flips": np.array([[False, rng.random() < self.flip]])}


@dataclass(frozen=True)
class WindowRecipe:
    """Evaluation: all whole windows of a tile, side by side around its centre, neither resized nor flipped.

    Attributes:
        modality: what the tokenizer is of.
        tile: side of the square tile, 10 m pixels; larger samples are cut the same way at every call.
        size: side of a window.

    Raises:
        DataError: if not one window fits.
    """

    modality: str
    tile: int
    size: int

    def __post_init__(self) -> None:
        if self.tile < self.size:
            raise DataError(f"data.tile={self.tile} is smaller than the network's input of {self.size}; choose more")

    @property
    def windows(self) -> int:
        """Windows per tile."""
        return (self.tile // self.size) ** 2

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        return _spec(self.modality, self.tile, self.windows)

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """One example; the position plays no part."""
        tile = random_cut(sample, self.tile, np.random.default_rng(0))
        corners = self.tile % self.size // 2 + self.size * np.arange(self.tile // self.size)
        top, left = (grid.ravel() for grid in np.meshgrid(corners, corners, indexing="ij"))
        side = np.full_like(top, self.size)
        boxes = np.stack([top, left, side, side], axis=1).astype(np.float32)
        return {**_arrays(tile, self.modality, self.tile), "boxes": boxes, "flips": np.zeros((self.windows, 2), bool)}


def _spec(modality: str, tile: int, views: int) -> dict[str, ArraySpec]:
    return {
        **tile_spec((modality,), tile),
        "boxes": ArraySpec((views, 4), "float32", "pixel"),  # top, left, height, width
        "flips": ArraySpec((views, 2), "bool"),  # upside down, left to right
    }


def _arrays(tile: Sample, modality: str, pixels: int) -> dict[str, np.ndarray]:
    if modality not in tile.rasters:
        raise DataError(f"sample {tile.key} has no {modality}; it has {', '.join(tile.rasters) or 'nothing'}")
    return tile_arrays(tile, (modality,), pixels)
