"""The air over a place on every date of a series: clouds as unscreened archives have them, shadows, cirrus, haze."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural.acquisition import Acquisition
from data_pipelines.sources.procedural.noise import nodes_for, to_pixels
from data_pipelines.sources.procedural.places import Place
from data_pipelines.sources.procedural.textures import cloud_fields, window
from data_pipelines.sources.procedural.weather import STEP, cloud_and_shadow, shadow_offset


@dataclass(frozen=True)
class Skies:
    """State of the air on each date.

    Attributes:
        cloud: (dates, m, m) opacity of water clouds, 0 to 1.
        light: (dates, m, m) sunlight that cloud shadows leave, 0 to 1.
        cirrus: (dates, m, m) reflectance of thin ice cloud.
        haze: (dates, m, m) reflectance at 0.55 um of uneven haze.
        brightness: (dates,) reflectance of thick cloud.
        aerosol: (dates,) optical thickness at 0.55 um.
    """

    cloud: np.ndarray
    light: np.ndarray
    cirrus: np.ndarray
    haze: np.ndarray
    brightness: np.ndarray
    aerosol: np.ndarray

    def cloud_fraction(self, tile: int) -> np.ndarray:
        """(dates,) float32 share of the tile under clouds of an opacity above one half."""
        return (self.cloud[:, :tile, :tile] > 0.5).mean((1, 2), dtype=np.float32)


def draw_skies(rng: np.random.Generator, place: Place, passes: Sequence[Acquisition], pixels: int) -> Skies:
    """Draw the air of a series. Some places and rainy seasons are cloudier than others; cover is mostly little or much.

    Args:
        rng: of the layer "skies".
        place: biome and aridity.
        passes: of the optical sensor.
        pixels: side m.
    """
    dates, size = len(passes), nodes_for(pixels, STEP)
    usual = np.clip(1.5 * place.climate.cloudiness + rng.normal(0, 0.2), 0.08, 0.92)
    cloudy = rng.random(dates) < usual * _rain(place, passes)
    cover = np.clip(rng.beta(0.6, 0.8, dates), 0.01, 0.99)
    heaps = rng.random(dates) < 0.6
    height = np.where(heaps, rng.uniform(600, 1800, dates), rng.uniform(1000, 3500, dates))
    softness = np.where(heaps, rng.uniform(0.15, 0.45, dates), rng.uniform(0.4, 1.2, dates)).astype(np.float32)
    veiled, hazy = rng.random(dates) < 0.14, rng.random(dates) < 0.25
    thin, thick = rng.gamma(1.5, 0.012, dates), rng.gamma(1.2, 0.015, dates)
    corners = rng.integers(0, cloud_fields().shape[-1], (dates, 3, 2))
    which = rng.integers(0, 2, dates)
    flat = np.zeros((4, dates, pixels, pixels), np.float32)
    cloud, light, cirrus, haze = flat
    light += 1
    if cloudy.any():
        above = [
            _overhead(cloud_fields()[which[i] + 2 * (not heaps[i])], corners[i, 0], height[i], passes[i], size)
            for i in np.flatnonzero(cloudy).tolist()
        ]
        threshold = [np.quantile(pair[0], 1 - share) for pair, share in zip(above, cover[cloudy], strict=True)]
        fields = to_pixels(np.stack(above, axis=1), pixels, STEP)
        edge = np.array(threshold, np.float32)[:, None, None]
        cloud[cloudy], light[cloudy] = cloud_and_shadow(fields, edge, softness[cloudy, None, None])
    for i in np.flatnonzero(veiled):
        streaks = to_pixels(window(cloud_fields()[2 + which[i]], corners[i, 1], size), pixels, STEP)
        cirrus[i] = thin[i] * np.exp(np.float32(0.5) * np.clip(streaks, -3, 2))
    for i in np.flatnonzero(hazy):
        field = to_pixels(window(cloud_fields()[3 - which[i]], corners[i, 2], size), pixels, STEP)
        haze[i] = thick[i] * np.exp(np.float32(0.4) * np.clip(field, -3, 3))
    aerosol = np.clip(rng.lognormal(np.log(0.09 + 0.04 * place.aridity), 0.6, dates), 0.02, 0.7)
    return Skies(cloud, light, cirrus, haze, rng.uniform(0.5, 0.9, dates), aerosol)


def _rain(place: Place, passes: Sequence[Acquisition]) -> np.ndarray:
    """(dates,) factor of cloudiness: more in the rainy season where there is one."""
    day = np.array([seen.day for seen in passes])
    if not place.climate.wet_season:
        return np.ones(len(day))
    peak = place.climate.wet_season + (0 if place.lat >= 0 else 182)
    return 1 + 0.6 * np.cos(2 * np.pi * (day - peak) / 365.25)


def _overhead(field: np.ndarray, corner: np.ndarray, height: float, seen: Acquisition, size: int) -> np.ndarray:
    """(2, size, size) the field overhead, and along the sun's ray."""
    return np.stack([window(field, at, size) for at in (corner, corner + shadow_offset(height, seen))])
