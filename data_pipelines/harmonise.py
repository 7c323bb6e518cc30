"""Taking off what an audit found: Sentinel-2 without the offset of 1000, and the vegetation index that follows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit
from data_pipelines.offsets import OFFSET, PRODUCTS, find_offsets, frames
from data_pipelines.sample import Raster, Sample, grid_bands
from data_pipelines.sources import Source

Offsets = Mapping[str, Sequence[int | None]]
"""Product -> offset of each frame: 0, 1000, or None where it is unknown, which is left alone."""

REMOVED = "{}_offset_removed"
"""Attribute of a harmonised sample: digital numbers taken off a product, 0 where it had none; "unknown" where nothing
could be told; for a series whose frames differ, those of each frame with commas between."""

_SATURATED = 32767


def harmonise(sample: Sample, offsets: Offsets | None = None) -> Sample:
    """A sample without offsets; what was taken off is recorded in its attributes.

    What had the offset loses 1000 digital numbers (0.1 of reflectance) but does not fall below 1: 0 is no data and
    stays so, as do saturated numbers. If S2L2A changed, NDVI is computed again from it. S2RGB is a picture whose
    stretch is unknown, and stays.

    Args:
        sample: left as it is.
        offsets: as found; None finds them (`offsets.find_offsets`).

    Raises:
        DataError: if the offsets do not fit the sample, or it was harmonised before and has still something to lose.
    """
    if offsets is None:
        offsets = {name: [one.value for one in found] for name, found in find_offsets(sample).items()}
    rasters, attributes = dict(sample.rasters), dict(sample.attributes)
    for name in PRODUCTS:
        if name not in rasters or name not in offsets:
            continue
        _check(sample, name, offsets[name])
        rasters[name] = _without_offset(rasters[name], offsets[name])
        attributes.setdefault(REMOVED.format(name), _recorded(offsets[name]))
    if "NDVI" in rasters and OFFSET in offsets.get("S2L2A", ()) and "S2L2A" in rasters:
        rasters["NDVI"] = vegetation_index(rasters["S2L2A"], rasters["NDVI"])
        attributes["NDVI_recomputed"] = True
    return replace(sample, rasters=rasters, attributes=attributes)


class Harmonised:
    """Another source's samples, harmonised as they are read.

    Args:
        source: read from.
        offsets: key -> product -> offset of each frame, as `audit.read_offsets` gives them; None finds those of each
            sample when it is read.
    """

    def __init__(self, source: Source, offsets: Mapping[str, Offsets] | None = None):
        self.name = source.name
        self.index = source.index
        self._source, self._offsets = source, offsets

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._source)

    def __getitem__(self, i: int) -> Sample:
        """Read and harmonise sample `i`.

        Raises:
            DataError: if it cannot be read, or the audit does not know it.
        """
        sample = self._source[i]
        if self._offsets is None:
            return harmonise(sample)
        if sample.key not in self._offsets:
            raise DataError(f"sample {sample.key} is not in the audit; run `terra-jax audit` on the data as they are")
        return harmonise(sample, self._offsets[sample.key])


def harmonised(source: Source, offsets: Mapping[str, Offsets] | None = None) -> Source:
    """The source with each sample harmonised; see `Harmonised`."""
    return Harmonised(source, offsets)


def vegetation_index(surface: Raster, like: Raster) -> Raster:
    """NDVI of S2L2A's B08 and B04; NaN where either has no data or both are dark to nothing.

    Args:
        surface: S2L2A in digital numbers or reflectance, without an offset.
        like: an NDVI whose dtype and time the result takes.
    """
    names = grid_bands("S2L2A", surface.grids)[10]
    red, near = (surface.grids[10][..., [names.index(band)], :, :].astype(np.float32) for band in ("B04", "B08"))
    total = near + red
    with np.errstate(divide="ignore", invalid="ignore"):
        index = np.where((red != 0) & (near != 0) & (total > 0), (near - red) / total, np.nan)
    return Raster({10: index.astype(like.grids[10].dtype)}, Unit.INDEX, like.time)


def _check(sample: Sample, name: str, offsets: Sequence[int | None]) -> None:
    if OFFSET in offsets and REMOVED.format(name) in sample.attributes:
        raise DataError(f"sample {sample.key}: {name} was harmonised before; audit the data as they are now")
    if len(offsets) != frames(sample.rasters[name]) or not set(offsets) <= {None, 0, OFFSET}:
        raise DataError(
            f"sample {sample.key}: offsets {list(offsets)} do not fit {name} with {frames(sample.rasters[name])} "
            "frames; audit the data as they are now"
        )
    unit = sample.rasters[name].unit
    if unit not in (Unit.DN10000, Unit.REFLECTANCE):
        raise DataError(f"sample {sample.key}: {name} is in {unit.value}, not in dn10000 or reflectance; convert it")


def _without_offset(raster: Raster, offsets: Sequence[int | None]) -> Raster:
    if OFFSET not in offsets:
        return raster
    grids = {}
    for gsd, grid in raster.grids.items():
        images = grid if grid.ndim == 4 else grid[None]
        lowered = [
            _lowered(image, raster.unit) if found else image for image, found in zip(images, offsets, strict=True)
        ]
        grids[gsd] = np.stack(lowered).reshape(grid.shape)
    return replace(raster, grids=grids)


def _lowered(image: np.ndarray, unit: Unit) -> np.ndarray:
    """Subtract in the image's own dtype, where it cannot wrap."""
    one, offset, top = (1, OFFSET, _SATURATED) if unit is Unit.DN10000 else (1e-4, OFFSET / 10_000, np.inf)
    kind = image.dtype.type
    with np.errstate(invalid="ignore"):
        above = image > kind(offset) + kind(one)
    lowered = np.where(above, image - np.where(above, kind(offset), kind(0)), kind(one))
    kept = (image == 0) | (image >= top) | (image != image)
    return np.where(kept, image, lowered)


def _recorded(offsets: Sequence[int | None]) -> int | str:
    """One attribute for all frames."""
    if len(set(offsets)) == 1 and offsets[0] is not None:
        return offsets[0]
    if set(offsets) == {None}:
        return "unknown"
    return ",".join("unknown" if offset is None else str(offset) for offset in offsets)
