"""The land-cover map: classes cut from suitability fields by rank, so that they cover exactly their share."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural.noise import fractal_fields, nodes_for, to_pixels
from data_pipelines.sources.procedural.parcels import Parcels, make_parcels
from data_pipelines.sources.procedural.places import (
    BARE,
    BUILT,
    COAST,
    CROPS,
    FLOODED,
    RANGELAND,
    RIVER,
    SEA,
    SNOW,
    TREES,
    WATER,
    Place,
    class_counts,
)
from data_pipelines.sources.procedural.terrain import Terrain, slopes

STEP = 2  # pixels between nodes of the pattern fields: a map has no detail below about 20 m


@dataclass(frozen=True)
class LandCover:
    """Classes and the geometry under them.

    Attributes:
        classes: (m, m) uint8, ids of `modalities.LAND_COVER`.
        elevation: (m, m) metres, with flat water surfaces; the sea is at 0.
        east, north: (m, m) slopes of `elevation`, metres per metre.
        shore: (m, m) height above the water's edge on land, depth below it in water (negative), metres or pixels.
        patches: (6, m, m) fields of unit variance that also drive the variation within classes.
        drift: (2, m, m) very smooth fields of unit variance, which bend fields and roads.
        fields: farm parcels, if there are crops.
        blocks: town blocks, if there is built-up land.
        district: level of `drift[0]` above which parcels have their second orientation.
    """

    classes: np.ndarray
    elevation: np.ndarray
    east: np.ndarray
    north: np.ndarray
    shore: np.ndarray
    patches: np.ndarray
    drift: np.ndarray
    fields: Parcels | None
    blocks: Parcels | None
    district: np.float32


class _Cutter:
    """Gives pixels to classes, the most suitable first, until each class has its number within the tile."""

    def __init__(self, shape: tuple[int, int], tile: int):
        self.classes = np.full(shape, RANGELAND, np.uint8)
        self.free = np.ones(shape, bool)
        self.tile = tile

    def take(self, land_cover: int, count: int, suitability: np.ndarray) -> None:
        """Label `count` pixels of the tile, and the pixels of the margin that are as suitable."""
        if count == 0:
            return
        score = np.where(self.free, suitability, -np.inf)
        inner = score[: self.tile, : self.tile].ravel()
        best = np.argpartition(-inner, count - 1)[:count]
        chosen = self.free & (score >= inner[best].min())
        exact = np.zeros(inner.size, bool)
        exact[best] = True
        chosen[: self.tile, : self.tile] = exact.reshape(self.tile, self.tile)
        self.classes[chosen] = land_cover
        self.free &= ~chosen


def map_land_cover(rng: np.random.Generator, place: Place, terrain: Terrain, tile: int) -> LandCover:
    """Draw the map of a sample.

    Water takes the lowest ground, snow the highest, crops whole parcels on gentle slopes, towns blobs near the
    valleys, trees and bare ground patches; rangeland is what remains.

    Args:
        rng: of the layer "pattern".
        place: shares of the classes, kind of water.
        terrain: relief of a square of m pixels.
        tile: side of the tile within the square; the counts are exact there.
    """
    m = terrain.elevation.shape[0]
    size = nodes_for(m, STEP)
    grain = rng.uniform(10, 26)
    patches = to_pixels(fractal_fields(rng, 6, size, 3.3, grain), m, STEP)
    drift = to_pixels(fractal_fields(rng, 2, nodes_for(m, 12), 4.5, rng.uniform(3, 8)), m, 12)
    counts = class_counts(place.fractions[None], tile * tile)[0]
    height = (terrain.elevation - terrain.elevation.mean()) / np.float32(terrain.elevation.std() + 1e-3)
    cutter = _Cutter((m, m), tile)
    shore = _shore(place, terrain, patches)
    cutter.take(WATER, counts[WATER], -shore)
    elevation, shore = _pour(place, terrain, shore, cutter.classes == WATER)
    cutter.take(SNOW, counts[SNOW], 1.5 * height + 0.5 * patches[0])
    cutter.take(FLOODED, counts[FLOODED], -0.15 * np.minimum(terrain.channel, 60) - height + patches[3])
    if place.water_kind == COAST:  # beaches first
        cutter.take(BARE, counts[BARE], -shore + patches[1])
    near_valley = -0.012 * np.minimum(terrain.channel, 120)
    cutter.take(BUILT, counts[BUILT], near_valley + patches[2] - 0.4 * height)
    fields, blocks, district = _divide(rng, place, drift, counts)
    if fields is not None:
        cutter.take(CROPS, counts[CROPS], _by_parcel(rng, fields, 0.9 * patches[4] - 0.7 * height))
    cutter.take(TREES, counts[TREES], patches[5] + 0.35 * patches[3] + (0.3 if place.relief > 30 else -0.3) * height)
    if place.water_kind != COAST:
        cutter.take(BARE, counts[BARE], patches[1] + 0.6 * height)
    rise = slopes(elevation)
    return LandCover(cutter.classes, elevation, *rise, shore, patches, drift, fields, blocks, district)


def _shore(place: Place, terrain: Terrain, patches: np.ndarray) -> np.ndarray:
    """Field whose lowest pixels fill with water first."""
    if place.water_kind == RIVER:
        return terrain.channel * np.exp(0.35 * patches[0])  # width varies along the river
    return terrain.elevation + np.float32(0.08 * place.relief) * patches[0]


def _pour(place: Place, terrain: Terrain, shore: np.ndarray, water: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flatten water surfaces; returns the elevation and the shore field with its zero at the water's edge."""
    elevation = terrain.elevation
    if place.water_kind == SEA:
        return np.zeros_like(elevation), shore - shore.max() - 1
    if not water.any():
        return elevation, shore - shore.min() + np.float32(50)
    edge = shore[water].max()
    if place.water_kind == COAST:
        elevation = np.where(water, 0, np.maximum(elevation - edge, 0.2))
    elif place.water_kind == RIVER:
        elevation = np.where(water, elevation - 1, elevation)
    else:
        elevation = np.where(water, elevation[water].min(), elevation)
    return elevation, shore - edge


def _divide(
    rng: np.random.Generator, place: Place, drift: np.ndarray, counts: np.ndarray
) -> tuple[Parcels | None, Parcels | None, np.float32]:
    """Parcels of farms and towns, and the level of their district; where people farm, pastures and woods have some."""
    climate = place.climate
    level = np.float32(rng.normal(0, 0.7))
    district = drift[0] > level
    width = float(np.clip(climate.field / 10 * np.exp(rng.normal(0, 0.4)), 3.5, 70))
    aspect, crooked = rng.uniform(1.2, 3.5), rng.uniform(0.25, 1.0)
    pivots = counts[CROPS] > 0 and place.aridity > 0.5 and width > 12 and rng.random() < 0.35
    if pivots:
        width, aspect, crooked = 80.0, 1.0, 0.0
    fields = blocks = None
    if counts[CROPS] or (climate.cover[3] > 0.05 and counts.argmax() in (RANGELAND, TREES)):
        fields = make_parcels(rng, drift, district, width, aspect=aspect, irregularity=crooked)
    if counts[BUILT]:
        block, aspect, crooked = rng.uniform(5, 9), rng.uniform(1.0, 2.0), rng.uniform(0.3, 1.0)
        blocks = make_parcels(rng, drift[::-1], district, block, aspect=aspect, irregularity=crooked)
    return fields, blocks, level


def _by_parcel(rng: np.random.Generator, parcels: Parcels, suitability: np.ndarray) -> np.ndarray:
    """Mean of a field over each parcel plus chance, so that parcels are taken whole."""
    flat = parcels.ids.ravel()
    total = np.bincount(flat, suitability.ravel(), parcels.count)
    mean = total / np.maximum(np.bincount(flat, minlength=parcels.count), 1)
    score = (mean + 0.45 * rng.standard_normal(parcels.count)).astype(np.float32)
    return score[parcels.ids] + np.float32(1e-3) * suitability
