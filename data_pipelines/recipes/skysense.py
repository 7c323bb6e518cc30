"""What one batch of SkySense's objective is: an image and two series of one place, views of them, dates, the region.

Views share one geometry: a box in Sentinel-2 pixels cuts all three modalities. Series are shipped once, on native
grids; each view names the frames that it sees.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.radiometry import require, to_native_grids
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.regions import RegionTable
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources.assembly import check_complete
from data_pipelines.transforms.cuts import random_cut
from data_pipelines.transforms.paired_crops import check_scale, overlapping_boxes
from data_pipelines.transforms.series import acquisition_times, evenly_spaced, random_frames, random_sub_series

GLOBAL_VIEWS = 2
HR = "HR"
SERIES = ("S2L2A", "S1GRD")
BANDS = {
    "HR": ("red", "green", "blue"),
    "S2L2A": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
    "S1GRD": ("VV", "VH"),
}
"""What the encoders take, in this order; the atmosphere's bands of Sentinel-2 are not shipped."""


@dataclass(frozen=True)
class SkySenseRecipe:
    """From a triple sample to one example of contrastive learning over views.

    Attributes:
        tile: side of the square tile that is shipped, 10 m pixels; larger samples are cut at random.
        frames: series -> frames of a view; a series that is left out is not used.
        shipped: series -> frames shipped, of which the views draw theirs.
        regions: rows of the prototype table.
        high_resolution: whether the HR image is used.
        local_views: number of local views, beside two global ones.
        global_scale, local_scale: bounds of a crop's area, as fractions of the tile's.
        date_jitter: most days by which a date is moved.
        flip: probability of a flip, for either axis.
        outside: "refuse" places outside the table's regions, or take the "nearest" one's row.
        seed: of all draws.

    Raises:
        DataError: an option is impossible.
    """

    tile: int
    frames: Mapping[str, int]
    shipped: Mapping[str, int]
    regions: RegionTable
    high_resolution: bool = True
    local_views: int = 0
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.1, 0.4)
    date_jitter: int = 2
    flip: float = 0.5
    outside: str = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_series(self.frames)
        _check_series(self.shipped)
        for name, frames in self.frames.items():
            if self.shipped.get(name, 0) < frames:
                raise DataError(f"{name}: views of {frames} frames out of {self.shipped.get(name, 0)}; ship more")
        check_scale("global_scale", self.global_scale, self.tile)
        if self.local_views:
            check_scale("local_scale", self.local_scale, self.tile)

    @property
    def views(self) -> int:
        """Number of views, the global ones first."""
        return GLOBAL_VIEWS + self.local_views

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        spec = _pixel_spec(self.tile, {name: self.shipped[name] for name in self.frames}, self.high_resolution)
        for name, frames in self.frames.items():
            spec[f"{name}/frames"] = ArraySpec((self.views, frames), "int32")
            spec[f"{name}/days"] = ArraySpec((self.views, frames), "int32", "day of year from 0")
            spec[f"{name}/present"] = ArraySpec((self.views, frames), "bool")
        if self.high_resolution:
            spec["HR/present"] = ArraySpec((self.views, 1), "bool")
        return {
            **spec,
            "boxes": ArraySpec((self.views, 4), "float32", "pixel"),  # top, left, height, width
            "flips": ArraySpec((self.views, 2), "bool"),  # upside down, left to right
            "region": ArraySpec((), "int32"),
            "lonlat": ArraySpec((2,), "float32", "degree"),
        }

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """One example; a pure function of the sample, the position in the stream and the seed.

        Raises:
            DataError: a series without dates or out of order, an HR image that is not 32 pixels to one of
                Sentinel-2, a place outside every region, or none of the modalities.
        """
        rng = np.random.default_rng([self.seed, position])
        region = self.regions.find(sample.lon, sample.lat, sample.key, self.outside)
        tile = random_cut(check_triple(sample, self.frames, self.high_resolution), self.tile, rng)
        example: dict[str, np.ndarray] = {}
        for name, frames in self.frames.items():
            times = _times(tile, name)
            kept = random_frames(rng, len(times), self.shipped[name])
            example |= _series_arrays(tile, name, kept, self.shipped[name], self.tile)
            views = random_sub_series(rng, times[kept], self.views, frames, self.date_jitter)
            example[f"{name}/frames"], example[f"{name}/days"] = views.frames, views.days
            example[f"{name}/present"] = views.present
        if self.high_resolution:
            example["HR"] = _high_resolution(tile, self.tile)
            example["HR/present"] = np.full((self.views, 1), HR in tile.rasters)
        example["boxes"] = overlapping_boxes(
            rng, self.tile, GLOBAL_VIEWS, self.local_views, self.global_scale, self.local_scale
        )
        example["flips"] = rng.random((self.views, 2)) < self.flip
        example["region"] = np.asarray(region, np.int32)
        example["lonlat"] = np.array([sample.lon, sample.lat], np.float32)
        return example


@dataclass(frozen=True)
class SkySenseTileRecipe:
    """Whole tiles for evaluation: pixels, dates, land cover and clouds, without views.

    Attributes:
        tile: side of the square tile; larger samples are cut the same way at every call.
        shipped: series -> frames; longer series are thinned evenly, shorter ones padded.
        regions: rows of the prototype table; places outside take the row of the nearest region.
        high_resolution: whether the HR image is used.
    """

    tile: int
    shipped: Mapping[str, int]
    regions: RegionTable
    high_resolution: bool = True

    def __post_init__(self) -> None:
        _check_series(self.shipped)

    @cached_property
    def batch_spec(self) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and units of one example."""
        spec = _pixel_spec(self.tile, self.shipped, self.high_resolution)
        for name, frames in self.shipped.items():
            spec[f"{name}/days"] = ArraySpec((frames,), "int32", "day of year from 0")
            spec[f"{name}/present"] = ArraySpec((frames,), "bool")
        if self.high_resolution:
            spec["HR/present"] = ArraySpec((1,), "bool")
        return {
            **spec,
            "labels": ArraySpec((self.tile, self.tile), "uint8", "class"),
            "cloud": ArraySpec((self.shipped.get("S2L2A", 0),), "float32"),  # share of each frame; NaN unknown
            "region": ArraySpec((), "int32"),
            "lonlat": ArraySpec((2,), "float32", "degree"),
        }

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """One example; the position plays no part.

        Raises:
            DataError: as `SkySenseRecipe` does, but for regions.
        """
        checked = check_triple(sample, self.shipped, self.high_resolution)
        tile = random_cut(checked, self.tile, np.random.default_rng(0))
        example: dict[str, np.ndarray] = {}
        cloud = np.full(self.shipped.get("S2L2A", 0), np.nan, np.float32)
        for name, frames in self.shipped.items():
            times = _times(tile, name)
            kept = evenly_spaced(len(times), frames)
            example |= _series_arrays(tile, name, kept, frames, self.tile)
            everything = random_sub_series(np.random.default_rng(0), times[kept], 1, frames)
            example[f"{name}/days"], example[f"{name}/present"] = everything.days[0], everything.present[0]
            known = tile.rasters[name].frames.get("cloud_fraction") if name in tile.rasters else None
            if name == "S2L2A" and known is not None:
                cloud[: len(kept)] = known[kept]
        if self.high_resolution:
            example["HR"] = _high_resolution(tile, self.tile)
            example["HR/present"] = np.full(1, HR in tile.rasters)
        labels = np.zeros((self.tile, self.tile), np.uint8)
        if "LULC" in tile.rasters:
            labels = tile.rasters["LULC"].grids[10][0].astype(np.uint8)
        return {
            **example,
            "labels": labels,
            "cloud": cloud,
            "region": np.asarray(self.regions.find(sample.lon, sample.lat, sample.key, "nearest"), np.int32),
            "lonlat": np.array([sample.lon, sample.lat], np.float32),
        }


def check_triple(sample: Sample, series: Mapping[str, int], high_resolution: bool) -> Sample:
    """The sample, if it has one of the modalities and its HR image the geometry of the others.

    Raises:
        DataError: naming the sample and what is wrong.
    """
    wanted = [*([HR] if high_resolution else []), *series]
    if not any(name in sample.rasters for name in wanted):
        raise DataError(f"sample {sample.key} has none of {', '.join(wanted)}; add one or leave the sample out")
    if high_resolution and HR in sample.rasters:
        side, detail = sample.rasters[HR].grids[10].shape[-2:], modality(HR).detail
        others = [name for name in series if name in sample.rasters]
        shapes = {name: sample.rasters[name].grids[10].shape[-2:] for name in others}
        shapes = shapes or {"its whole pixels": (side[0] // detail, side[1] // detail)}
        for name, (height, width) in shapes.items():
            if side != (detail * height, detail * width):
                raise DataError(
                    f"sample {sample.key}: HR is {side[1]} x {side[0]} pixels and {name} {width} x {height}; "
                    f"cut HR to {detail} pixels for each, {detail * width} x {detail * height}"
                )
    return sample


def _check_series(frames: Mapping[str, int]) -> None:
    for name, count in frames.items():
        if name not in SERIES:
            raise DataError(f"{name!r} is no series of SkySense; choose from {', '.join(SERIES)}")
        if count < 1:
            raise DataError(f"{name}: {count} frames; give at least one, or leave the series out")


def _grids(name: str) -> dict[int, list[int]]:
    """Grid -> places, among that grid's bands, of those that are shipped; grids of which none is are left out."""
    table = modality(name)
    kept = {
        gsd: [place for place, i in enumerate(index) if table.bands[i].name in BANDS[name]]
        for gsd, index in table.grids.items()
    }
    return {gsd: places for gsd, places in kept.items() if places}


def _pixel_spec(tile: int, frames: Mapping[str, int], high_resolution: bool) -> dict[str, ArraySpec]:
    table, spec = modality(HR), {}
    if high_resolution:
        spec[HR] = ArraySpec((len(BANDS[HR]), table.detail * tile, table.detail * tile), table.dtype, str(table.unit))
    for name, count in frames.items():
        table = modality(name)
        for gsd, bands in _grids(name).items():
            side = math.ceil(tile * 10 / gsd)
            spec[f"{name}/{gsd}"] = ArraySpec((count, len(bands), side, side), table.dtype, str(table.unit))
    return spec


def _times(tile: Sample, name: str) -> np.ndarray:
    if name not in tile.rasters:
        return np.zeros(0, "datetime64[s]")
    return acquisition_times(tile.key, name, tile.rasters[name])


def _series_arrays(tile: Sample, name: str, kept: np.ndarray, shipped: int, pixels: int) -> dict[str, np.ndarray]:
    """Pixels of the kept frames, zeros behind them."""
    arrays = {}
    native = _native(tile, name) if len(kept) else None
    for gsd, bands in _grids(name).items():
        side = math.ceil(pixels * 10 / gsd)
        out = np.zeros((shipped, len(bands), side, side), modality(name).dtype)
        if native is not None:
            grid = native.grids[gsd]
            out[: len(kept)] = (grid if grid.ndim == 4 else grid[None])[kept[:, None], bands]
        arrays[f"{name}/{gsd}"] = out
    return arrays


def _native(tile: Sample, name: str) -> Raster:
    table, raster = modality(name), tile.rasters[name]
    require(raster, table.unit, f"sample {tile.key}: {name}")
    for grid in raster.grids.values():
        check_complete(name, grid, f"sample {tile.key}: {name}", keep_nodata=False)
    held = {gsd: grid.shape[-3] for gsd, grid in raster.grids.items()}
    native = all(held.get(gsd) == len(table.grids[gsd]) for gsd in _grids(name))
    return raster if native else to_native_grids(name, raster)


def _high_resolution(tile: Sample, pixels: int) -> np.ndarray:
    table, side = modality(HR), modality(HR).detail * pixels
    if HR not in tile.rasters:
        return np.zeros((len(table.bands), side, side), table.dtype)
    raster = require(tile.rasters[HR], table.unit, f"sample {tile.key}: {HR}")
    return np.ascontiguousarray(raster.grids[10])
