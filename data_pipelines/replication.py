"""Which 20 m and 60 m bands of a raster stored at 10 m are mere copies of their pixels: a fast proof per sample."""

import functools
from dataclasses import replace

import numpy as np

from data_pipelines.modalities import modality
from data_pipelines.sample import Raster


def coarse_pixels(fine: np.ndarray, step: int) -> np.ndarray | None:
    """One pixel of each block of an image that is made of constant blocks; None if it is not.

    Args:
        fine: (..., y, x); blocks begin at the top-left corner and may be cut off at the right and the lower edge.
        step: side of a block.
    """
    coarse = np.ascontiguousarray(fine[..., ::step, ::step])
    # NaN equals NaN where it is the same bits.
    bits, cells = (a.view(f"u{a.itemsize}") if a.dtype.kind == "f" else a for a in (fine, coarse))
    for k in range(1, step):
        others = bits[..., ::step, k::step]
        if not (cells[..., : others.shape[-1]] == others).all():
            return None
    rows = _widest(fine)
    for k in range(1, step):
        others = rows[..., k::step, :]
        if not (rows[..., ::step, :][..., : others.shape[-2], :] == others).all():
            return None
    return coarse


def _widest(array: np.ndarray) -> np.ndarray:
    """The same bytes as the widest integers that rows divide into: fewer numbers to compare, and NaN is a number."""
    size = array.shape[-1] * array.itemsize
    whole = array.strides[-1] == array.itemsize and size % 8 == 0
    return array.view(np.uint64 if whole else f"u{array.itemsize}")


def native_or_fine(name: str, raster: Raster) -> Raster:
    """A raster on its native grids where that loses nothing, and unchanged where it does.

    Corpora resample coarse bands to 10 m in different ways: nearest-neighbour copies that start at the tile's corner
    go back to one pixel each; copies on another lattice, and interpolated bands, stay at 10 m.

    Args:
        name: modality.
        raster: its one grid is 10 m with every band, (..., band, y, x); other rasters pass unchanged.
    """
    grids = _grids(name)
    if len(grids) == 1 or tuple(raster.grids) != (10,):
        return raster
    fine, native = raster.grids[10], {}
    # The coarsest grid first, where what is no copy shows it soonest; neighbouring bands in one go.
    for gsd, bands in reversed(grids.items()):
        runs = [fine[..., run, :, :] for run in _runs(bands)]
        parts = runs if gsd == 10 else [coarse_pixels(run, gsd // 10) for run in runs]
        if any(part is None for part in parts):
            return raster
        native[gsd] = np.concatenate(parts, axis=-3)  # type: ignore[arg-type]
    return replace(raster, grids=dict(reversed(native.items())))


@functools.lru_cache(maxsize=64)
def _grids(name: str) -> dict[int, tuple[int, ...]]:
    return modality(name).grids


def _runs(numbers: tuple[int, ...]) -> list[slice]:
    """Consecutive numbers as slices."""
    runs: list[slice] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = slice(runs[-1].start, number + 1)
        else:
            runs.append(slice(number, number + 1))
    return runs
