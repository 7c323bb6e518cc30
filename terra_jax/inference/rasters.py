"""GeoTIFFs in and out: numbers in the modality's unit, and where on Earth they lie."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from data_pipelines.modalities import LAND_COVER_COLOURS, Unit, modality
from data_pipelines.sources.geotiff import read_checked
from terra_jax.errors import ConfigError
from terra_jax.weights.atomic import file_aside

SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies.

    Attributes:
        crs: coordinate system as well-known text, "" if it has none.
        transform: affine (a, b, c, d, e, f); the identity stands for none.
    """

    crs: str
    transform: tuple[float, ...]

    @property
    def is_known(self) -> bool:
        """Whether there is one."""
        return bool(self.crs) and not rasterio.Affine(*self.transform).is_identity


def read_place(path: Path) -> tuple[Georeference, tuple[int, int]]:
    """Where a raster lies, and its height and width.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        with _quietly(), rasterio.open(path, sharing=False) as file:
            return Georeference(file.crs.to_wkt() if file.crs else "", tuple(file.transform)[:6]), file.shape
    except RasterioError as error:
        raise ConfigError(f"{path} cannot be read (truncated or no TIFF); copy it again") from error


def read_image(path: Path, name: str, bands: tuple[str, ...] | None = None) -> np.ndarray:
    """Pixels (y, x, band) of a modality, float32.

    Args:
        path: a GeoTIFF.
        name: modality whose bands, in order, and unit it must have.
        bands: the bands expected, where they are not all of the modality's.

    Raises:
        DataError: if it cannot be read, has other bands, no data somewhere, or numbers of another unit.
    """
    with _quietly():
        return read_checked(name, path, bands).astype(np.float32).transpose(1, 2, 0)


def write_image(path: Path, image: np.ndarray, name: str, place: Georeference, tags: Mapping[str, Any]) -> None:
    """Write a GeoTIFF: integers where the modality is stored as such, else float32; classes with their colours.

    Args:
        path: of the file; what lies there is replaced.
        image: (y, x, band) or (y, x), in the modality's unit.
        name: of the modality.
        place: where it lies.
        tags: metadata.
    """
    table = modality(name)
    bands = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    dtype = np.dtype(table.dtype if np.dtype(table.dtype).kind in "iu" else np.float32)
    if dtype.kind in "iu":
        bands = np.clip(np.rint(bands), np.iinfo(dtype).min, np.iinfo(dtype).max)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": dtype}
    transform = rasterio.Affine(*place.transform)
    if not transform.is_identity:
        profile |= {"transform": transform}
    if place.crs:
        profile |= {"crs": place.crs}
    with file_aside(path) as aside, _quietly(), rasterio.open(aside, "w", compress="deflate", **profile) as file:
        file.write(bands.astype(dtype))
        file.descriptions = table.band_names
        file.update_tags(**tags)
        if table.unit is Unit.CLASS:
            file.write_colormap(1, {i: _rgb(colour) for i, colour in enumerate(LAND_COVER_COLOURS)})


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def _quietly() -> warnings.catch_warnings:
    """Without GDAL's word on rasters that have no place: that is for whoever needs one to say."""
    return warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning)
