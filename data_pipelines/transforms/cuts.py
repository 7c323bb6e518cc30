"""Cutting a window out of a sample without resampling anything."""

from dataclasses import replace

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.sample import Raster, Sample

LATTICE = 6
"""10 m pixels per 60 m pixel: windows start on this lattice, so that no coarse pixel is split at their corner."""


def cut(sample: Sample, top: int, left: int, size: int) -> Sample:
    """The square window of `size` 10 m pixels whose corner is at (top, left), both on the lattice (`lattice_phase`)."""

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


def lattice_phase(sample: Sample) -> tuple[int, int]:
    """Rows and columns from a sample's corner to the first 60 m pixel that lies whole in it, 0 to LATTICE - 1 each.

    Native grids begin at the corner. Where the 60 m bands of Sentinel-2 are held at 10 m, because they are no copies of
    coarse pixels from the corner on, the pixels tell where such pixels begin; 0 where there are none.
    """
    held = [(modality(name), raster.grids) for name, raster in sample.rasters.items()]
    if any(len(grids) > 1 for _, grids in held):
        return 0, 0
    for table, grids in held:
        coarse = table.grids.get(10 * LATTICE)
        if coarse and 10 in grids and len(table.grids) > 1:
            image = grids[10][..., coarse[0], :, :]
            return _first_edge(image, -2), _first_edge(image, -1)
    return 0, 0


def _first_edge(image: np.ndarray, axis: int) -> int:
    """Where the first block of LATTICE equal pixels begins along an axis; 0 if edges lie elsewhere, too."""
    image = np.moveaxis(image, axis, 0)
    edges = 1 + np.flatnonzero((image[1:] != image[:-1]).reshape(len(image) - 1, -1).any(axis=1))
    places = set((edges % LATTICE).tolist())
    return places.pop() if len(places) == 1 else 0


def random_cut(sample: Sample, size: int, rng: np.random.Generator) -> Sample:
    """A random window on the lattice; the sample itself where it has that size already.

    Raises:
        DataError: if the sample is smaller, or too small to hold such a window on the lattice.
    """
    height, width = sample.shape
    down, right = lattice_phase(sample)
    room = (height - down - size, width - right - size)
    if min(room) < 0:
        off = f", begins {down} x {right} pixels off the 60 m lattice," if down or right else ","
        raise DataError(
            f"sample {sample.key} is {height} x {width} pixels{off} smaller than a tile of {size}; "
            f"choose --config.data.tile={size + min(room)} or less, or leave the sample out"
        )
    top, left = (int(rng.integers(extent // LATTICE + 1)) * LATTICE for extent in room)
    return sample if (height, width) == (size, size) else cut(sample, top + down, left + right, size)
