"""What a dataset of records says of each sample without touching pixels: the columns of its parquet index.

key, lon, lat, cell, region, split, scene     where it is, and the dominant class
time                                          of the first Sentinel-2, else Sentinel-1 image; null without
cloud                                         fraction 0..1 ("cloud_fraction", or percent as "cloud_cover"); NaN without
cover_<class>                                 fractions of land cover (modalities.LAND_COVER); NaN where unknown
S2L1C_offset_removed, S2L2A_offset_removed    what harmonising took off; "" where it was not harmonised
height, width, <modality>                     pixels at 10 m, and decoded bytes, 0 where absent
"""

import json
from collections.abc import Mapping
from importlib import metadata as packages
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.grid import cell_name, region_of, split_of
from data_pipelines.modalities import LAND_COVER, MODALITIES, Unit, modality
from data_pipelines.sample import Sample

FORMAT, VERSION = "terra_jax.records", 2

METADATA_KEY = b"terra_jax.records"
"""Of the dataset's metadata in the schema of a shard's index."""

_TIMED = ("S2L2A", "S2L1C", "S2RGB", "S1RTC", "S1GRD")
_HARMONISED = tuple(f"{name}_offset_removed" for name in ("S2L1C", "S2L2A"))
COVER = tuple(f"cover_{name}" for name in LAND_COVER)


def dataset_metadata(units: Mapping[str, Unit], licence: str) -> dict[str, Any]:
    """What a dataset says of itself.

    Args:
        units: of the modalities that it holds.
        licence: of the data.
    """
    tables = {name: modality(name) for name in MODALITIES if name in units}
    return {
        "format": FORMAT,
        "version": VERSION,
        "writer": f"terra_jax {_release()}",
        "licence": licence,
        "modalities": {
            name: {
                "unit": units[name].value,
                "dtype": table.dtype,
                "bands": [{"name": band.name, "gsd": band.gsd} for band in table.bands],
            }
            for name, table in tables.items()
        },
    }


def index_schema(metadata: Mapping[str, Any]) -> pa.Schema:
    """Columns, with the dataset's metadata beside them."""
    columns = [("key", pa.string()), ("lon", pa.float64()), ("lat", pa.float64()), ("cell", pa.string())]
    columns += [("region", pa.int32()), ("split", pa.string()), ("scene", pa.int8())]
    columns += [("time", pa.timestamp("s")), ("cloud", pa.float32()), *((name, pa.float32()) for name in COVER)]
    columns += [*((name, pa.string()) for name in _HARMONISED), ("height", pa.int32()), ("width", pa.int32())]
    columns += [(name, pa.int64()) for name in MODALITIES]
    return pa.schema(columns, metadata={METADATA_KEY: json.dumps(metadata)} if metadata else None)


def index_row(sample: Sample, split: str, scene: int | None) -> dict[str, Any]:
    """A sample's row.

    Args:
        sample: as it is written.
        split: "" takes that of its region.
        scene: None takes the sample's attribute "scene", or -1.
    """
    region, known = int(region_of(sample.lon, sample.lat)), sample.attributes
    height, width = sample.shape
    sizes = {name: sum(grid.nbytes for grid in raster.grids.values()) for name, raster in sample.rasters.items()}
    return {
        "key": sample.key,
        "lon": float(sample.lon),
        "lat": float(sample.lat),
        "cell": cell_name(sample.lon, sample.lat) if abs(sample.lat) <= 85 and abs(sample.lon) <= 180 else "",
        "region": region,
        "split": split or str(split_of(region)),
        "scene": int(known.get("scene", -1)) if scene is None else int(scene),
        "time": _time(sample),
        "cloud": float(known.get("cloud_fraction", np.float64(known.get("cloud_cover", np.nan)) / 100)),
        **dict(zip(COVER, _cover(sample), strict=True)),
        **{name: str(known.get(name, "")) for name in _HARMONISED},
        "height": height,
        "width": width,
        **{name: sizes.get(name, 0) for name in MODALITIES},
    }


def _time(sample: Sample) -> int | None:
    times = (sample.rasters[name].time for name in _TIMED if name in sample.rasters)
    first = next((np.asarray(time).reshape(-1)[0] for time in times if time is not None), None)
    return None if first is None or np.isnat(first) else int(first.astype("datetime64[s]").astype(np.int64))


def _cover(sample: Sample) -> list[float]:
    """Of the land cover in the sample; else what another map said, kept in attributes of these names."""
    if "LULC" not in sample.rasters:
        return [float(sample.attributes.get(name, np.nan)) for name in COVER]
    classes = sample.rasters["LULC"].grids[10]
    return [float(np.mean(classes == number)) for number in range(len(LAND_COVER))]


def _release() -> str:
    try:
        return packages.version("terra_jax")
    except packages.PackageNotFoundError:
        return "from source"
