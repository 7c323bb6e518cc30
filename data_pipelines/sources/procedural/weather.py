"""Clouds, their shadows, cirrus and haze over one scene, as a cloud-screened archive still has them."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural.acquisition import Acquisition
from data_pipelines.sources.procedural.noise import fractal_fields, nodes_for, to_pixels
from data_pipelines.sources.procedural.places import Place

STEP = 4  # pixels between nodes
FARTHEST = 160  # pixels between a cloud and its shadow, at most


@dataclass(frozen=True)
class Weather:
    """State of the air.

    Attributes:
        cloud: (m, m) opacity of water clouds, 0 to 1; None if there are none.
        light: (m, m) sunlight that cloud shadows leave, 0 to 1; None if there are no clouds.
        cirrus: (m, m) reflectance of thin ice cloud; None if there is none.
        haze: (m, m) reflectance at 0.55 um of uneven haze; None if the air is even.
        brightness: reflectance of thick cloud.
        cirrus_band: what of the clouds' reflectance reaches B10, by their height.
        aerosol: optical thickness at 0.55 um of the even part.
        vapour: water vapour, centimetres.
    """

    cloud: np.ndarray | None
    light: np.ndarray | None
    cirrus: np.ndarray | None
    haze: np.ndarray | None
    brightness: float
    cirrus_band: float
    aerosol: float
    vapour: float

    def cloud_fraction(self, tile: int) -> float:
        """Share of the tile under clouds of an opacity above one half."""
        return 0.0 if self.cloud is None else float((self.cloud[:tile, :tile] > 0.5).mean())


def draw_weather(rng: np.random.Generator, place: Place, seen: Acquisition, pixels: int) -> Weather:
    """Draw the weather of a scene.

    Args:
        rng: of the layer "weather".
        place: biome, altitude, aridity.
        seen: sun and warmth.
        pixels: side m.
    """
    cloudy, cover = rng.random() < place.climate.cloudiness, rng.beta(0.6, 2.5)
    veiled, hazy = rng.random() < 0.14, rng.random() < 0.25
    aerosol = float(np.clip(rng.lognormal(np.log(0.09 + 0.04 * place.aridity), 0.6), 0.02, 0.7))
    moisture = np.exp(0.06 * seen.warmth - place.altitude / 2400 + rng.normal(0, 0.3)) * (1.1 - 0.5 * place.aridity)
    brightness, high = float(rng.uniform(0.5, 0.9)), float(rng.gamma(1.2, 0.012))
    size = nodes_for(pixels, STEP)
    cloud = light = cirrus = haze = None
    if cloudy:
        cloud, light = _clouds(rng, cover, seen, pixels)
    if veiled:
        streaks = fractal_fields(rng, 2, size, 3.2, 60, stretch=rng.uniform(1.5, 4))[0]
        streaks = to_pixels(streaks.T if rng.random() < 0.5 else streaks, pixels, STEP)
        cirrus = rng.gamma(1.5, 0.012) * np.exp(np.float32(0.5) * np.clip(streaks, -3, 2))
    if hazy:
        field = to_pixels(fractal_fields(rng, 2, size, 3.5, 80)[0], pixels, STEP)
        haze = rng.gamma(1.2, 0.015) * np.exp(np.float32(0.4) * np.clip(field, -3, 3))
    return Weather(cloud, light, cirrus, haze, brightness, high, aerosol, float(np.clip(moisture, 0.08, 5.5)))


def _clouds(rng: np.random.Generator, cover: float, seen: Acquisition, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of the clouds and the light under them; the shadow is the cloud field seen along the sun's ray."""
    cumulus = rng.random() < 0.6
    height = rng.uniform(600, 1800) if cumulus else rng.uniform(1000, 3500)
    margin = FARTHEST // STEP
    size = nodes_for(pixels, STEP)
    outer = rng.uniform(4, 16) if cumulus else rng.uniform(40, 90)
    field = fractal_fields(rng, 2, size + 2 * margin, 3.3 if cumulus else 3.0, outer)[0]
    here = field[margin : margin + size, margin : margin + size]
    threshold = np.quantile(here, 1 - cover)
    softness = np.float32(rng.uniform(0.15, 0.45) if cumulus else rng.uniform(0.4, 1.2))
    down, right = shadow_offset(height, seen)
    sunward = field[margin + down : margin + down + size, margin + right : margin + right + size]
    both = to_pixels(np.stack([here, sunward]), pixels, STEP)
    return cloud_and_shadow(both, np.float32(threshold), softness)


def cloud_and_shadow(
    fields: np.ndarray, threshold: np.ndarray | np.float32, softness: np.ndarray | np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Opacity of clouds, and the sunlight that others leave.

    Args:
        fields: (2, ..., m, m) cloud field overhead and along the sun's ray.
        threshold: of the field, where clouds begin.
        softness: of their edges.
    """
    opacity = np.clip((fields - threshold) / softness + np.float32(0.5), 0, 1)
    return opacity[0] * (2 - opacity[0]) * np.float32(0.98), 1 - np.float32(0.85) * opacity[1]


def shadow_offset(height: float, seen: Acquisition) -> tuple[int, int]:
    """Nodes down and right to where the cloud that shades a pixel lies: towards the sun."""
    reach = min(height * np.tan(np.deg2rad(seen.sun_zenith)) / 10, FARTHEST)
    azimuth = np.deg2rad(seen.sun_azimuth)
    return round(-reach / STEP * np.cos(azimuth)), round(reach / STEP * np.sin(azimuth))
