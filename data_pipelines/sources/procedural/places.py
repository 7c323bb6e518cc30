"""Where each sample lies and what covers it: everything that is known before a pixel is drawn."""

from dataclasses import dataclass, fields

import numpy as np

from data_pipelines.modalities import LAND_COVER, SCENE_CLASSES
from data_pipelines.sources.procedural import world
from data_pipelines.sources.procedural.chance import normals, uniforms

WATER, TREES, FLOODED, CROPS, BUILT, BARE, SNOW, RANGELAND = (
    LAND_COVER.index(name)
    for name in ("water", "trees", "flooded_vegetation", "crops", "built", "bare", "snow_ice", "rangeland")
)
_ORDER = [WATER, TREES, FLOODED, CROPS, BUILT, BARE, SNOW, RANGELAND]  # columns of Biome.cover
_SPREAD = np.array([2.1, 1.4, 1.9, 1.6, 2.0, 1.6, 1.7, 1.1])  # log-normal scatter of the shares among tiles
_LEAST = 0.004  # smaller shares vanish, as in a generalised map

_TYPICAL = {
    name: np.array([getattr(biome, name) for biome in world.BIOMES.values()])
    for name in ("cover", "altitude", "relief", "aridity")
}

RIVER, LAKE, COAST, SEA = range(4)
_SEA_SHARE, _COAST_SHARE = 0.035, 0.055


@dataclass(frozen=True)
class Place:
    """One sample's place.

    Attributes:
        lon, lat: degrees.
        biome: number in `world.BIOME_CODES`.
        altitude: metres above the sea.
        relief: standard deviation of elevation within the tile, metres.
        aridity: 0 to 1.
        water_kind: RIVER, LAKE, COAST or SEA.
        fractions: (10,) shares of the land-cover classes, summing to 1.
    """

    lon: float
    lat: float
    biome: int
    altitude: float
    relief: float
    aridity: float
    water_kind: int
    fractions: np.ndarray

    @property
    def climate(self) -> world.Biome:
        """Typical values of the biome."""
        return world.BIOMES[world.BIOME_CODES[self.biome]]


@dataclass(frozen=True)
class Places:
    """Columns of `Place` for many samples."""

    lon: np.ndarray
    lat: np.ndarray
    biome: np.ndarray
    altitude: np.ndarray
    relief: np.ndarray
    aridity: np.ndarray
    water_kind: np.ndarray
    fractions: np.ndarray

    def __getitem__(self, i: int) -> Place:
        row = {field.name: getattr(self, field.name)[i] for field in fields(self)}
        return Place(**{name: value if name == "fractions" else value.item() for name, value in row.items()})


def draw_places(seed: int, index: np.ndarray) -> Places:
    """Places of samples, each a function of (seed, its index) alone.

    Args:
        seed: of the source.
        index: (samples,) integers.
    """
    u, z = uniforms(seed, index, 10), normals(seed, index, 14)
    sea = u[:, 5] < _SEA_SHARE
    coast = ~sea & (u[:, 5] < _SEA_SHARE + _COAST_SHARE)
    lon, lat, biome = world.locate(u[:, :5], sea, coast)
    altitude = np.minimum(_TYPICAL["altitude"][biome] * np.exp(0.7 * z[:, 8]), 5600.0)
    altitude = np.where(sea | coast, 0.0, altitude)
    relief = np.clip(_TYPICAL["relief"][biome] * np.exp(1.0 * z[:, 9]), 1.5, 260.0)
    relief = np.where(coast, np.minimum(relief, 60.0), relief)
    aridity = np.clip(_TYPICAL["aridity"][biome] + 0.12 * z[:, 10], 0.02, 0.99)
    kind = np.where(sea, SEA, np.where(coast, COAST, np.where(u[:, 6] < 0.6, RIVER, LAKE)))
    shares = _shares(_TYPICAL["cover"][biome], z[:, :8], lat, altitude, relief)
    # A coast is cut anywhere; rivers cover little.
    water = np.where(coast, 0.03 + 0.9 * u[:, 7], shares[:, 0])
    water = np.where(kind == RIVER, np.minimum(water, 0.03 + 0.12 * u[:, 7]) * (water > 0), water)
    water = np.where(sea, 1.0, water)
    land = shares[:, 1:]
    total = land.sum(1, keepdims=True)
    land = np.where(total > 0, land / np.maximum(total, 1e-12), np.eye(7)[6])
    fractions = np.zeros((len(lon), len(LAND_COVER)))
    fractions[:, _ORDER] = np.concatenate([water[:, None], land * (1 - water[:, None])], axis=1)
    return Places(lon, lat, biome, altitude, relief, aridity, kind, fractions)


def _shares(cover: np.ndarray, z: np.ndarray, lat: np.ndarray, altitude: np.ndarray, relief: np.ndarray) -> np.ndarray:
    """Shares of the classes in `_ORDER`: log-normal about the biome's, bent by relief and cold, summing to 1."""
    warmth = world.mean_temperature(lat, altitude)
    steep = relief / 80.0
    bent = np.ones_like(cover)
    bent[:, 0] = np.exp(-0.7 * steep)
    bent[:, 1] = 1 / (1 + np.exp(-(warmth + 5.0) / 2.0))  # the tree line
    bent[:, 2] = np.exp(-2 * steep)
    bent[:, 3] = np.exp(-1.5 * steep) / (1 + np.exp(-(warmth - 1.0) / 2.0))
    bent[:, 4] = np.exp(-1.0 * steep) / (1 + np.exp(-(warmth + 4.0) / 2.0))
    bent[:, 5] = 1 + 1.5 * np.minimum(steep, 2.0)
    bent[:, 6] = 1 / (1 + np.exp(warmth + 3.0)) + 6.0 / (1 + np.exp((warmth + 9.0) / 1.5)) * (altitude > 800)
    weight = cover * bent * np.exp(_SPREAD * z)
    share = weight / weight.sum(1, keepdims=True)
    share = np.where(share < _LEAST, 0.0, share)
    return share / share.sum(1, keepdims=True)


def class_counts(fractions: np.ndarray, pixels: int) -> np.ndarray:
    """Whole numbers of pixels per class by largest remainders.

    Args:
        fractions: (samples, classes), rows summing to 1.
        pixels: of a tile; every row of the result sums to it.
    """
    exact = fractions * pixels
    counts = np.floor(exact).astype(np.int64)
    missing = pixels - counts.sum(1, keepdims=True)
    rank = np.argsort(np.argsort(-(exact - counts), axis=1, kind="stable"), axis=1, kind="stable")
    return counts + (rank < missing)


def dominant_scene(places: Places, pixels: int) -> np.ndarray:
    """Numbers in `modalities.SCENE_CLASSES`: the class with most pixels, or open sea."""
    scene = class_counts(places.fractions, pixels).argmax(1)
    return np.where(places.water_kind == SEA, SCENE_CLASSES.index("ocean"), scene).astype(np.int8)
