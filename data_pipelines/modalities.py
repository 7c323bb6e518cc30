"""The one table of physical facts: modalities, bands, native grids, units, no-data, statistics, aliases.

Everything that needs a band name, a wavelength, a unit or a normalisation constant reads it here.
Array shapes follow xarray's order, (band, y, x), bands in this table's order; see `data_pipelines.sample`.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from data_pipelines.errors import DataError


class Unit(StrEnum):
    """What a raster's numbers mean. Conversions are explicit (`data_pipelines.radiometry`)."""

    DN10000 = "dn10000"  # Sentinel-2 digital number: reflectance x 10,000, no offset
    REFLECTANCE = "reflectance"  # 0..1 (bright snow and clouds exceed 1)
    DB = "db"  # radar backscatter, 10 log10(linear)
    LINEAR = "linear"  # radar backscatter, power
    METRE = "metre"
    CLASS = "class"  # categorical ids
    INDEX = "index"  # normalised difference, -1..1
    BYTE = "byte"  # 8-bit display colour
    DEGREE = "degree"


@dataclass(frozen=True)
class Band:
    """One channel of a sensor."""

    name: str
    gsd: int = 10  # native ground sampling distance, metres
    wavelength: float | None = None  # centre, micrometres
    common_name: str | None = None  # STAC electro-optical common name


@dataclass(frozen=True)
class Statistics:
    """Per-band mean and standard deviation in the modality's own unit, in band order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Modality:
    """One kind of raster, as stored: bands, unit, dtype, no-data value and named statistics.

    `detail` is the number of pixels along the side of each pixel of a grid: 1, but for very high resolution, which is
    stored 32 pixels to a 10 m pixel (0.3125 m) under the grid that it refines.
    """

    name: str
    bands: tuple[Band, ...]
    unit: Unit
    dtype: str
    nodata: float | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    description: str = ""
    detail: int = 1

    @property
    def band_names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(band.name for band in self.bands)

    @property
    def grids(self) -> dict[int, tuple[int, ...]]:
        """Native grid (metres per pixel) -> indices of its bands in `bands`, finest grid first."""
        sizes = sorted({band.gsd for band in self.bands})
        return {size: tuple(i for i, band in enumerate(self.bands) if band.gsd == size) for size in sizes}

    def statistics_for(self, name: str, bands: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (float32) of the named set, for `bands` (default: all, in table order).

        Raises:
            DataError: if the set or a band is unknown, or the set says nothing of a band (NaN).
        """
        chosen = self.statistics_set(name)
        index = [self.band_index(band) for band in (bands or self.band_names)]
        unknown = [self.bands[i].name for i in index if math.isnan(chosen.mean[i])]
        if unknown:
            raise DataError(f"statistics {name!r} of {self.name} say nothing of {', '.join(unknown)}; leave it out")
        return (
            np.asarray([chosen.mean[i] for i in index], np.float32),
            np.asarray([chosen.std[i] for i in index], np.float32),
        )

    def statistics_set(self, name: str) -> Statistics:
        """The named set: one of the table's, or of a file of `terra-jax stats`, named by its path (it ends in .json).

        Raises:
            DataError: if the set is unknown, or the file has none of this modality.
        """
        if name in self.statistics:
            return self.statistics[name]
        known = ", ".join(sorted(self.statistics)) or "none"
        if not name.endswith(".json"):
            raise DataError(
                f"{self.name} has no statistics named {name!r}; known sets: {known}, or a .json of `terra-jax stats`"
            )
        from data_pipelines.statistics import read_set

        sets = read_set(name)
        if self.name not in sets:
            raise DataError(f"{name} has no statistics of {self.name}; it has {', '.join(sets) or 'none'}")
        return sets[self.name]

    def band_index(self, band: str) -> int:
        """Position of a band by its ESA name or STAC common name.

        Raises:
            DataError: if the band is unknown; the message names the nearest ones.
        """
        for i, known in enumerate(self.bands):
            if band in (known.name, known.common_name):
                return i
        near = difflib.get_close_matches(band, self.band_names, n=3) or self.band_names
        raise DataError(f"{self.name} has no band {band!r}; did you mean {', '.join(near)}?")


_S2_BANDS = {
    band.name: band
    for band in (
        Band("B01", 60, 0.443, "coastal"),
        Band("B02", 10, 0.490, "blue"),
        Band("B03", 10, 0.560, "green"),
        Band("B04", 10, 0.665, "red"),
        Band("B05", 20, 0.705, "rededge071"),
        Band("B06", 20, 0.740, "rededge075"),
        Band("B07", 20, 0.783, "rededge078"),
        Band("B08", 10, 0.842, "nir"),
        Band("B8A", 20, 0.865, "nir08"),
        Band("B09", 60, 0.945, "nir09"),
        Band("B10", 60, 1.375, "cirrus"),
        Band("B11", 20, 1.610, "swir16"),
        Band("B12", 20, 2.190, "swir22"),
    )
}
_L1C_BANDS = tuple(_S2_BANDS.values())
_L2A_BANDS = tuple(band for name, band in _S2_BANDS.items() if name != "B10")
_RADAR_BANDS = (Band("VV"), Band("VH"))

# Statistics sets:
#   terramind_v1  what the released TerraMind v1 weights were trained with
#   terramesh     the TerraMesh release's own file (differs in the third digit)
#   skysense      what the public SkySense weights are fed (HR: ImageNet's, of 0..255); ten bands of S2L2A
#   ssl4eo_s12    SSL4EO-S12 as Copernicus-Bench applies it, one S2 set for both products
_SSL4EO_S2_MEAN = (1353.7, 1117.2, 1041.8, 946.5, 1199.1, 2003.0, 2374.0, 2301.2, 2599.7, 732.1, 12.1, 1820.6, 1118.2)
_SSL4EO_S2_STD = (897.3, 736.0, 684.8, 620.0, 791.9, 1341.3, 1595.4, 1545.5, 1750.1, 475.1, 98.3, 1216.5, 736.7)
_WITHOUT_B10 = tuple(i for i, name in enumerate(_S2_BANDS) if name != "B10")
_SSL4EO_S1 = Statistics((-12.55, -20.19), (5.26, 5.91))

# fmt: off
MODALITIES: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        Modality(
            "S2L1C",
            _L1C_BANDS,
            Unit.DN10000,
            "int16",
            statistics={
                "terramind_v1": Statistics(
                    (2357.089, 2137.385, 2018.788, 2082.986, 2295.651, 2854.537, 3122.849, 3040.560, 3306.481,
                     1473.847, 506.070, 2472.825, 1838.929),
                    (1624.683, 1675.806, 1557.708, 1833.702, 1823.738, 1733.977, 1732.131, 1679.732, 1727.260,
                     1024.687, 442.165, 1331.411, 1160.419),
                ),
                "terramesh": Statistics(
                    (2357.09, 2137.40, 2018.80, 2083.00, 2295.66, 2854.55, 3122.86, 3040.57, 3306.49, 1473.85,
                     506.07, 2472.84, 1838.94),
                    (1673.6, 1722.6, 1602.2, 1873.1, 1866.1, 1779.8, 1776.5, 1724.1, 1771.0, 1079.8, 512.4,
                     1340.9, 1172.4),
                ),
                "ssl4eo_s12": Statistics(_SSL4EO_S2_MEAN, _SSL4EO_S2_STD),
            },
            description="Sentinel-2 top-of-atmosphere reflectance",
        ),
        Modality(
            "S2L2A",
            _L2A_BANDS,
            Unit.DN10000,
            "int16",
            statistics={
                "terramind_v1": Statistics(
                    (1390.458, 1503.317, 1718.197, 1853.910, 2199.100, 2779.975, 2987.011, 3083.234, 3132.220,
                     3162.988, 2424.884, 1857.648),
                    (2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918, 1753.829,
                     1797.379, 1434.261, 1334.311),
                ),
                "terramesh": Statistics(
                    (1390.46, 1503.33, 1718.21, 1853.93, 2199.12, 2779.99, 2987.03, 3083.25, 3132.24, 3162.99,
                     2424.90, 1857.67),
                    (2131.2, 2163.7, 2059.3, 2152.5, 2105.2, 1912.8, 1842.3, 1893.6, 1775.7, 1814.9, 1436.3,
                     1336.2),
                ),
                "ssl4eo_s12": Statistics(
                    tuple(_SSL4EO_S2_MEAN[i] for i in _WITHOUT_B10), tuple(_SSL4EO_S2_STD[i] for i in _WITHOUT_B10)
                ),
                "skysense": Statistics(
                    (math.nan, 884.30, 1144.16, 1297.47, 1624.91, 2194.64, 2422.21, 2517.76, 2581.65, math.nan,
                     2368.51, 1805.06),
                    (math.nan, 1155.15, 1183.63, 1368.11, 1370.27, 1355.55, 1416.51, 1474.79, 1439.31, math.nan,
                     1455.52, 1343.48),
                ),
            },
            description="Sentinel-2 surface reflectance",
        ),
        Modality(
            "S2RGB",
            (Band("red", 10, 0.665, "red"), Band("green", 10, 0.560, "green"), Band("blue", 10, 0.490, "blue")),
            Unit.BYTE,
            "uint8",
            statistics={
                "terramind_v1": Statistics((87.271, 80.931, 66.667), (58.767, 47.663, 42.631)),
                "terramesh": Statistics((110.3, 99.5, 75.8), (69.9, 53.7, 53.4)),
            },
            description="Sentinel-2 colour composite, stretched per scene",
        ),
        Modality(
            "S1GRD",
            _RADAR_BANDS,
            Unit.DB,
            "float16",
            nodata=float("nan"),
            statistics={
                "terramind_v1": Statistics((-12.599, -20.293), (5.195, 5.890)),
                "terramesh": Statistics((-12.577, -20.265), (5.179, 5.872)),
                "ssl4eo_s12": _SSL4EO_S1,
                "skysense": Statistics((-12.548, -20.192), (5.257, 5.912)),
            },
            description="Sentinel-1 ground-range detected, sigma nought",
        ),
        Modality(
            "S1RTC",
            _RADAR_BANDS,
            Unit.DB,
            "float16",
            nodata=float("nan"),
            statistics={
                "terramind_v1": Statistics((-10.930, -17.329), (4.391, 4.459)),
                "terramesh": Statistics((-10.930, -17.329), (4.391, 4.459)),
                "ssl4eo_s12": _SSL4EO_S1,
            },
            description="Sentinel-1 radiometrically terrain-corrected, gamma nought",
        ),
        Modality(
            "DEM",
            (Band("elevation"),),
            Unit.METRE,
            "int16",
            statistics={
                "terramind_v1": Statistics((670.665,), (951.272,)),
                "terramesh": Statistics((651.7,), (928.2,)),
            },
            description="Elevation above the geoid",
        ),
        Modality(
            "LULC",
            (Band("class"),),
            Unit.CLASS,
            "uint8",
            nodata=0,
            description="ESRI land cover, ten classes (LAND_COVER)",
        ),
        Modality(
            "NDVI",
            (Band("ndvi"),),
            Unit.INDEX,
            "float16",
            nodata=float("nan"),
            statistics={
                "terramind_v1": Statistics((0.327,), (0.322,)),
                "terramesh": Statistics((0.327,), (0.322,)),
            },
            description="Normalised difference of B08 and B04 of S2L2A",
        ),
        Modality(
            "HR",
            (Band("red", 10, 0.665, "red"), Band("green", 10, 0.560, "green"), Band("blue", 10, 0.490, "blue")),
            Unit.BYTE,
            "uint8",
            statistics={"skysense": Statistics((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))},
            description="Very high resolution optical image in display colours",
            detail=32,
        ),
    )
}
# fmt: on

ALIASES = {"RGB": "S2RGB"}

LAND_COVER = (
    "nodata", "water", "trees", "flooded_vegetation", "crops", "built", "bare", "snow_ice", "clouds", "rangeland",
)  # fmt: skip
"""Names of the LULC ids 0..9 (ESRI legend, renumbered without gaps as TerraMesh does)."""

LAND_COVER_COLOURS = (
    "#1b1b1b", "#1a5bab", "#358221", "#87d19e", "#ffdb5c", "#ed022a", "#c9bdb0", "#f2faff", "#c8c8c8", "#c6ad8d",
)  # fmt: skip
"""Colours of the LULC ids on maps, as the ESRI legend has them."""

OCEAN = "ocean"
SCENE_CLASSES = (*LAND_COVER, OCEAN)
"""Dominant class of a whole tile, as kept in an index: LAND_COVER plus open sea, which recipes thin."""


def modality(name: str) -> Modality:
    """Look a modality up by name or alias.

    Raises:
        DataError: if the name is unknown; the message names the nearest ones.
    """
    name = ALIASES.get(name, name)
    if name in MODALITIES:
        return MODALITIES[name]
    near = difflib.get_close_matches(name, MODALITIES, n=3, cutoff=0.3) or tuple(MODALITIES)
    raise DataError(f"unknown modality {name!r}; did you mean {', '.join(near)}?")
