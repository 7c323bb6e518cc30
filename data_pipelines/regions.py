"""Rows of a table by place: the globe divided into regions, and the regions that hold data into rows.

What is learned for each region of the globe (SkySense's geo-context prototypes) lies in a table of fixed length. Only
regions that hold training data have a row; a place elsewhere is refused, or served by the nearest region with one.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.grid import region_of
from data_pipelines.hashing import hash_ints

OVERFLOW = ("refuse", "share")
"""What happens to regions beyond the table's length: they are an error, or share rows with others, by hash."""

_MOST_NORTH = 85.051  # where the square Web-Mercator map ends


@dataclass(frozen=True)
class RegionTable:
    """Which row of a table belongs to a place; made by `RegionTable.of`.

    Attributes:
        rows: length of the table.
        zoom: regions are Web-Mercator tiles of this zoom; None: the 5 degree blocks of `grid.region_of`.
        ids: (regions,) sorted numbers of the regions that hold data.
        row: (regions,) int32 row of each.
        centres: (regions, 3) unit vectors to the middle of each region's data.
    """

    rows: int
    zoom: int | None
    ids: np.ndarray
    row: np.ndarray
    centres: np.ndarray

    @classmethod
    def of(
        cls, lon: np.ndarray, lat: np.ndarray, rows: int, *, zoom: int | None = None, overflow: str = "refuse"
    ) -> "RegionTable":
        """Table of the regions that some places lie in.

        Args:
            lon, lat: (n,) degrees, of the training data; unknown places (NaN) have no region.
            rows: length of the table.
            zoom: divide by Web-Mercator tiles of this zoom (9 is about 78 km at the equator) instead of blocks.
            overflow: one of `OVERFLOW`, where there are more regions than rows. The regions with most data keep a
                row of their own.

        Raises:
            DataError: no place is known, or there are too many regions.
        """
        if overflow not in OVERFLOW:
            raise DataError(f"unknown overflow policy {overflow!r}; choose {' or '.join(OVERFLOW)}")
        place = np.isfinite(lon) & np.isfinite(lat)
        lon, lat = np.asarray(lon, np.float64)[place], np.asarray(lat, np.float64)[place]
        if rows < 1 or not len(lon):
            raise DataError(f"a table of {rows} rows over {len(lon)} known places; give at least one of each")
        ids, inverse, counts = np.unique(region_ids(lon, lat, zoom), return_inverse=True, return_counts=True)
        if len(ids) > rows and overflow == "refuse":
            raise DataError(
                f"the data lie in {len(ids)} regions and the table has {rows} rows; give it {len(ids)} rows, "
                "choose larger regions, or let regions share rows (overflow='share')"
            )
        rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
        shared = (hash_ints(ids) % np.uint64(rows)).astype(np.int64)
        row = np.arange(len(ids)) if len(ids) <= rows else np.where(rank < rows, rank, shared)
        centres = np.zeros((len(ids), 3))
        np.add.at(centres, inverse, _unit_vectors(lon, lat))
        centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        return cls(rows, zoom, ids, row.astype(np.int32), centres)

    def find(self, lon: float, lat: float, key: str, outside: str = "refuse") -> int:
        """Row of a place.

        Args:
            lon, lat: degrees.
            key: what an error calls the sample.
            outside: "refuse" a place in none of the regions, or take the "nearest" region's row.

        Raises:
            DataError: the place is unknown, or lies outside every region and that is refused.
        """
        if not (np.isfinite(lon) and np.isfinite(lat)):
            raise DataError(f"sample {key} has no location, so no region; give its files coordinates")
        region = int(region_ids(np.array([lon]), np.array([lat]), self.zoom)[0])
        at = int(np.searchsorted(self.ids, region))
        if at == len(self.ids) or self.ids[at] != region:
            if outside == "refuse":
                raise DataError(
                    f"sample {key} at lon {lon:g}, lat {lat:g} lies outside all {len(self.ids)} regions of the table; "
                    "make the table from the data that it is trained on"
                )
            at = int(np.argmax(self.centres @ _unit_vectors(np.array([lon]), np.array([lat]))[0]))
        return int(self.row[at])


def region_ids(lon: np.ndarray, lat: np.ndarray, zoom: int | None = None) -> np.ndarray:
    """Number of the region of each place: 5 degree blocks, or Web-Mercator tiles of a zoom (y * 2^zoom + x).

    Args:
        lon, lat: (n,) degrees.
        zoom: see `RegionTable`.
    """
    if zoom is None:
        return region_of(lon, lat).astype(np.int64)
    tiles = 2**zoom
    latitude = np.deg2rad(np.clip(lat, -_MOST_NORTH, _MOST_NORTH))
    x = np.floor((np.asarray(lon) + 180) % 360 / 360 * tiles)
    y = np.floor((1 - np.arcsinh(np.tan(latitude)) / np.pi) / 2 * tiles)
    return (np.clip(y, 0, tiles - 1) * tiles + np.minimum(x, tiles - 1)).astype(np.int64)


def _unit_vectors(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    east, north = np.deg2rad(lon), np.deg2rad(lat)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=1)
