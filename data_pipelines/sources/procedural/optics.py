"""Sentinel-2 pictures of a scene: light on the ground, the air above it, the instrument.

Everything between ground and sensor is linear in a stack of fractions: sunlit materials, plus cloud, cirrus, haze
and the air's own light. So the stack is averaged to each native grid once, and a table of spectra turns it into the
bands of either product.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.modalities import modality
from data_pipelines.sources.procedural import spectra
from data_pipelines.sources.procedural.acquisition import Acquisition
from data_pipelines.sources.procedural.land_cover import LandCover
from data_pipelines.sources.procedural.noise import block_mean, smooth
from data_pipelines.sources.procedural.places import Place
from data_pipelines.sources.procedural.surface import Surface
from data_pipelines.sources.procedural.terrain import Terrain, cast_shadow
from data_pipelines.sources.procedural.weather import Weather

_WAVE = spectra.WAVELENGTH
_B09, _B10 = spectra.BANDS.index("B09"), spectra.BANDS.index("B10")
#                       B01    B02    B03    B04    B05    B06    B07    B08    B8A   B09  B10    B11    B12
_GAS = np.array([0.995, 0.985, 0.945, 0.965, 0.965, 0.965, 0.985, 0.955, 0.985, 1.0, 1.0, 0.970, 0.945], np.float32)
_VAPOUR = np.array([0, 0, 0, 0.003, 0.012, 0.010, 0.003, 0.020, 0.002, 0.83, 5.5, 0.012, 0.022], np.float32)
_CLOUD_TOA = np.array([0.97, 0.96, 0.95, 0.98, 1.0, 1.0, 1.01, 0.99, 1.02, 0.62, 1.0, 0.74, 0.58], np.float32)
_CLOUD_BOA = np.array([1.05, 1.02, 0.99, 1.0, 1.02, 1.02, 1.02, 1.03, 1.02, 1.0, 0.0, 0.78, 0.64], np.float32)
_CLOUD, _CIRRUS, _HAZE, _AIR = range(len(spectra.MATERIALS), len(spectra.MATERIALS) + 4)  # rows after the materials
_DIRECT = np.float32(0.84)  # share of the light that comes straight from the sun; the rest reaches shadows


@dataclass(frozen=True)
class Stack:
    """Sunlit fractions of what is seen from above.

    Attributes:
        rows: which of the materials, cloud, cirrus, haze and air (numbers below 14) occur in the scene.
        fractions: (rows, m, m).
    """

    rows: list[int]
    fractions: np.ndarray


def fraction_stack(
    place: Place, terrain: Terrain, land: LandCover, surface: Surface, weather: Weather, seen: Acquisition
) -> Stack:
    """Light the ground and put the air over it.

    Args:
        place: relief decides whether cast shadows are worth a look.
        terrain: coarse relief.
        land: slopes, water surfaces flat.
        surface: materials.
        weather: clouds, cirrus, haze.
        seen: sun.
    """
    light = illumination(place, terrain, land, seen, weather.light)
    light *= 1 + surface.texture * (np.float32(0.03) + np.float32(0.10) * surface.visible[spectra.TREE])
    clear = np.ones_like(light)
    over: dict[int, np.ndarray] = {_AIR: clear}
    if weather.cloud is not None:
        thickness = np.float32(0.45) + np.float32(0.55) * weather.cloud
        over[_CLOUD] = weather.cloud * (np.float32(weather.brightness) * thickness)
        clear *= 1 - weather.cloud
    if weather.cirrus is not None:
        over[_CIRRUS] = weather.cirrus
        clear *= 1 - weather.cirrus
    if weather.haze is not None:
        over[_HAZE] = weather.haze * clear
    materials = [row for row, cover in enumerate(surface.visible) if cover.any()]
    fractions = np.empty((len(materials) + len(over), *light.shape), np.float32)
    light *= clear
    for i, row in enumerate(materials):
        np.multiply(surface.visible[row], light, out=fractions[i])
    for i, image in enumerate(over.values()):
        fractions[len(materials) + i] = image
    return Stack([*materials, *over], fractions)


def take_pictures(
    spectrum: np.random.Generator,
    sensor: np.random.Generator,
    place: Place,
    stack: Stack,
    weather: Weather,
    seen: Acquisition,
    tile: int,
    wanted: set[str],
) -> dict[str, dict[int, np.ndarray]]:
    """Sentinel-2 products of one scene: modality -> grid -> (band, y, x).

    Args:
        spectrum: generator of the layer "spectra".
        sensor: generator of the layer "sensor".
        place: biome and altitude.
        stack: from `fraction_stack`.
        weather: the air.
        seen: sun and season.
        tile: side of the tile, pixels.
        wanted: modalities; what is none of Sentinel-2's is left alone.
    """
    palette = spectra.draw_palette(spectrum, place).at(seen.leaves, seen.warmth)
    whole = bool(wanted & {"S2L1C", "S2L2A"})
    stacks = native_stacks(stack.fractions, whole)
    noise = sensor_noise(sensor, tile, tuple(stacks))
    made: dict[str, dict[int, np.ndarray]] = {}
    if "S2L1C" in wanted:
        made["S2L1C"] = render("S2L1C", toa_table(palette, place, weather, seen)[:, stack.rows], stacks, noise)
    if wanted & {"S2L2A", "S2RGB", "NDVI"}:
        surface = render("S2L2A", boa_table(spectrum, palette, weather.aerosol)[:, stack.rows], stacks, noise)
        made["S2L2A"] = surface
        if "S2RGB" in wanted:
            made["S2RGB"] = {10: colour_composite(surface[10])}
        if "NDVI" in wanted:
            made["NDVI"] = {10: vegetation_index(surface[10])}
    return made


def illumination(
    place: Place, terrain: Terrain, land: LandCover, seen: Acquisition, under_clouds: np.ndarray | None = None
) -> np.ndarray:
    """(m, m) light on the ground over light on level ground in the open.

    Args:
        place: relief decides whether cast shadows are worth a look.
        terrain: coarse relief.
        land: slopes, water surfaces flat.
        seen: sun.
        under_clouds: (m, m) sunlight that clouds leave.
    """
    zenith, azimuth = np.deg2rad(seen.sun_zenith), np.deg2rad(seen.sun_azimuth)
    run_east, run_north = (np.float32(np.tan(zenith) * part) for part in (np.sin(azimuth), np.cos(azimuth)))
    direct = 1 - run_east * land.east - run_north * land.north
    direct = np.clip(direct / np.sqrt(1 + land.east**2 + land.north**2), 0, 2.2)
    if place.relief > 25:
        direct = direct * cast_shadow(terrain.coarse, len(land.elevation), seen.sun_zenith, seen.sun_azimuth)
    if under_clouds is not None:
        direct = direct * under_clouds
    return _DIRECT * direct + (1 - _DIRECT)


def toa_table(palette: np.ndarray, place: Place, weather: Weather, seen: Acquisition) -> np.ndarray:
    """Spectra of the stack at the top of the atmosphere: (13, 14).

    Single scattering: Rayleigh optical thickness after Bucholtz, aerosol with an Angstrom exponent of 1.3; gas and
    water-vapour transmission by band.
    """
    sun, view = np.cos(np.deg2rad(seen.sun_zenith)), 0.995
    mass = 1 / sun + 1 / view
    rayleigh = 0.00864 * _WAVE ** -(3.916 + 0.074 * _WAVE + 0.05 / _WAVE) * np.exp(-place.altitude / 8400)
    aerosol = weather.aerosol * (_WAVE / 0.55) ** -1.3
    path = (0.75 * (1 + sun**2) * rayleigh + 0.28 * aerosol) / (4 * sun * view)
    gas = _GAS * np.exp(-_VAPOUR * np.sqrt(weather.vapour + 0.02))
    scattered = np.exp(-(0.46 * rayleigh + 0.15 * aerosol) * mass)
    haze = (_WAVE / 0.55) ** -1.3
    cloud = _CLOUD_TOA.copy()
    cloud[_B10] = weather.cirrus_band
    cirrus = np.ones_like(cloud)
    cirrus[_B10] = 0.6
    air = np.clip(path, 0, 0.4)
    air[_B10] = 0.0
    columns = [*(palette * scattered), cloud / gas, cirrus / gas, haze, air]
    table = (np.stack(columns, axis=1) * gas[:, None]).astype(np.float32)
    table[_B10, -1] += np.float32(0.0008)  # stray light and dark signal
    return table


def boa_table(rng: np.random.Generator, palette: np.ndarray, aerosol: float) -> np.ndarray:
    """Spectra of the stack after an imperfect atmospheric correction: (13, 14), B10 left at zero.

    The aerosol estimate is off by some, so that a little of the air's light remains or too much is taken away; haze
    and cirrus mostly stay.
    """
    error = rng.normal(0.002, 0.004 + 0.025 * aerosol)
    air = error * (_WAVE / 0.49) ** -1.6
    gain = 1 + rng.normal(0, 0.015) + rng.normal(0, 0.01, len(_WAVE))
    haze = 0.7 * (_WAVE / 0.55) ** -1.3
    columns = [*(palette * gain), _CLOUD_BOA, np.ones_like(air), haze, air]
    table = np.stack(columns, axis=1).astype(np.float32)
    table[_B10] = 0
    return table


def sensor_noise(rng: np.random.Generator, tile: int, grids: tuple[int, ...]) -> dict[int, np.ndarray]:
    """Noise of unit variance of every L1C band on its native grid; L2A inherits that of L1C.

    Finer grids are drawn first, so that what they get does not depend on the coarser ones. Triangular, not normal:
    it is a few digital numbers, and takes a quarter of the time to draw.
    """
    noise = {}
    for gsd in sorted(grids):
        side = native_side(tile, gsd)
        noise[gsd] = np.empty((len(modality("S2L1C").grids[gsd]), side, side), np.float32)
        for image in noise[gsd]:
            bits = rng.integers(0, 2**32, (side, side), dtype=np.uint32)
            np.subtract(bits >> 16, bits & 0xFFFF, out=image, dtype=np.float32, casting="unsafe")
            image *= np.float32(np.sqrt(6) / 2**16)
    return noise


def native_side(tile: int, gsd: int) -> int:
    """Pixels along a side of a tile of `tile` pixels at 10 m on a native grid."""
    return -(-tile * 10 // gsd)


def native_stacks(stack: np.ndarray, whole: bool) -> dict[int, np.ndarray]:
    """The fraction stack averaged to every native grid, or (not `whole`) on that of 10 m alone."""
    if not whole:
        return {10: stack}
    twenty = block_mean(stack, 2)
    return {10: stack, 20: twenty, 60: block_mean(twenty, 3)}


def render(
    product: str, table: np.ndarray, stacks: dict[int, np.ndarray], noise: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """Digital numbers of a product on the grids given: {metres: (band, y, x) int16}.

    Args:
        product: "S2L1C" or "S2L2A".
        table: (13, rows) spectra of the stack.
        stacks: grid -> (rows, y, x), which may reach beyond the tile.
        noise: grid -> (bands of L1C on that grid, side, side) unit noise of the tile.
    """
    wanted = modality(product).band_names
    rasters = {}
    for gsd, stack in stacks.items():
        bands = modality("S2L1C").grids[gsd]
        keep = [i for i, band in enumerate(bands) if spectra.BANDS[band] in wanted]
        rows = table[[bands[i] for i in keep]] * np.float32(10000)
        number = (rows @ stack.reshape(len(stack), -1)).reshape(len(rows), *stack.shape[1:])
        if gsd == 10:
            number = smooth(number, (0.09, 0.82, 0.09))  # the instrument's modulation transfer
        side = noise[gsd].shape[-1]
        rasters[gsd] = np.empty((len(keep), side, side), np.int16)
        for image, band, out in zip(number[:, :side, :side], keep, rasters[gsd], strict=True):
            image += noise[gsd][band] * (np.float32(1.5) + np.float32(0.006) * image)
            np.clip(image, 1, 28000, out=image)
            np.rint(image, out=out, casting="unsafe")
    return rasters


def colour_composite(surface_10m: np.ndarray) -> np.ndarray:
    """(3, y, x) uint8 from the 10 m bands (B02 B03 B04 B08) of L2A, one linear stretch for the scene."""
    rgb = surface_10m[[2, 1, 0]].astype(np.float32)
    low, high = np.quantile(rgb[:, ::2, ::2], [0.01, 0.99])
    return np.clip((rgb - low) * (255 / max(high - low, 2000.0)), 0, 255).astype(np.uint8)


def vegetation_index(surface_10m: np.ndarray) -> np.ndarray:
    """(1, y, x) float16 normalised difference of B08 and B04 from the 10 m bands of L2A."""
    red, near = surface_10m[2].astype(np.float32), surface_10m[3].astype(np.float32)
    return ((near - red) / (near + red))[None].astype(np.float16)
