"""Land cover of any place from ESA WorldCover's GeoTIFFs, in the classes of `modalities.LAND_COVER`.

Source: Zanaga et al., ESA WorldCover 10 m 2021 v200, 2022: classes 10 to 100, tiles of 3 by 3 degrees.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject, transform_bounds

from data_pipelines.errors import DataError
from data_pipelines.jobs import digest_of
from data_pipelines.modalities import LAND_COVER
from data_pipelines.sample import Sample

CLASSES = {
    10: "trees",
    20: "rangeland",  # shrubs
    30: "rangeland",  # grass
    40: "crops",
    50: "built",
    60: "bare",
    70: "snow_ice",
    80: "water",
    90: "flooded_vegetation",  # herbaceous wetland
    95: "flooded_vegetation",  # mangroves
    100: "rangeland",  # moss and lichen
}
"""Code of WorldCover -> class of LAND_COVER; 0 is no data."""

_DEGREES = 3  # side of a tile
_THREADS = 8
_GRID = "*grid*.geojson"

_LOOKUP = np.full(256, 255, np.uint8)
_LOOKUP[0] = 0
_LOOKUP[list(CLASSES)] = [LAND_COVER.index(name) for name in CLASSES.values()]


Bounds = tuple[float, float, float, float]
"""West, south, east, north, degrees."""


class _Map(NamedTuple):
    """A file and where it lies."""

    path: Path
    bounds: Bounds


class WorldCover:
    """A folder of WorldCover maps, looked through at any depth.

    There are no tiles of the open sea. What is absent from the folder is sea only if `esa_worldcover_grid.geojson`,
    which is released beside the maps and lists them, lies in the folder too and has no such tile.

    Args:
        folder: of the GeoTIFFs.

    Attributes:
        digest: of the files' names and sizes.

    Raises:
        DataError: if there are none, or one cannot be opened.
    """

    def __init__(self, folder: str | Path):
        root = Path(folder)
        paths = [path for path in sorted(root.rglob("*.tif")) if not path.name.endswith("InputQuality.tif")]
        if not paths:
            raise DataError(f"{root} holds no .tif of WorldCover; give the folder of ESA_WorldCover_*_Map.tif")
        with ThreadPoolExecutor(_THREADS) as pool:
            self._maps = list(pool.map(_header, paths))
        self._released = _released(root)
        grid = sorted(self._released or ())
        self.digest = digest_of([*(f"{path.name} {path.stat().st_size}" for path in paths), *grid])

    def fractions(self, sample: Sample) -> np.ndarray | None:
        """(classes,) float64: share of each class of LAND_COVER in a sample; the first is no data.

        Returns:
            None where nothing is known: no map of the place is there, and it is not said whether there should be.

        Raises:
            DataError: if a map is there but cannot be read, or should be there and is not.
        """
        height, width = sample.shape
        a, b, c, d, e, f = sample.transform
        x, y = [c, c + a * width + b * height], [f, f + d * width + e * height]
        parts = _divided(transform_bounds(f"EPSG:{sample.epsg}", "EPSG:4326", min(x), min(y), max(x), max(y)))
        codes = np.zeros((height, width), np.uint8)
        maps = [one for one in self._maps if any(_overlap(one.bounds, part) for part in parts)]
        for one in maps:
            _fill(codes, one.path, sample)
        if not codes.all() and (absent := self._absent(parts, maps)):
            raise DataError(f"sample {sample.key}: the WorldCover tile {absent} is not in the folder; fetch it")
        if not maps and self._released is None:
            return None
        classes = _LOOKUP[codes]
        if classes.max() >= len(LAND_COVER):
            raise DataError(f"{maps[0].path} holds the code {codes[classes == 255][0]}, which WorldCover has not")
        return np.bincount(classes.reshape(-1), minlength=len(LAND_COVER)) / classes.size

    def _absent(self, parts: Sequence[Bounds], maps: Sequence[_Map]) -> str:
        """Name of a released tile that some bounds reach into and no map covers; "" if there is none."""
        for west, south in (corner for part in parts for corner in _corners(part)):
            name = f"{'N' if south >= 0 else 'S'}{abs(south):02d}{'E' if west >= 0 else 'W'}{abs(west):03d}"
            inside = (west + 1, south + 1, west + 2, south + 2)
            if name in (self._released or ()) and not any(_overlap(one.bounds, inside) for one in maps):
                return name
        return ""


def _header(path: Path) -> _Map:
    try:
        with rasterio.open(path) as file:
            if file.count != 1 or file.dtypes[0] != "uint8" or file.crs is None:
                raise DataError(f"{path} is no WorldCover map: one band of uint8 with a coordinate system is expected")
            return _Map(path, transform_bounds(file.crs, "EPSG:4326", *file.bounds))
    except RasterioError as error:
        raise DataError(f"{path} cannot be read (truncated or no TIFF); fetch it again or remove it") from error


def _fill(codes: np.ndarray, path: Path, sample: Sample) -> None:
    """Codes of a map, nearest neighbour, wherever there are none yet."""
    found = np.zeros_like(codes)
    try:
        with rasterio.open(path, sharing=False) as file:
            reproject(
                rasterio.band(file, 1),
                found,
                dst_transform=rasterio.Affine(*sample.transform),
                dst_crs=f"EPSG:{sample.epsg}",
                src_nodata=0,
                dst_nodata=0,
                resampling=Resampling.nearest,
            )
    except RasterioError as error:
        raise DataError(f"{path} cannot be read (truncated?); fetch it again") from error
    np.copyto(codes, found, where=codes == 0)


def _released(root: Path) -> frozenset[str] | None:
    """Names of all tiles that there are (lower left corners, as N36E000); None where no list of them is at hand."""
    listed = sorted(root.rglob(_GRID))
    if not listed:
        return None
    try:
        features = json.loads(listed[0].read_text())["features"]
        return frozenset(str(feature["properties"]["ll_tile"]) for feature in features)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{listed[0]} is not WorldCover's list of tiles; fetch it again or remove it") from error


def _divided(bounds: Bounds) -> list[Bounds]:
    """Bounds that cross the antimeridian as the two parts on either side of it."""
    west, south, east, north = bounds
    return [bounds] if west <= east else [(west, south, 180.0, north), (-180.0, south, east, north)]


def _corners(bounds: Bounds) -> Iterator[tuple[int, int]]:
    """Lower left corners of the tiles that bounds reach into."""
    west, south, east, north = (int(np.floor(edge / _DEGREES)) * _DEGREES for edge in bounds)
    for lon in range(west, east + 1, _DEGREES):
        yield from ((lon, lat) for lat in range(south, north + 1, _DEGREES))


def _overlap(one: Bounds, other: Bounds) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
