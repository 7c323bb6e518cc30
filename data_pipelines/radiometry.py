"""Units and grids of rasters: explicit conversions, plausibility, native grids.

A raster says what its numbers mean (`modalities.Unit`). Nothing here guesses: a conversion is asked for by name,
and a raster whose numbers contradict its unit is refused.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, Modality, Unit, modality
from data_pipelines.sample import Raster

_SCALE = 10_000  # digital numbers per unit of reflectance
_ELEVATIONS = (-12_000, 9_000)  # metres, the deepest trench to Everest


def require(raster: Raster, unit: Unit, name: str = "raster") -> Raster:
    """Return the raster if it has the unit.

    Raises:
        DataError: if it has another one.
    """
    if raster.unit is not unit:
        raise DataError(
            f"{name} is in {raster.unit.value}, expected {unit.value}; convert it with data_pipelines.radiometry"
        )
    return raster


def dn_to_reflectance(raster: Raster) -> Raster:
    """Sentinel-2 digital numbers -> reflectance, float32."""
    require(raster, Unit.DN10000)
    return _mapped(raster, Unit.REFLECTANCE, lambda dn: dn.astype(np.float32) / np.float32(_SCALE))


def reflectance_to_dn(raster: Raster) -> Raster:
    """Reflectance -> Sentinel-2 digital numbers, int16, rounded.

    Raises:
        DataError: if a value is not finite or does not fit.
    """
    require(raster, Unit.REFLECTANCE)

    def convert(values: np.ndarray) -> np.ndarray:
        dn = np.rint(values.astype(np.float64) * _SCALE)
        if not np.all(np.abs(dn) <= np.iinfo(np.int16).max):
            raise DataError(
                "reflectance does not fit int16 digital numbers (NaN or beyond 3.2767); mask or clip it first"
            )
        return dn.astype(np.int16)

    return _mapped(raster, Unit.DN10000, convert)


def db_to_linear(raster: Raster) -> Raster:
    """Backscatter in decibels -> power, float32."""
    require(raster, Unit.DB)
    return _mapped(raster, Unit.LINEAR, lambda db: np.power(np.float32(10), db.astype(np.float32) / np.float32(10)))


def linear_to_db(raster: Raster) -> Raster:
    """Backscatter power -> decibels, float32; NaN where there is no power."""
    require(raster, Unit.LINEAR)

    def convert(power: np.ndarray) -> np.ndarray:
        power = power.astype(np.float32)
        return np.float32(10) * np.log10(np.where(power > 0, power, np.nan).astype(np.float32))

    return _mapped(raster, Unit.DB, convert)


def check_plausible(name: str, raster: Raster) -> None:
    """Refuse numbers that contradict their unit: decibels given as power, reflectance as digital numbers, and back.

    Backscatter in decibels is mostly negative and power never is; reflectance seldom exceeds 1 while digital
    numbers of the darkest water are in the tens. Classes, elevations and normalised differences must keep to their
    ranges.

    Args:
        name: what the message calls the raster, for example its file.
        raster: to be checked.

    Raises:
        DataError: naming the raster, and where it is a mix-up the stated and the likely unit.
    """
    values = np.concatenate([grid.reshape(-1) for grid in raster.grids.values()])
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if values.size == 0:
        return
    low, high = values.min(), values.max()
    if raster.unit is Unit.CLASS and not np.isin(values, np.arange(len(LAND_COVER))).all():
        stray = values[~np.isin(values, np.arange(len(LAND_COVER)))].max()
        raise DataError(
            f"{name} holds class {stray:g}; renumber its legend to 0..{len(LAND_COVER) - 1} (modalities.LAND_COVER)"
        )
    if raster.unit is Unit.METRE and not (_ELEVATIONS[0] <= low and high <= _ELEVATIONS[1]):
        raise DataError(
            f"{name} ranges from {low:g} to {high:g}; elevations lie within {_ELEVATIONS[0]}..{_ELEVATIONS[1]} m: "
            "rescale it, or fill what is no data"
        )
    if raster.unit is Unit.INDEX and max(-low, high) > 1.01:
        raise DataError(
            f"{name} ranges from {low:g} to {high:g}; a normalised difference lies within -1..1: rescale it"
        )
    likely = likely_unit(values, raster.unit)
    if likely is not raster.unit:
        raise DataError(
            f"{name} is said to be in {raster.unit.value} but its numbers ({low:g} to {high:g}) "
            f"look like {likely.value}; convert it to {raster.unit.value} first"
        )


def likely_unit(values: np.ndarray, stated: Unit) -> Unit:
    """Unit that numbers look like, given the one that they are said to have: the same, unless they contradict it.

    Args:
        values: finite, any shape, at least one.
        stated: what is mixed up with another is DB, LINEAR, REFLECTANCE and DN10000; others are returned.
    """
    high = values.max()
    if stated is Unit.DB and high > 0 and np.mean(values < 0) < 0.01:
        return Unit.DN10000 if np.median(values) > 100 else Unit.LINEAR
    if stated is Unit.LINEAR and np.mean(values < 0) > 0.01:
        return Unit.DB
    if stated is Unit.REFLECTANCE and np.median(values) > 3:
        return Unit.DN10000
    if stated is Unit.DN10000 and 0 < high <= 3:
        return Unit.REFLECTANCE
    if stated is Unit.DN10000 and np.median(values) < 0:
        return Unit.DB
    return stated


def to_native_grids(name: str, raster: Raster) -> Raster:
    """Split a raster resampled to 10 m into the grids that its bands were sensed on.

    Lossless: every 20 m and 60 m band must be an exact nearest-neighbour copy on the lattice that starts at the
    top-left corner (the last cells may be cut off).

    Args:
        name: modality.
        raster: its one grid is 10 m with every band, (..., band, y, x); native grids pass unchanged.

    Raises:
        DataError: naming the first band that is no such copy.
    """
    table = modality(name)
    if _is_native(table, raster):
        return raster
    array = _single_grid(table, raster)
    grids = {}
    for gsd, bands in table.grids.items():
        step = gsd // 10
        fine = array[..., list(bands), :, :]
        coarse = np.ascontiguousarray(fine[..., ::step, ::step])
        copies = _repeated(coarse, step, fine.shape[-2:])
        for i, band in enumerate(bands):
            if not np.array_equal(copies[..., i, :, :], fine[..., i, :, :], equal_nan=fine.dtype.kind == "f"):
                raise DataError(
                    f"{name} band {table.bands[band].name} is not a {step} x {step} copy of its {gsd} m pixels; "
                    "cut tiles on the 60 m lattice and resample with nearest neighbour"
                )
        grids[gsd] = coarse
    return replace(raster, grids=grids)


def to_10m(name: str, raster: Raster) -> Raster:
    """Repeat coarse pixels so that all bands share the 10 m grid, in table order: the inverse of `to_native_grids`.

    Args:
        name: modality.
        raster: on native grids; one 10 m grid with every band passes unchanged.

    Raises:
        DataError: if a grid of the modality is missing or the grids do not fit each other.
    """
    table = modality(name)
    if not _is_native(table, raster):
        _single_grid(table, raster)
        return raster
    shape = raster.grids[10].shape[-2:]
    lead = raster.grids[10].shape[:-3]
    out = np.empty((*lead, len(table.bands), *shape), raster.grids[10].dtype)
    for gsd, bands in table.grids.items():
        step, coarse = gsd // 10, raster.grids[gsd]
        if coarse.shape[-2:] != tuple(-(-side // step) for side in shape):
            raise DataError(f"{name}: {coarse.shape[-2:]} pixels of {gsd} m do not cover {shape} pixels of 10 m")
        out[..., list(bands), :, :] = _repeated(coarse, step, shape)
    return replace(raster, grids={10: out})


def _is_native(table: Modality, raster: Raster) -> bool:
    return tuple(sorted(raster.grids)) == tuple(table.grids)


def _single_grid(table: Modality, raster: Raster) -> np.ndarray:
    array = raster.grids.get(10)
    if len(raster.grids) != 1 or array is None or array.shape[-3] != len(table.bands):
        held = ", ".join(f"{grid.shape[-3]} bands at {gsd} m" for gsd, grid in raster.grids.items())
        raise DataError(f"{table.name} needs its {len(table.bands)} bands at 10 m or on native grids; it has {held}")
    return array


def _repeated(coarse: np.ndarray, step: int, shape: tuple[int, int]) -> np.ndarray:
    return coarse.repeat(step, axis=-2)[..., : shape[0], :].repeat(step, axis=-1)[..., : shape[1]]


def _mapped(raster: Raster, unit: Unit, function: Callable[[np.ndarray], np.ndarray]) -> Raster:
    return replace(raster, grids={gsd: function(grid) for gsd, grid in raster.grids.items()}, unit=unit)
