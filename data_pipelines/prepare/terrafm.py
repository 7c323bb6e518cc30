"""TerraFM's tiles: four of each Major TOM cell, with land cover, and with little of the open sea.

Source: Danish et al., TerraFM: A Scalable Foundation Model for Unified Multisensor Earth Observation, 2025, on its
data: 1068-pixel cells cut into disjoint 534-pixel tiles, a coarse class of each by ESA WorldCover, 2 % of the ocean.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rasterio.warp import transform as warp

from data_pipelines.errors import DataError
from data_pipelines.hashing import hash_strings, to_unit
from data_pipelines.modalities import LAND_COVER, OCEAN, SCENE_CLASSES
from data_pipelines.record_index import COVER
from data_pipelines.sample import Sample
from data_pipelines.sources import Source
from data_pipelines.transforms.cuts import LATTICE, cut
from data_pipelines.world_cover import WorldCover

_OCEAN = SCENE_CLASSES.index(OCEAN)
_WET = [LAND_COVER.index(name) for name in ("nodata", "water")]
_SEA, _UNMAPPED = 0.95, 0.5  # shares of a tile: water or unmapped, and unmapped, from which it is open sea


class Cut:
    """What becomes of a sample before it is written: nothing, without a recipe."""

    def usable(self, source: Source) -> np.ndarray:
        """Positions of the samples that can be used."""
        return np.arange(len(source))

    def __call__(self, sample: Sample) -> tuple[Sequence[Sample], int]:
        """Samples to be written, and how many more were thinned out."""
        return (sample,), 0


class TerraFMTiles(Cut):
    """Cells to tiles.

    Keys are `<cell>_<column>_<row>`, counted from the top left. Tiles carry the attributes `cover_<class>` (fractions
    of the map, 0..1) and `scene` (index into SCENE_CLASSES). Land maps do not cover the open sea, only its coasts: a
    tile that is water or unmapped, and unmapped for the most part, is `ocean`.

    Args:
        tile: side, 10 m pixels, a multiple of 6.
        cover: map of land cover; None: tiles carry none, and nothing is thinned out.
        ocean: share of ocean tiles that is kept, by the hash of their keys (as `sampling.thin_ocean` does).

    Raises:
        DataError: if the tile is off the lattice of 60 m pixels.
    """

    TILE = 534
    MODALITIES = ("S2L1C", "S2L2A", "S1RTC")
    REQUIRED = ("S2L1C", "S2L2A")
    """Every tile has them; radar may be missing."""

    def __init__(self, tile: int, cover: WorldCover | None, ocean: float):
        if tile % LATTICE:
            raise DataError(f"--tile {tile} splits pixels of 60 m; use a multiple of {LATTICE}, such as {self.TILE}")
        self._tile, self._cover, self._ocean = tile, cover, ocean

    @classmethod
    def open(cls, tile: int, landcover: str, ocean: float) -> "TerraFMTiles":
        """Tiles with the map in a folder; "" for none."""
        return cls(tile, WorldCover(landcover) if landcover else None, ocean)

    @property
    def identity(self) -> dict[str, Any]:
        """What tiles depend on."""
        mapped = {"landcover": self._cover.digest, "ocean": self._ocean} if self._cover else {"landcover": None}
        optional = [name for name in self.MODALITIES if name not in self.REQUIRED]
        return {"tile": self._tile, "optional": optional, **mapped}

    def usable(self, source: Source) -> np.ndarray:
        """Cells with both products of Sentinel-2, as far as the source knows before it reads them."""
        present = getattr(source, "present", {})
        whole = np.ones(len(source), bool)
        for name in self.REQUIRED:
            whole &= present.get(name, True)
        return np.flatnonzero(whole)

    def __call__(self, sample: Sample) -> tuple[Sequence[Sample], int]:
        """Up to four tiles of a cell, those in its middle where it is larger.

        Raises:
            DataError: if it is smaller, lacks a product of Sentinel-2, or the map of its place is missing.
        """
        for name in self.REQUIRED:
            if name not in sample.rasters:
                raise DataError(f"cell {sample.key} has no {name}; fetch it, or leave the cell out")
        corners = [(extent - 2 * self._tile) // 2 // LATTICE * LATTICE for extent in sample.shape]
        if min(corners) < 0:
            side = 2 * self._tile
            raise DataError(f"cell {sample.key} is {sample.shape[1]} x {sample.shape[0]} pixels, not {side} x {side}")
        tiles = [self._cut(sample, corners, row, column) for row in range(2) for column in range(2)]
        kept = [tile for tile in tiles if not self._thinned(tile)]
        return kept, len(tiles) - len(kept)

    def _cut(self, sample: Sample, corners: Sequence[int], row: int, column: int) -> Sample:
        size = self._tile
        tile = cut(sample, corners[0] + row * size, corners[1] + column * size, size)
        a, b, c, d, e, f = tile.transform
        half = size / 2
        (lon,), (lat,) = warp(f"EPSG:{tile.epsg}", "EPSG:4326", [c + (a + b) * half], [f + (d + e) * half])
        tile = replace(tile, key=f"{sample.key}_{column}_{row}", lon=lon, lat=lat)
        if self._cover is None:
            return tile
        return replace(tile, attributes={**tile.attributes, **_described(self._cover.fractions(tile))})

    def _thinned(self, tile: Sample) -> bool:
        ocean = self._cover is not None and tile.attributes["scene"] == _OCEAN
        return ocean and bool(to_unit(hash_strings([tile.key]))[0] >= self._ocean)


def _described(fractions: np.ndarray | None) -> dict[str, float | int]:
    """Attributes of a tile with these fractions of LAND_COVER; None where its place may or may not be mapped."""
    if fractions is None:
        return {"scene": -1}
    cover = {name: round(float(share), 6) for name, share in zip(COVER, fractions, strict=True)}
    if fractions[_WET].sum() >= _SEA and fractions[_WET[0]] >= _UNMAPPED:
        return {**cover, "scene": _OCEAN}
    land = fractions.copy()
    land[_WET[0]] = 0
    return {**cover, "scene": int(land.argmax()) if land.any() else -1}
