"""Cutting a window out of a sample without resampling anything."""

from dataclasses import replace

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.sample import Raster, Sample

LATTICE = 6
"""10 m pixels per 60 m pixel: windows start on this lattice, so that no coarse pixel is split at their corner."""


def cut(sample: Sample, top: int, left: int, size: int) -> Sample:
    """The square window of `size` 10 m pixels whose corner is at (top, left), both multiples of LATTICE."""

    def window(raster: Raster, detail: int) -> Raster:
        grids = {}
        for gsd, values in raster.grids.items():
            factor = gsd // 10
            rows = slice(top // factor * detail, -(-(top + size) // factor) * detail)
            columns = slice(left // factor * detail, -(-(left + size) // factor) * detail)
            grids[gsd] = values[..., rows, columns]
        return replace(raster, grids=grids)

    rasters = {name: window(raster, modality(name).detail) for name, raster in sample.rasters.items()}
    a, b, c, d, e, f = sample.transform
    corner = (a, b, c + a * left + b * top, d, e, f + d * left + e * top)
    return replace(sample, rasters=rasters, transform=corner)


def random_cut(sample: Sample, size: int, rng: np.random.Generator) -> Sample:
    """A random window on the lattice; the sample itself where it has that size already.

    Raises:
        DataError: if the sample is smaller.
    """
    height, width = sample.shape
    if height < size or width < size:
        raise DataError(
            f"sample {sample.key} is {height} x {width} pixels, smaller than a tile of {size}; "
            f"choose --config.data.tile={min(height, width)} or less, or leave the sample out"
        )
    top, left = (int(rng.integers((extent - size) // LATTICE + 1)) * LATTICE for extent in (height, width))
    return sample if (height, width) == (size, size) else cut(sample, top, left, size)
