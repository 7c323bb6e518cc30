"""From what a corpus stores to rasters of the one schema: bands by name, dtypes, units, no data, georeference."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from data_pipelines import radiometry
from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, MODALITIES, Unit, modality
from data_pipelines.replication import native_or_fine
from data_pipelines.sample import Raster
from data_pipelines.sources.geotiff import scene_class

_THIN = 16  # every so many-th pixel is looked at where numbers are compared with their unit
_STRAY = 0.05  # share of normalised differences that may lie outside their range
_LARGEST = np.iinfo(np.int16).max


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes an error that names it, so that loaders can go on without it.

    Args:
        where: what messages call what is read.

    Raises:
        DataError: for everything that a file of another layout, or with other things in it, can lead to.
    """
    try:
        yield
    except DataError:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{where} is not of the expected layout ({reason}); fetch it again or remove it") from error


def to_raster(
    name: str,
    array: np.ndarray,
    where: str,
    *,
    bands: Sequence[str] | None = None,
    unit: Unit | None = None,
    time: np.datetime64 | np.ndarray | None = None,
    keep_nodata: bool = False,
) -> Raster:
    """A raster as the modality table wants it, of an image in which all bands share the 10 m grid.

    Bands are put into the table's order, power becomes decibels, numbers take the table's dtype, and bands that are
    exact copies of coarser pixels go back to their native grid.

    Args:
        name: modality.
        array: (band, y, x), or (time, band, y, x) for a series.
        where: what messages call it.
        bands: names of the bands as stored, in any case; None: they are the table's, in order.
        unit: of the numbers; None: the table's.
        time: of acquisition.
        keep_nodata: keep NaN instead of refusing it.

    Raises:
        DataError: if a band is missing, the numbers contradict their unit, or there is no data somewhere.
    """
    table = modality(name)
    array = ordered_bands(name, array, where, bands)
    array = converted(name, array, where, unit or table.unit)
    check_complete(name, array, where, keep_nodata)
    return native_or_fine(name, Raster({10: stored(name, array, where)}, table.unit, time))


def ordered_bands(name: str, array: np.ndarray, where: str, bands: Sequence[str] | None) -> np.ndarray:
    """The array with the bands of the modality table, in its order.

    Raises:
        DataError: if one is missing or unknown.
    """
    table = modality(name)
    names = table.band_names if bands is None else [str(band) for band in bands]
    if array.ndim not in (3, 4) or array.shape[-3] != len(names):
        raise DataError(
            f"{where} has shape {array.shape}, expected {len(names)} bands ({', '.join(names)}) of an image or a "
            "series; fetch it again or name the right modality"
        )
    known = {band.lower(): i for i, band in enumerate(names)}
    order = [known.get(band.lower(), -1) for band in table.band_names]
    if len(table.bands) == len(names) == 1:
        order = [0]  # elevation, classes: the one band goes by many names
    if -1 in order:
        missing = ", ".join(band for band, i in zip(table.band_names, order, strict=True) if i < 0)
        raise DataError(f"{where} has the bands {', '.join(names)}; {name} lacks {missing}")
    return array if order == list(range(len(names))) else array[..., order, :, :]


def converted(name: str, array: np.ndarray, where: str, unit: Unit) -> np.ndarray:
    """The numbers in the table's unit, after a look at a few of them.

    Raises:
        DataError: if they contradict the unit that they are said to have, or no conversion is known.
    """
    wanted = modality(name).unit
    if unit is wanted is Unit.CLASS:
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < len(LAND_COVER):
            raise DataError(f"{where} holds class {array.max()}; renumber its legend to 0..{len(LAND_COVER) - 1}")
        return array
    few = array[..., ::_THIN, ::_THIN]
    if unit is wanted is Unit.INDEX:
        # Reflectance that an offset was taken off can be negative over dark water: a few numbers go astray there.
        if np.mean(np.abs(few) > 1.01) > _STRAY:
            raise DataError(f"{where} is beyond -1..1 in many pixels; a normalised difference is not: rescale it")
        return array
    radiometry.check_plausible(where, Raster({10: few}, unit))
    if unit is wanted:
        return array
    conversions = {
        (Unit.LINEAR, Unit.DB): radiometry.linear_to_db,
        (Unit.REFLECTANCE, Unit.DN10000): radiometry.reflectance_to_dn,
    }
    if (unit, wanted) not in conversions:
        raise DataError(f"{where} is in {unit.value}; {name} is kept in {wanted.value}: convert it first")
    return conversions[unit, wanted](Raster({10: array}, unit)).grids[10]


def check_complete(name: str, array: np.ndarray, where: str, keep_nodata: bool) -> None:
    """Refuse an image with NaN in it.

    Raises:
        DataError: naming the band and how much of it is absent.
    """
    if array.dtype.kind != "f" or keep_nodata or not has_nan(array):
        return
    shares = np.isnan(array).mean(axis=tuple(i for i in range(array.ndim) if i != array.ndim - 3))
    band = int(shares.argmax())
    raise DataError(
        f"{where} has no data (NaN) in {shares[band]:.2%} of band {modality(name).band_names[band]}; "
        "leave the sample out, or open the source with keep_nodata"
    )


def has_nan(array: np.ndarray) -> bool:
    """Whether a floating-point array holds NaN or infinity."""
    if array.dtype != np.float16:
        return not np.isfinite(array).all()
    return bool(((array.view(np.uint16) & 0x7FFF) >= 0x7C00).any())  # many times faster than isfinite of float16


def stored(name: str, array: np.ndarray, where: str) -> np.ndarray:
    """The array in the table's dtype: integers exactly, decibels and indices to the nearest float16.

    Digital numbers beyond int16 are sensor saturation (reflectance above 3.27) and take its largest value.

    Raises:
        DataError: if integers do not fit.
    """
    table = modality(name)
    if array.dtype == table.dtype:
        return array
    if table.unit is Unit.DN10000 and array.dtype.kind == "u":
        return np.minimum(array, _LARGEST).astype(table.dtype)
    if table.unit is Unit.METRE and array.dtype.kind == "f":
        array = np.rint(array)
    with np.errstate(invalid="ignore"):
        cast = array.astype(table.dtype)
    if cast.dtype.kind != "f" and not np.array_equal(cast, array):
        raise DataError(f"{where} holds {array.dtype} numbers that {table.dtype} cannot; write it as {table.dtype}")
    return cast


def wanted_modalities(modalities: Sequence[str] | None, present: Sequence[str], where: str) -> tuple[str, ...]:
    """Which modalities to read, in the table's order.

    Args:
        modalities: what is asked for; None: all that there is.
        present: what the corpus has.
        where: what messages call it.

    Raises:
        DataError: if the corpus lacks one.
    """
    names = {modality(name).name for name in (present if modalities is None else modalities)}
    for name in names:
        if name not in present:
            raise DataError(f"{where} has no {name}; it has {', '.join(present) or 'nothing that is known'}")
    return tuple(name for name in MODALITIES if name in names)


def scene_of(rasters: Mapping[str, Raster]) -> dict[str, int]:
    """The attribute "scene" of a sample whose land cover was read; nothing otherwise."""
    cover = rasters.get("LULC")
    if cover is None:
        return {}
    relief = rasters.get("DEM")
    return {"scene": scene_class(cover.grids[10], None if relief is None else next(iter(relief.grids.values())))}


def decode_times(values: np.ndarray, attributes: Mapping[str, Any], where: str) -> np.ndarray:
    """CF times as datetime64[s]; nanoseconds since 1970 where the attributes name no unit.

    Raises:
        DataError: if the unit is not understood.
    """
    values = np.asarray(values)
    if values.dtype.kind == "M":
        return values.astype("datetime64[s]")
    stated = str(attributes.get("units", "nanoseconds since 1970-01-01"))
    try:
        origin, multiply, divide = _epoch(stated)
    except ValueError as error:
        raise DataError(f"{where} has times in {stated!r}; write them as seconds since 1970-01-01") from error
    return (values.astype(np.int64) * multiply // divide + origin).view("datetime64[s]")


@functools.lru_cache(maxsize=64)
def _epoch(stated: str) -> tuple[int, int, int]:
    """Of a CF unit ("hours since 2020-01-01"): seconds from 1970 to its origin, and those of one as a fraction."""
    unit, _, origin = stated.partition(" since ")
    name = unit.strip().rstrip("s")
    if name not in _TIME_UNITS or not origin.strip():
        raise ValueError(stated)
    start = np.datetime64(origin.strip().replace(" ", "T").removesuffix("Z")).astype("datetime64[s]")
    return int(start.astype(np.int64)), *_TIME_UNITS[name]


_TIME_UNITS = {
    "nanosecond": (1, 10**9), "microsecond": (1, 10**6), "millisecond": (1, 1000), "second": (1, 1),
    "minute": (60, 1), "hour": (3600, 1), "day": (86_400, 1),
}  # fmt: skip


def utm_epsg(lon: float, lat: float) -> int:
    """Code of the UTM zone of a place."""
    zone = min(int((lon + 180) // 6) + 1, 60)
    return (32600 if lat >= 0 else 32700) + zone


@functools.lru_cache(maxsize=4096)
def epsg_of(text: str) -> int | None:
    """EPSG code of a coordinate system given as well-known text or `EPSG:32631`; None where it has none."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        return CRS.from_user_input(text).to_epsg()
    except (CRSError, ValueError):
        return None


def transform_of_axes(x: np.ndarray, y: np.ndarray, where: str) -> tuple[float, float, float, float, float, float]:
    """Affine of a north-up 10 m grid whose pixel centres are given.

    Raises:
        DataError: if the spacing is not 10 m.
    """
    a, e = (float(axis[-1] - axis[0]) / max(len(axis) - 1, 1) for axis in (x, y))
    if abs(a - 10) > 0.1 or abs(e + 10) > 0.1:
        raise DataError(f"{where} has pixels of {a:g} x {e:g}; expected a north-up grid of 10 m")
    return 10.0, 0.0, float(x[0]) - 5, 0.0, -10.0, float(y[0]) + 5


def centred_transform(
    lon: float, lat: float, epsg: int, shape: tuple[int, int]
) -> tuple[float, float, float, float, float, float]:
    """Affine of a north-up 10 m grid of which only the centre is known."""
    from rasterio.warp import transform

    (x,), (y,) = transform("EPSG:4326", f"EPSG:{epsg}", [lon], [lat])
    return 10.0, 0.0, x - 5 * shape[1], 0.0, -10.0, y + 5 * shape[0]
