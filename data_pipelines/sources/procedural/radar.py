"""Sentinel-1 pictures of a scene: scattering by material, texture, slopes, speckle, noise floor."""

import numpy as np

from data_pipelines.sources.procedural import spectra
from data_pipelines.sources.procedural.acquisition import Acquisition
from data_pipelines.sources.procedural.land_cover import LandCover
from data_pipelines.sources.procedural.noise import smooth
from data_pipelines.sources.procedural.places import BUILT, Place
from data_pipelines.sources.procedural.surface import Surface

_LOOKS = 4.6  # equivalent number of looks of the ground-range product
_RESPONSE = (1.0, 2.0, 2.0, 1.0)  # a 20 m resolution cell sampled at 10 m: neighbours correlate by 0.8, 0.4, 0.1
FLOOR = np.array([10**-2.45, 10**-2.65], np.float32)[:, None, None]  # noise-equivalent power of VV and VH
CELL = (0.25, 0.5, 0.25)  # the ground that a pixel gathers
_RESIDUAL = 0.12  # of the slope effect in dB that terrain correction with a 30 m model leaves


def render_radar(
    rng: np.random.Generator, place: Place, land: LandCover, surface: Surface, seen: Acquisition, names: set[str]
) -> dict[str, np.ndarray]:
    """S1GRD (sigma nought) and S1RTC (terrain-flattened gamma nought) of one pass: (2, m, m) float16 dB each.

    Both show the same speckle. Clouds do not matter.

    Args:
        rng: of the layer "radar".
        place: biome, kind of water.
        land: classes, flat-water elevation, pattern fields.
        surface: materials.
        seen: incidence and look.
        names: which of the two to make.
    """
    palette = spectra.backscatter_palette(rng, place, seen.warmth)
    power = (palette.T @ surface.cover.reshape(len(palette), -1)).reshape(2, *surface.cover.shape[1:])
    power *= scattering_texture(rng, land, surface)
    power = smooth(power, CELL)
    speckle = make_speckle(rng, power.shape)
    slope = slope_effect(land, seen)
    level = np.float32(np.cos(np.deg2rad(seen.incidence)))
    scale = {"S1GRD": slope * level, "S1RTC": slope ** np.float32(_RESIDUAL)}
    return {
        name: (10 * np.log10((power * scale[name] + FLOOR) * speckle)).astype(np.float16)
        for name in ("S1GRD", "S1RTC")
        if name in names
    }


def scattering_texture(rng: np.random.Generator, land: LandCover, surface: Surface) -> np.ndarray:
    """Power factor of structure that the fractions do not tell: tillage by field, corners in towns, crowns."""
    decibel = np.float32(0.5) * land.patches[2] + np.float32(0.4) * land.patches[5]
    decibel = decibel + (1 + surface.cover[spectra.TREE]) * np.float32(0.5) * surface.texture
    if land.fields is not None:
        rough = rng.normal(0, 1.3, land.fields.count).astype(np.float32)
        decibel += rough[land.fields.ids] * (surface.cover[spectra.TREE] < 0.3)
    if land.blocks is not None:
        aligned = rng.exponential(2.0, land.blocks.count).astype(np.float32) - 1.5
        decibel += np.where(land.classes == BUILT, aligned[land.blocks.ids] + 1.5 * surface.texture, 0)
    water = surface.cover[spectra.WATER_BODY] + surface.cover[spectra.SILT]
    return 10 ** (decibel * (1 - np.float32(0.7) * water) / np.float32(10))


def slope_effect(land: LandCover, seen: Acquisition) -> np.ndarray:
    """Power on a slope over power on level ground: a pixel facing the radar holds more ground (foreshortening).

    Ratio of the sines of the incidence angles in the plane of the beam, 9 dB at most.
    """
    look = np.deg2rad(seen.look)
    away = np.float32(np.sin(look)) * land.east + np.float32(np.cos(look)) * land.north  # rising along the beam
    level = np.float32(np.deg2rad(seen.incidence))
    local = np.clip(level - np.arctan(away), 0.10, 1.45)
    return np.clip(np.sin(level) / np.sin(local), 0.13, 8.0) * np.where(local > 1.40, np.float32(0.3), 1)


def make_speckle(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Unit-mean gamma speckle with the correlation of the resolution cell.

    A filtered normal field goes through the Wilson-Hilferty cube, which turns it into gamma to within a per cent.
    """
    kernel = np.array(_RESPONSE) / np.sqrt(np.sum(np.square(_RESPONSE)))
    normal = smooth(rng.standard_normal(shape, dtype=np.float32), tuple(kernel))
    root = 1 - np.float32(1 / (9 * _LOOKS)) + normal * np.float32(1 / (3 * np.sqrt(_LOOKS)))
    return np.maximum(root, np.float32(0.2)) ** 3
