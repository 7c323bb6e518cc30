"""A year of pictures of one place: what `optics` and `radar` make of one date, of all dates at once."""

from collections.abc import Sequence

import numpy as np

from data_pipelines.modalities import modality
from data_pipelines.sources.procedural import spectra
from data_pipelines.sources.procedural.acquisition import Acquisition
from data_pipelines.sources.procedural.land_cover import LandCover
from data_pipelines.sources.procedural.noise import block_mean, smooth
from data_pipelines.sources.procedural.optics import boa_table, illumination, native_side
from data_pipelines.sources.procedural.places import Place
from data_pipelines.sources.procedural.radar import CELL, FLOOR, make_speckle, scattering_texture, slope_effect
from data_pipelines.sources.procedural.skies import Skies
from data_pipelines.sources.procedural.spectra import Palette
from data_pipelines.sources.procedural.surface import Surface
from data_pipelines.sources.procedural.terrain import Terrain

_LASTING = [spectra.GRASS, spectra.TREE, spectra.ROOF, spectra.ASPHALT]  # scatter alike on all dates


def optical_series(
    rng: np.random.Generator,
    place: Place,
    terrain: Terrain,
    land: LandCover,
    surface: Surface,
    palette: Palette,
    skies: Skies,
    passes: Sequence[Acquisition],
    tile: int,
) -> dict[int, np.ndarray]:
    """Sentinel-2 surface reflectance on every date: grid -> (dates, band, y, x) int16.

    Args:
        rng: of the layer "optics".
        place: relief.
        terrain, land: relief under the light.
        surface: materials on every date.
        palette: spectra of the sample.
        skies: the air.
        passes: of the sensor.
        tile: side of the tile, pixels.
    """
    rows, fractions = _fractions(place, terrain, land, surface, skies, passes)
    tables = np.stack([
        boa_table(rng, palette.at(seen.leaves, seen.warmth), aerosol)[:, rows]
        for seen, aerosol in zip(passes, skies.aerosol, strict=True)
    ])  # fmt: skip
    twenty = block_mean(fractions, 2)
    stacks = {10: fractions, 20: twenty, 60: block_mean(twenty, 3)}
    kept = modality("S2L2A").band_names
    series = {}
    for gsd, bands in modality("S2L1C").grids.items():
        chosen = [band for band in bands if spectra.BANDS[band] in kept]
        stack = stacks[gsd].reshape(*stacks[gsd].shape[:2], -1)
        number = (tables[:, chosen] * np.float32(10000)) @ stack
        number = number.reshape(-1, *stacks[gsd].shape[2:])
        if gsd == 10:
            number = smooth(number, (0.09, 0.82, 0.09))
        side = native_side(tile, gsd)
        number = number[:, :side, :side]
        number = number + _noise(rng, number.shape) * (np.float32(1.5) + np.float32(0.006) * number)
        np.clip(number, 1, 28000, out=number)
        series[gsd] = np.rint(number).astype(np.int16).reshape(len(passes), len(chosen), side, side)
    return series


def radar_series(
    rng: np.random.Generator,
    lasting: np.random.Generator,
    place: Place,
    land: LandCover,
    surface: Surface,
    passes: Sequence[Acquisition],
    tile: int,
) -> np.ndarray:
    """Sentinel-1 sigma nought on every date: (dates, 2, tile, tile) float16 dB.

    Plants and buildings scatter alike on all dates but for a little; wind on water, moist soil and wet snow change.

    Args:
        rng: of the layer "echoes".
        lasting: of the layer "radar", as a single picture uses it.
        place: biome, kind of water.
        land: classes, relief.
        surface: materials on every date.
        passes: of the radar; those of one orbit look from the same side.
        tile: side of the tile, pixels.
    """
    usual = spectra.backscatter_palette(lasting, place, 10.0)
    palettes = []
    for seen in passes:
        now = spectra.backscatter_palette(rng, place, seen.warmth)
        now[_LASTING] = usual[_LASTING] * 10 ** rng.normal(0, 0.03, (len(_LASTING), 2))
        palettes.append(now)
    cover = surface.cover.reshape(*surface.cover.shape[:2], -1).transpose(1, 0, 2)
    shape = (len(passes), 2, *surface.cover.shape[2:])
    power = (np.stack(palettes).astype(np.float32).transpose(0, 2, 1) @ cover).reshape(shape)
    power *= scattering_texture(lasting, land, surface)[:, None]
    power = smooth(power.reshape(-1, *shape[2:]), CELL).reshape(shape)
    orbits = {(seen.incidence, seen.look): seen for seen in passes}
    slopes = {orbit: slope_effect(land, seen) for orbit, seen in orbits.items()}
    scale = np.stack([slopes[seen.incidence, seen.look] * np.cos(np.deg2rad(seen.incidence)) for seen in passes])
    speckle = make_speckle(rng, (2 * len(passes), *shape[2:])).reshape(shape)
    decibel = 10 * np.log10((power * scale[:, None].astype(np.float32) + FLOOR) * speckle)
    return decibel[:, :, :tile, :tile].astype(np.float16)


def _fractions(
    place: Place,
    terrain: Terrain,
    land: LandCover,
    surface: Surface,
    skies: Skies,
    passes: Sequence[Acquisition],
) -> tuple[list[int], np.ndarray]:
    """Sunlit fractions of what is seen from above, as `optics.fraction_stack` has them: rows, (dates, rows, m, m)."""
    light = np.stack([
        illumination(place, terrain, land, seen, under) for seen, under in zip(passes, skies.light, strict=True)
    ])  # fmt: skip
    light *= 1 + surface.texture * (np.float32(0.03) + np.float32(0.10) * surface.visible[spectra.TREE])
    thickness = (np.float32(0.45) + np.float32(0.55) * skies.cloud) * skies.brightness[:, None, None].astype(np.float32)
    clear = (1 - skies.cloud) * (1 - skies.cirrus)
    over = [skies.cloud * thickness, skies.cirrus, skies.haze * clear, np.ones_like(clear)]
    materials = [row for row, cover in enumerate(surface.visible) if cover.any()]
    fractions = np.empty((len(passes), len(materials) + len(over), *light.shape[1:]), np.float32)
    light *= clear
    for i, row in enumerate(materials):
        np.multiply(surface.visible[row], light, out=fractions[:, i])
    for i, image in enumerate(over):
        fractions[:, len(materials) + i] = image
    return [*materials, *range(len(spectra.MATERIALS), len(spectra.MATERIALS) + len(over))], fractions


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Triangular noise of unit variance."""
    bits = rng.integers(0, 2**32, shape, dtype=np.uint32)
    return ((bits >> 16).astype(np.float32) - (bits & 0xFFFF)) * np.float32(np.sqrt(6) / 2**16)
