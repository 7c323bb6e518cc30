"""What covers each pixel, in fractions of materials: plants by season, fields by crop, towns by block, snow by cold."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural import spectra
from data_pipelines.sources.procedural.acquisition import Season
from data_pipelines.sources.procedural.land_cover import LandCover
from data_pipelines.sources.procedural.noise import smooth
from data_pipelines.sources.procedural.parcels import Parcels, road_network
from data_pipelines.sources.procedural.places import (
    BARE,
    BUILT,
    COAST,
    CROPS,
    FLOODED,
    RANGELAND,
    SEA,
    SNOW,
    TREES,
    WATER,
    Place,
)
from data_pipelines.sources.procedural.spectra import MATERIALS

_CEREAL, _SUMMER, _PASTURE, _FALLOW, _ORCHARD = range(5)


@dataclass(frozen=True)
class Surface:
    """The ground as the sensors meet it.

    Attributes:
        cover: (10, ..., m, m) fractions of `spectra.MATERIALS`, summing to 1; what the radar meets. Between them the
            shape of the season: () for one day, (days,) for many.
        visible: the same under seasonal snow; what the optical sensor meets.
        texture: (m, m) unit-variance detail at 10 m, such as crowns and their shadows.
    """

    cover: np.ndarray
    visible: np.ndarray
    texture: np.ndarray


@dataclass(frozen=True)
class _Plants:
    """Fractions from 0 to 1, (..., m, m) each: canopy, green share of the rest, litter share of what is not green."""

    tree: np.ndarray
    green: np.ndarray
    litter: np.ndarray
    moist: np.ndarray  # dark, moist share of bare soil


def cover_ground(rng: np.random.Generator, place: Place, land: LandCover, season: Season) -> Surface:
    """Turn the map of a sample into materials, on one day or on many; the same ground but for the season.

    Args:
        rng: of the layer "surface".
        place: biome and aridity.
        land: classes, parcels, pattern fields.
        season: one day, or many at once.
    """
    m = land.classes.shape[0]
    detail = smooth(rng.standard_normal((2, m, m), dtype=np.float32), (0.3, 0.75, 0.3)) / np.float32(0.75)
    plants = _natural_plants(rng, place, land, season, detail)
    if land.fields is not None:
        plants = _farm(rng, place, land, season, plants, land.fields)
    roads = int(rng.integers(0, 3)) + int(place.fractions[BUILT] > 0.05) if place.fractions[BUILT] > 0 else 0
    sealed = road_network(rng, land.drift, roads)
    roofs = np.where(detail[0] > 3.6 - 8 * place.climate.cover[4], np.float32(0.35), np.float32(0))  # lone houses
    if land.blocks is not None:
        plants, sealed, roofs = _town(rng, land, plants, sealed, roofs, land.blocks, detail)
    cover = np.zeros((len(MATERIALS), *season.day.shape, m, m), np.float32)
    open_ground = np.maximum(1 - roofs - sealed, 0)
    cover[spectra.ROOF], cover[spectra.ASPHALT] = roofs, np.minimum(sealed, 1 - roofs)
    cover[spectra.TREE] = open_ground * plants.tree
    below = open_ground - cover[spectra.TREE]
    cover[spectra.GRASS] = below * plants.green
    below -= cover[spectra.GRASS]
    cover[spectra.LITTER] = below * plants.litter
    below -= cover[spectra.LITTER]
    cover[spectra.DARK_SOIL] = below * plants.moist
    cover[spectra.SOIL] = below - cover[spectra.DARK_SOIL]
    _flood_and_freeze(rng, place, land, cover)
    return Surface(cover, _snowfall(rng, place, land, season, cover), detail[1])


def _natural_plants(
    rng: np.random.Generator, place: Place, land: LandCover, season: Season, detail: np.ndarray
) -> _Plants:
    """Vegetation by class, varied by smooth fields and fine detail."""
    woody = place.climate.cover[1] * rng.uniform(0.1, 0.7)
    tree, tree_spread = np.zeros(10, np.float32), np.zeros(10, np.float32)
    tree[[TREES, RANGELAND, FLOODED, BUILT, CROPS]] = 0.95 - 0.3 * place.aridity, woody, 0.6 * woody, 0.1, 0.02
    tree_spread[[TREES, RANGELAND, FLOODED, CROPS]] = 0.05 + 0.14 * place.aridity, 0.5 * woody + 0.02, 0.1, 0.02
    green, green_spread = np.zeros((2, *season.green.shape, 10), np.float32)
    lush = season.green * rng.uniform(0.75, 1.2)
    for land_cover, share in ((TREES, 1), (RANGELAND, 0.85), (FLOODED, 1), (BARE, 0.03), (BUILT, 0.7), (CROPS, 1)):
        green[..., land_cover] = share * lush
    for land_cover, spread in ((TREES, 0.1), (RANGELAND, 0.04 + 0.22 * lush), (FLOODED, 0.2), (BARE, 0.05 * lush)):
        green_spread[..., land_cover] = spread
    litter, classes, patches = np.full(10, 0.55, np.float32), land.classes, land.patches
    litter[[RANGELAND, BARE, BUILT]] = 0.75 - 0.5 * place.aridity, 0.04, 0.3
    riparian = np.float32(0.3) * np.exp(-np.abs(land.shore) / np.float32(8))
    vigour = np.float32(0.75) * patches[3] + np.float32(0.35) * patches[2] + np.float32(0.55) * detail[0]
    crowns = np.float32(0.5) * patches[4] + detail[1]
    wet = np.clip(
        0.25 + 0.35 * rng.standard_normal() - 0.3 * place.aridity + 0.22 * patches[1] + 0.06 * detail[1] + riparian,
        0,
        1,
    )
    return _Plants(
        np.clip(tree[classes] + tree_spread[classes] * crowns, 0, 1),
        np.clip(green[..., classes] + green_spread[..., classes] * (vigour + riparian), 0, 1),
        np.clip(litter[classes] + np.float32(0.15) * patches[5] + np.float32(0.12) * detail[1], 0, 1),
        wet,
    )


def _farm(
    rng: np.random.Generator, place: Place, land: LandCover, season: Season, plants: _Plants, fields: Parcels
) -> _Plants:
    """Replace vegetation on crops by that of each field's crop, at its stage of growth."""
    count = fields.count
    odds = np.array([0.35, 0.35, 0.12, 0.12, 0.06]) * rng.gamma(1.0, 1.0, 5)
    kind = rng.choice(5, count, p=odds / odds.sum())
    south = 0 if place.lat >= 0 else 182
    wet = place.climate.wet_season
    warm_peak = (wet + 20 if wet and place.climate.name != "mediterranean" else 212) + south
    peaks = np.array([118 + 0.9 * abs(place.lat) - 20 + south, warm_peak, 0, 0, 0])
    peak = peaks[kind] + rng.normal(0, 14, count)
    if place.climate.name == "tropical forest":
        peak = rng.uniform(0, 365, count)  # several harvests a year
    day, lush = season.day[..., None], season.green[..., None]
    phase = (day - peak + 182) % 365 - 182
    growth = np.exp(-((phase / np.where(phase < 0, 48, 34)) ** 2)) * rng.uniform(0.6, 1.0, count)
    green = np.select([kind == _PASTURE, kind == _FALLOW, kind == _ORCHARD],
                      [1.1 * lush + 0.05, 0.12 * lush, 0.5 * lush], 0.96 * growth)  # fmt: skip
    green = np.clip(green * rng.lognormal(0, 0.12, count), 0, 1).astype(np.float32)
    stubble = (phase > 20) & (phase < 110) & (rng.random(count) < 0.65)
    litter = np.where(stubble, rng.uniform(0.5, 0.95, count), rng.uniform(0.03, 0.35, count)).astype(np.float32)
    tree = np.where(kind == _ORCHARD, rng.uniform(0.25, 0.7, count), 0).astype(np.float32)
    tilled = np.clip(rng.normal(0, 0.28, count), -0.6, 0.6).astype(np.float32)
    crops, ids = land.classes == CROPS, fields.ids
    uneven = 1 + np.float32(0.10) * land.patches[3] + np.float32(0.05) * land.patches[0]
    watered = (fields.inside_circle | (rng.random() < 0.2)) if place.aridity > 0.75 else True
    hedged = fields.edge & (land.patches[1] > rng.normal(1.0, 0.8)) & crops
    managed = (land.classes == RANGELAND) | (land.classes == TREES)
    use = (rng.normal(0, 1, count) * rng.uniform(0, 0.16)).astype(np.float32)[ids] * managed  # grazing, age of stands
    grown, elsewhere = green[..., ids], np.clip(plants.green + use, 0, 1)
    return _Plants(
        np.where(hedged, np.float32(0.55), np.where(crops, tree[ids], np.clip(plants.tree * (1 + use), 0, 1))),
        np.where(crops & watered, np.clip(grown * uneven, 0, 1), np.where(crops, np.float32(0.04), elsewhere)),
        np.where(crops, litter[..., ids], plants.litter),
        np.where(crops, np.clip(plants.moist + tilled[ids], 0, 1), plants.moist),
    )


def _town(
    rng: np.random.Generator,
    land: LandCover,
    plants: _Plants,
    sealed: np.ndarray,
    roofs: np.ndarray,
    blocks: Parcels,
    detail: np.ndarray,
) -> tuple[_Plants, np.ndarray, np.ndarray]:
    """Roofs, streets and gardens on built-up land: denser towards the middle, works and warehouses here and there."""
    count = blocks.count
    dense = rng.uniform(0.15, 0.5)
    roof = np.clip(rng.normal(dense, 0.14, count), 0.02, 0.85)
    works = rng.random(count) < 0.05
    roof = np.where(works, 0.9, roof).astype(np.float32)
    garden_trees = np.where(works, 0, rng.beta(1.2, 4, count)).astype(np.float32)
    paved = np.where(works, 0.6, rng.beta(1.2, 3, count) * (0.4 + dense)).astype(np.float32)
    built, ids = land.classes == BUILT, blocks.ids
    street = blocks.edge & built
    middle = np.clip(1 + np.float32(0.18) * land.patches[2], 0.5, 1.4)
    grain = np.maximum(1 + np.float32(0.35) * detail[0], np.float32(0.1))  # single houses
    town_roofs = np.clip(roof[ids] * middle * grain, 0, 0.95)
    roofs = np.where(street, np.float32(0.1), np.where(built, town_roofs, roofs))
    pavement = np.where(street, np.float32(0.6), paved[ids] * (1 - roofs))
    sealed = np.where(built, np.maximum(pavement, sealed), sealed)
    gardens = np.clip(garden_trees[ids] * (1 + np.float32(0.5) * detail[1]), 0, 1)
    tree = np.where(built, gardens, plants.tree)
    return _Plants(tree, plants.green, plants.litter, plants.moist), sealed, roofs


def _flood_and_freeze(rng: np.random.Generator, place: Place, land: LandCover, cover: np.ndarray) -> None:
    """Put water and permanent ice into the fractions, in place."""
    if not place.fractions[[WATER, FLOODED, SNOW]].any():
        return
    load = np.float32(min(rng.gamma(0.6, 0.35), 1.0) * (0.5 if place.water_kind == SEA else 1.0))
    deep = np.exp(np.minimum(land.shore, 0) / np.float32(3.0 if place.water_kind == COAST else 6.0))
    silt = np.clip(load * (np.float32(0.5) + np.float32(0.25) * land.patches[0] + np.float32(0.6) * deep), 0, 1)
    wet = np.array([0, 1, 0, 0.3, 0, 0, 0, 0, 0, 0], np.float32)[land.classes]
    np.multiply(wet, np.clip(1 + np.float32(0.6) * land.patches[3], 0, 2), out=wet, where=land.classes == FLOODED)
    ice = np.float32(0.96) * (land.classes == SNOW) * np.clip(1 - np.float32(0.02) * np.abs(land.patches[1]), 0, 1)
    cover *= (1 - wet) * (1 - ice)
    cover[spectra.SILT], cover[spectra.WATER_BODY], cover[spectra.SNOW_COVER] = wet * silt, wet * (1 - silt), ice


def _snowfall(rng: np.random.Generator, place: Place, land: LandCover, season: Season, cover: np.ndarray) -> np.ndarray:
    """Fractions under seasonal snow: below a snow line on the cold side of freezing; canopies hide most of it."""
    line, depth = rng.normal(-3.0, 2.5), rng.uniform(0.3, 1.0) * (1 - 0.6 * place.aridity)
    air = season.warmth[..., None, None].astype(np.float32)
    warmth = air - np.float32(0.0065) * (land.elevation - np.float32(place.altitude))
    bare = warmth.min((-2, -1), keepdims=True) > line + 4
    if bare.all():
        return cover
    snow = np.float32(depth) / (1 + np.exp((warmth - np.float32(line) + np.float32(0.5) * land.patches[1]) / 1.2))
    hidden = snow * (1 - np.float32(0.75) * cover[spectra.TREE])
    salt_or_warm = (air > -6) | (place.water_kind in (COAST, SEA))
    hidden = np.where(bare | (salt_or_warm & (land.classes == WATER)), 0, hidden)
    visible = cover * (1 - hidden)
    visible[spectra.SNOW_COVER] += hidden
    return visible
