"""Relief: valleys, tributaries and ridges from folded noise, so that water lies low without a model of its flow."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural.noise import central_differences, fractal_fields, nodes_for, to_pixels
from data_pipelines.sources.procedural.places import COAST, SEA, Place

STEP = 3  # pixels between nodes: elevation models resolve about 30 m


@dataclass(frozen=True)
class Terrain:
    """Shape of the ground, before water is poured.

    Attributes:
        coarse: elevation on nodes of `STEP` pixels, metres, with two nodes of margin.
        elevation: (m, m) metres.
        channel: (m, m) distance to the nearest valley line, pixels.
    """

    coarse: np.ndarray
    elevation: np.ndarray
    channel: np.ndarray


def make_terrain(rng: np.random.Generator, place: Place, pixels: int) -> Terrain:
    """Synthesise the relief of a square.

    Parallel winding valleys, tributaries that run into them and deepen on the way, rough ground between; blended
    with plain fractal hills, for not all relief was made by rivers.

    Args:
        rng: of the layer "terrain".
        place: altitude, relief and kind of water.
        pixels: side m, at 10 m.
    """
    size = nodes_for(pixels, STEP)
    metres = (np.arange(size, dtype=np.float32) - size / 2) * np.float32(10 * STEP)
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(250, 900)
    spacing = rng.uniform(1100, 3600)  # between main valleys, metres
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    across, along = metres[:, None] * sine + metres * cosine, metres[:, None] * cosine - metres * sine
    winding, shift = fractal_fields(rng, 2, size, 4.2, bend / (10 * STEP))
    hills, rough = fractal_fields(rng, 2, size, 3.9, spacing / (60 * STEP))
    line = across + np.float32(bend * rng.uniform(0.3, 0.8)) * winding
    line = line - line[tuple(rng.integers(size // 4, size - size // 4, 2))]  # the river passes through this node
    valley = _fold(line / np.float32(spacing), 0.3 / (1 + place.relief / 12))  # wide floors in lowlands
    side = _fold(along / np.float32(spacing * rng.uniform(0.2, 0.4)) + np.float32(1.1) * shift + valley, 0.1)
    carved = valley + np.float32(0.6) * valley * side + np.float32(0.12) * np.sqrt(valley) * np.abs(rough)
    share = np.float32(rng.uniform(0.1, 0.6))
    shape = (1 - share) * carved / carved.std() + share * hills
    if place.water_kind in (COAST, SEA):
        shape = across / np.float32(metres[-1]) * np.float32(2) + np.float32(0.8) * winding + np.float32(0.15) * shape
    shape = (shape - shape.mean()) / (shape.std() + np.float32(1e-6))
    relief = place.relief * min(pixels / 200, 1.8) ** 0.8  # a small tile sees part of a hillside
    coarse = np.float32(place.altitude) + np.float32(relief) * shape
    if place.water_kind not in (COAST, SEA):
        coarse += max(2 - float(coarse.min()), 0)
    elevation, line = to_pixels(np.stack([coarse, line]), pixels, STEP)
    down, right = central_differences(line)
    channel = np.abs(line) / (np.hypot(down, right) + np.float32(2.0))
    return Terrain(coarse, elevation, channel)


def _fold(phase: np.ndarray, rounding: float) -> np.ndarray:
    """Triangle wave of period 1 from 0 to about 1, its lower corners rounded."""
    folded = 2 * np.abs(phase - np.rint(phase))
    return np.maximum(np.sqrt(folded**2 + np.float32(rounding**2)) - np.float32(rounding), 0)


def slopes(elevation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rise per metre towards east and towards north of a 10 m elevation grid."""
    down, right = central_differences(elevation)
    return right * np.float32(0.1), down * np.float32(-0.1)


def cast_shadow(coarse: np.ndarray, pixels: int, zenith: float, azimuth: float) -> np.ndarray:
    """Light that relief lets through, 0 (in shadow) to 1.

    Marches from every node towards the sun on the coarse grid and compares the ray's height with the ground.

    Args:
        coarse: elevation of `Terrain`.
        pixels: side of the result.
        zenith, azimuth: of the sun, degrees, azimuth clockwise from north.
    """
    gain = 10 * STEP / np.tan(np.deg2rad(zenith))  # metres the ray rises per node
    size = coarse.shape[0]
    light = np.ones_like(coarse)
    reach = min(size // 2, int((coarse.max() - coarse.min()) / gain) + 1)
    for step in np.unique(np.geomspace(1, max(reach, 1), 9).astype(int)):
        down = round(-step * float(np.cos(np.deg2rad(azimuth))))
        right = round(step * float(np.sin(np.deg2rad(azimuth))))
        rows = np.clip(np.arange(size) + down, 0, size - 1)
        columns = np.clip(np.arange(size) + right, 0, size - 1)
        over = coarse[rows[:, None], columns] - coarse - np.float32(gain * step)
        light = np.minimum(light, np.clip(1 - over / 8, 0, 1))
    return to_pixels(light, pixels, STEP)
