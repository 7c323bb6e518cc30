"""Where a sample lies: Major TOM cells, regions, splits by region, and the day of the year.

Splits are a function of location alone, so that no evaluation sample lies beside a training sample and every
source, machine and run agrees on them.
"""

import re
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.hashing import hash_ints, to_unit

_EARTH_RADIUS = 6378.137  # km, equatorial
_CELL = 10.0  # km
_ROWS = int(np.ceil(np.pi * _EARTH_RADIUS / _CELL))  # of the Major TOM grid, pole to pole
_MAX_LATITUDE = 85.0
_NAME = re.compile(r"(\d+)([UD])_(\d+)([RL])")

_REGION_DEGREES = 5
_REGION_ROWS = 180 // _REGION_DEGREES
_REGION_COLUMNS = 360 // _REGION_DEGREES

SPLITS = ("train", "val", "test")
CLIMATES = ("tropical", "subtropical", "temperate", "boreal", "polar")
"""Belts of latitude, from the equator to the poles."""
_BELTS = (23.5, 35.0, 50.0, 66.5)  # degrees where one climate ends and the next begins

_MIN_REGIONS = 10  # fewer regions than this cannot be divided: everything is training data


class CellBounds(NamedTuple):
    """Edges of a grid cell, degrees."""

    west: float
    south: float
    east: float
    north: float


def cell_name(lon: float, lat: float) -> str:
    """Name of the 10 km Major TOM cell that holds a point, such as `282D_485L`.

    Rows count from the equator (U up, D down), columns from the prime meridian (R right, L left); the number of
    columns of a row follows the circumference at its southern edge.

    Source: Francis and Czerkawski, Major TOM: Expandable Datasets for Earth Observation, 2024.

    Args:
        lon: degrees, -180 to 180.
        lat: degrees, -85 to 85, where the grid is defined.

    Raises:
        DataError: if the point lies outside the grid.
    """
    if not (abs(lat) <= _MAX_LATITUDE and abs(lon) <= 180):
        raise DataError(f"no grid cell at lon {lon:g}, lat {lat:g}: the grid covers lat -85 to 85, lon -180 to 180")
    row = int(np.floor(lat * _ROWS / 180))
    columns = _columns(row)
    # The antimeridian's column is the westernmost one from either side.
    column = int(np.floor((lon if lon < 180 else -180) * columns / 360))
    return f"{abs(row)}{'U' if row >= 0 else 'D'}_{abs(column)}{'R' if column >= 0 else 'L'}"


def cell_bounds(name: str) -> CellBounds:
    """Edges of a cell given its name; a suffix after the cell, such as `_3_3` of a sub-patch, is ignored.

    Raises:
        DataError: if the name is none of a cell.
    """
    match = _NAME.match(name)
    if match is None:
        raise DataError(f"{name!r} is not a Major TOM cell; expected a name like 282D_485L")
    row = int(match[1]) * (1 if match[2] == "U" else -1)
    column = int(match[3]) * (1 if match[4] == "R" else -1)
    columns = _columns(row)
    # The outermost cells reach beyond the antimeridian where the number of columns is odd.
    west, east = (max(-180.0, min(180.0, edge * 360 / columns)) for edge in (column, column + 1))
    if not (abs(row * 180 / _ROWS) <= 90 and west < east):
        raise DataError(f"{name!r} lies outside the Major TOM grid")
    return CellBounds(west, row * 180 / _ROWS, east, (row + 1) * 180 / _ROWS)


def region_of(lon: np.ndarray | float, lat: np.ndarray | float) -> np.ndarray:
    """Region of each point: blocks 5 degrees high and about as wide as those at the equator.

    Args:
        lon: degrees, any shape.
        lat: degrees, the same shape.

    Returns:
        int32 ids, row * 72 + column, of the same shape; -1 where the place is unknown (NaN).
    """
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    unknown = np.isnan(lon) | np.isnan(lat)
    lon, lat = np.where(unknown, 0.0, lon), np.where(unknown, 0.0, lat)
    row = np.clip(np.floor((lat + 90) / _REGION_DEGREES), 0, _REGION_ROWS - 1)
    middle = np.deg2rad((row + 0.5) * _REGION_DEGREES - 90)
    columns = np.maximum(1, np.round(_REGION_COLUMNS * np.cos(middle)))
    column = np.minimum(np.floor((lon + 180) % 360 / 360 * columns), columns - 1)
    return np.where(unknown, -1, row * _REGION_COLUMNS + column).astype(np.int32)


def climate_of(lat: np.ndarray) -> np.ndarray:
    """Climate of each place as its latitude alone tells it, one of CLIMATES; "" where the place is unknown (NaN).

    Args:
        lat: (n,) degrees.
    """
    lat = np.asarray(lat, np.float64)
    belt = np.searchsorted(_BELTS, np.abs(np.nan_to_num(lat)), side="right")
    return np.where(np.isnan(lat), "", np.asarray(CLIMATES)[belt])


def split_of(region: np.ndarray | int, seed: int = 0) -> np.ndarray:
    """Split of each region by hash: 80 % train, 10 % val, 10 % test.

    Args:
        region: ids of `region_of`, any shape.
        seed: gives another division of the regions; leave it alone to compare results.

    Returns:
        Array of "train", "val" and "test", of the same shape.
    """
    share = to_unit(hash_ints(np.asarray(region), seed))
    return np.asarray(SPLITS)[(share >= 0.8).astype(int) + (share >= 0.9)]


def assign_splits(lon: np.ndarray, lat: np.ndarray, seed: int = 0) -> np.ndarray:
    """Split of each sample by its region: "train" where the place is unknown, or fewer than 10 regions occur.

    Args:
        lon: (n,) degrees.
        lat: (n,) degrees.
        seed: see `split_of`.
    """
    region = region_of(lon, lat)
    split = split_of(region, seed)
    few = len(np.unique(region[region >= 0])) < _MIN_REGIONS
    split[(region < 0) | few] = "train"
    return split


def day_of_year(time: np.ndarray | np.datetime64) -> np.ndarray:
    """Day of the year, 1 to 366, of each time; 0 where there is none (NaT).

    Returns:
        int32 array of the shape of `time`.
    """
    day = np.asarray(time).astype("datetime64[D]")
    absent = np.isnat(day)
    days = np.where(absent, -1, (day - day.astype("datetime64[Y]")).astype(np.int64))
    return (days + 1).astype(np.int32)


def _columns(row: int) -> int:
    latitude = np.deg2rad(row * 180 / _ROWS)
    return int(np.ceil(2 * np.pi * _EARTH_RADIUS * np.cos(latitude) / _CELL))
