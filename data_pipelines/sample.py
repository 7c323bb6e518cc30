"""One georeferenced multi-modal sample: what every source yields and every recipe takes."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, Unit, modality

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Raster:
    """One modality of a sample, each band on a grid that it is stored on.

    Attributes:
        grids: metres per pixel -> array (band, y, x), or (time, band, y, x) for a series. Bands of one grid are in
            the modality table's order. Native Sentinel-2 storage has the grids 10, 20 and 60; a raster whose bands
            were all resampled to 10 m has the one grid 10 with every band. Very high resolution has its modality's
            `detail` times as many pixels a side as its grid says.
        unit: what the numbers mean.
        time: acquisition time, a datetime64[s] scalar or one per frame; None where there is none (elevation).
        frames: further facts of a series' frames, name -> (time,): "cloud_fraction", "ascending".
    """

    grids: Mapping[int, np.ndarray]
    unit: Unit
    time: np.datetime64 | np.ndarray | None = None
    frames: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Co-registered rasters of one place.

    Attributes:
        key: unique name within its source.
        rasters: modality name -> Raster; absent modalities are absent keys.
        lon, lat: centre, degrees (WGS 84).
        epsg: code of the projected coordinate system.
        transform: affine of the 10 m grid (a, b, c, d, e, f): x = a col + b row + c, y = d col + e row + f.
        source: name of the source that made it.
        attributes: further scalars worth keeping (cloud fraction, product id, ...).
    """

    key: str
    rasters: Mapping[str, Raster]
    lon: float
    lat: float
    epsg: int
    transform: tuple[float, float, float, float, float, float]
    source: str = ""
    attributes: Mapping[str, float | int | str | bool] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the 10 m grid."""
        for name, raster in self.rasters.items():
            if 10 in raster.grids:
                detail = modality(name).detail
                height, width = raster.grids[10].shape[-2:]
                return height // detail, width // detail
        raise ValueError(f"sample {self.key} has no 10 m grid")


def grid_bands(name: str, grids: Mapping[int, np.ndarray]) -> dict[int, tuple[str, ...]]:
    """Names of the bands that each stored grid holds: native grids, or one grid with all bands."""
    table = modality(name)
    if len(grids) == 1:
        return {next(iter(grids)): table.band_names}
    return {gsd: tuple(table.bands[i].name for i in index) for gsd, index in table.grids.items()}


# ---- xarray -------------------------------------------------------------------------------------------------------

_CF_UNITS = {Unit.DN10000: "1e-4", Unit.DB: "dB", Unit.METRE: "m", Unit.DEGREE: "degree"}  # all others: "1"
_CF_NAMES = {
    "S2L1C": "toa_bidirectional_reflectance",
    "S2L2A": "surface_bidirectional_reflectance",
    "S1GRD": "surface_backwards_scattering_coefficient_of_radar_wave",
    "S1RTC": "surface_backwards_scattering_coefficient_of_radar_wave",
    "DEM": "surface_altitude",
    "NDVI": "normalized_difference_vegetation_index",
}


def to_dataset(sample: Sample) -> "xarray.Dataset":
    """View a sample as a CF dataset that xarray, rioxarray and odc-geo understand.

    Each modality is one variable a stored grid: `S1RTC` (all at 10 m), or `S2L2A`, `S2L2A_20m` and `S2L2A_60m`, with
    dimensions (band_<variable>, y, x), after time_<modality> for a series. The 20 m and 60 m grids, and that of very
    high resolution, have their own pixel-centre coordinates (`y_20m`, `x_20m`, `y_hr`, ...) and grid mappings
    (`spatial_ref_20m`, ...). Facts of frames are coordinates along time, `<fact>_<modality>`. Pixels are not copied.

    Args:
        sample: with a north-up transform.

    Raises:
        DataError: if the transform is rotated, where one-dimensional coordinates do not exist.
    """
    import xarray

    if sample.transform[1] or sample.transform[3]:
        raise DataError(f"sample {sample.key}: a rotated transform has no x and y coordinates; reproject it north-up")
    variables: dict[str, xarray.DataArray] = {}
    for name, raster in sample.rasters.items():
        for gsd in raster.grids:
            variable = name + ("" if gsd == 10 else f"_{gsd}m")
            variables[variable] = _to_variable(sample, name, gsd, f"band_{variable}")
    attrs = {"key": sample.key, "lon": sample.lon, "lat": sample.lat, "epsg": sample.epsg, "source": sample.source}
    attrs |= {
        "Conventions": "CF-1.11",
        "GeoTransform": _geotransform(sample.transform),
        "rasters": " ".join(sample.rasters),
        "attributes": json.dumps(dict(sample.attributes)),
    }
    return xarray.Dataset(variables, attrs=attrs)


def from_dataset(dataset: "xarray.Dataset") -> Sample:
    """Turn a dataset made by `to_dataset` back into the sample, exactly.

    Raises:
        DataError: if an attribute or variable of that layout is missing.
    """
    attrs = dataset.attrs
    try:
        rasters = {name: _to_raster(dataset, name) for name in attrs["rasters"].split()}
        c, a, b, f, d, e = map(float, attrs["GeoTransform"].split())
        return Sample(
            key=attrs["key"],
            rasters=rasters,
            lon=attrs["lon"],
            lat=attrs["lat"],
            epsg=attrs["epsg"],
            transform=(a, b, c, d, e, f),
            source=attrs["source"],
            attributes=json.loads(attrs["attributes"]),
        )
    except KeyError as error:
        raise DataError(f"dataset lacks {error}; expected the layout that to_dataset writes") from error


def grid_transform(transform: tuple[float, ...], gsd: float) -> tuple[float, float, float, float, float, float]:
    """Affine of a coarser or finer grid that shares its top-left corner with the 10 m grid."""
    a, b, c, d, e, f = transform
    scale = gsd / 10
    return a * scale, b * scale, c, d * scale, e * scale, f


def _to_variable(sample: Sample, name: str, gsd: int, band: str) -> "xarray.DataArray":
    import xarray

    raster, table = sample.rasters[name], modality(name)
    suffix = _suffix(gsd, table.detail)
    array = raster.grids[gsd]
    x, y, mapping, time = f"x{suffix}", f"y{suffix}", f"spatial_ref{suffix}", f"time_{name}"
    a, _, c, _, e, f = grid_transform(sample.transform, gsd / table.detail)
    names = grid_bands(name, raster.grids)[gsd]
    coords: dict[str, Any] = {
        band: (band, list(names)),
        y: (y, f + e * (np.arange(array.shape[-2]) + 0.5), _axis("y")),
        x: (x, c + a * (np.arange(array.shape[-1]) + 0.5), _axis("x")),
        mapping: ((), 0, {**_projection(sample.epsg), "GeoTransform": _geotransform((a, 0.0, c, 0.0, e, f))}),
    }
    waves = [table.bands[table.band_index(n)].wavelength for n in names]
    if None not in waves:
        coords[f"wavelength_{band.removeprefix('band_')}"] = (band, waves, {"units": "um"})
    series = (time,) if array.ndim == 4 else ()
    if raster.time is not None:
        coords[time] = (series, np.asarray(raster.time).astype("datetime64[s]"), {"standard_name": "time"})
    coords |= {f"{fact}_{name}": (time, values, {"frame_fact": fact}) for fact, values in raster.frames.items()}
    attrs: dict[str, Any] = {
        "long_name": table.description,
        "units": _CF_UNITS.get(raster.unit, "1"),
        "grid_mapping": mapping,
        "modality": name,
        "gsd": gsd,
        "radiometric_unit": raster.unit.value,
    }
    if name in _CF_NAMES:
        attrs["standard_name"] = _CF_NAMES[name]
    if table.nodata is not None:
        attrs["_FillValue"] = array.dtype.type(table.nodata)
    if raster.unit is Unit.CLASS:
        attrs |= {"flag_values": np.arange(len(LAND_COVER), dtype=array.dtype), "flag_meanings": " ".join(LAND_COVER)}
    return xarray.DataArray(array, coords, (*series, band, y, x), attrs=attrs)


def _to_raster(dataset: "xarray.Dataset", name: str) -> Raster:
    parts = [variable for variable in dataset.data_vars.values() if variable.attrs.get("modality") == name]
    if not parts:
        raise KeyError(name)
    time = parts[0].coords.get(f"time_{name}")
    values = None if time is None else time.values.astype("datetime64[s]")
    facts = [coord for coord in parts[0].coords.values() if "frame_fact" in coord.attrs]
    return Raster(
        grids={part.attrs["gsd"]: part.values for part in parts},
        unit=Unit(parts[0].attrs["radiometric_unit"]),
        time=values if values is None or values.ndim else values[()],
        frames={fact.attrs["frame_fact"]: fact.values for fact in facts},
    )


def _suffix(gsd: int, detail: int) -> str:
    return "_hr" if detail > 1 else "" if gsd == 10 else f"_{gsd}m"


def _geotransform(transform: tuple[float, ...]) -> str:
    """GDAL's order and notation; repr keeps every bit of the numbers."""
    a, b, c, d, e, f = (float(value) for value in transform)
    return " ".join(map(repr, (c, a, b, f, d, e)))


def _axis(name: str) -> dict[str, str]:
    return {"standard_name": f"projection_{name}_coordinate", "units": "m", "axis": name.upper()}


@functools.lru_cache(maxsize=256)
def _projection(epsg: int) -> dict[str, str]:
    """Well-known text of a coordinate system, under both names that readers look for."""
    from rasterio.crs import CRS

    text = CRS.from_epsg(epsg).to_wkt()
    return {"crs_wkt": text, "spatial_ref": text}
