"""Tiles as batches ship them: each band once, on its native grid, as stored."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.radiometry import require, to_native_grids
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources.assembly import check_complete

LeftOut = Mapping[str, Sequence[str]]
"""Modality -> names of bands that are not shipped."""


def tile_spec(modalities: Sequence[str], tile: int, left_out: LeftOut | None = None) -> dict[str, ArraySpec]:
    """Spec of the arrays "MODALITY/GSD".

    Args:
        modalities: names.
        tile: side of the tile, 10 m pixels.
        left_out: bands that are not shipped.
    """
    spec = {}
    for name in modalities:
        table = modality(name)
        for gsd, kept in _shipped(name, left_out).items():
            side = math.ceil(tile * 10 / gsd)
            spec[f"{name}/{gsd}"] = ArraySpec((len(kept), side, side), table.dtype, str(table.unit))
    return spec


def tile_arrays(
    sample: Sample, modalities: Sequence[str], tile: int, left_out: LeftOut | None = None
) -> dict[str, np.ndarray]:
    """The arrays of `tile_spec`; zeros for modalities that the sample lacks.

    Raises:
        DataError: if a raster has another unit than the modality table says, NaN (nothing masks it), or 20 m and 60 m
            bands that are no copies of such pixels.
    """
    arrays = {}
    for name in modalities:
        table = modality(name)
        raster = sample.rasters.get(name)
        native = None if raster is None else _native(sample.key, name, raster)
        for gsd, kept in _shipped(name, left_out).items():
            side = math.ceil(tile * 10 / gsd)
            if native is None:
                arrays[f"{name}/{gsd}"] = np.zeros((len(kept), side, side), table.dtype)
            else:
                arrays[f"{name}/{gsd}"] = np.ascontiguousarray(native.grids[gsd][kept])
    return arrays


def _shipped(name: str, left_out: LeftOut | None) -> dict[int, list[int]]:
    """Grid -> places, among the bands of that grid, of those that are shipped."""
    table, absent = modality(name), (left_out or {}).get(name, ())
    return {
        gsd: [place for place, i in enumerate(index) if table.bands[i].name not in absent]
        for gsd, index in table.grids.items()
    }


def _native(key: str, name: str, raster: Raster) -> Raster:
    table = modality(name)
    require(raster, table.unit, f"sample {key}: {name}")
    for grid in raster.grids.values():
        check_complete(name, grid, f"sample {key}: {name}", keep_nodata=False)
    try:
        return raster if set(raster.grids) == set(table.grids) else to_native_grids(name, raster)
    except DataError as error:
        raise DataError(f"sample {key}: {error}") from error
