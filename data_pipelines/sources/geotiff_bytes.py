"""GeoTIFFs that lie inside other files, as bytes."""

from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from data_pipelines.errors import DataError


class Picture(NamedTuple):
    """Pixels (band, y, x), EPSG code (None: has none), affine, no-data value and names of the bands ("": unnamed)."""

    array: np.ndarray
    epsg: int | None
    transform: tuple[float, float, float, float, float, float]
    nodata: float | None
    bands: tuple[str, ...]


def decode_geotiff(data: bytes, where: str, limit: int = 1 << 28) -> Picture:
    """Decode a GeoTIFF.

    Args:
        data: the file's bytes.
        where: what messages call it.
        limit: most bytes that it may decode to.

    Raises:
        DataError: if it is none, damaged, or declares more than the limit.
    """
    if not data:
        raise DataError(f"{where} is no readable GeoTIFF (it is empty); fetch it again or remove it")
    try:
        with rasterio.MemoryFile(data) as file, file.open(driver="GTiff") as image:
            declared = image.count * image.height * image.width * max(np.dtype(t).itemsize for t in image.dtypes)
            if declared > limit:
                raise DataError(f"{where} declares {declared} bytes of pixels, more than {limit}; refused")
            a, b, c, d, e, f = tuple(image.transform)[:6]
            return Picture(
                image.read(),
                image.crs.to_epsg() if image.crs else None,
                (a, b, c, d, e, f),
                image.nodata,
                tuple(name or "" for name in image.descriptions),
            )
    except (RasterioError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} is no readable GeoTIFF (truncated?); fetch it again or remove it") from error
