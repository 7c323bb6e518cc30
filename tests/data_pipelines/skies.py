"""Samples that are hard to audit: offsets put on, and cloud, haze, relief, resampling over them."""

from dataclasses import replace

import numpy as np

from data_pipelines.modalities import modality
from data_pipelines.radiometry import to_10m
from data_pipelines.sample import Raster, Sample, grid_bands
from data_pipelines.sources import Index

CIRRUS = {"B10": 0.7, "B09": 0.7, "B11": 0.75, "B12": 0.6}
"""How bright ice cloud is in a band over how bright it is in the visible; 1 elsewhere."""


class Few:
    """A source of given samples."""

    name = "few"

    def __init__(self, samples):
        self._samples = list(samples)
        self.index = Index.at([s.key for s in samples], [s.lon for s in samples], [s.lat for s in samples])

    def __len__(self):
        return len(self._samples)

    def __getitem__(self, i):
        return self._samples[i]


def lifted(sample: Sample, **offsets: int) -> Sample:
    """A sample with numbers added to its products: `lifted(sample, S2L1C=1000)`."""
    return changed(sample, {name: lambda _, values, by=by: values + by for name, by in offsets.items()})


def changed(sample: Sample, change) -> Sample:
    """A sample with products changed: name -> function of (band, numbers as float64)."""
    rasters = dict(sample.rasters)
    for name, function in change.items():
        grids = {}
        for gsd, names in grid_bands(name, rasters[name].grids).items():
            grid = rasters[name].grids[gsd]
            made = [function(band, grid[i].astype(np.float64)) for i, band in enumerate(names)]
            grids[gsd] = np.clip(np.rint(np.stack(made)), 0, 32767).astype(grid.dtype)
        rasters[name] = replace(rasters[name], grids=grids)
    return replace(sample, rasters=rasters)


def veil(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A smooth positive field of mean 1."""
    y, x = np.linspace(0, 1, shape[0])[:, None], np.linspace(0, 1, shape[1])
    waves = sum(
        rng.normal() * np.cos(2 * np.pi * (rng.normal(0, 1.5) * x + rng.normal(0, 1.5) * y) + rng.uniform(0, 6))
        for _ in range(6)
    )
    field = np.exp(0.35 * waves)
    return field / field.mean()


def under_cirrus(sample: Sample, rng: np.random.Generator, amount: float) -> Sample:
    """Ice cloud of a mean reflectance over both products."""
    state = rng.bit_generator.state

    def add(band: str, values: np.ndarray) -> np.ndarray:
        rng.bit_generator.state = state  # one cloud for all bands
        cloud = amount * veil(values.shape, rng)
        return values * (1 - np.minimum(cloud, 0.9)) + 1e4 * cloud * CIRRUS.get(band, 1.0)

    return changed(sample, {"S2L1C": add, "S2L2A": add})


def relief_corrected(sample: Sample, rng: np.random.Generator) -> Sample:
    """S2L2A as if shaded slopes had been brightened and sunny ones darkened."""
    state = rng.bit_generator.state

    def correct(_: str, values: np.ndarray) -> np.ndarray:
        rng.bit_generator.state = state
        return values * np.clip(veil(values.shape, rng), 0.6, 1.8)

    return changed(sample, {"S2L2A": correct})


def uniform(sample: Sample, level: dict[str, float], rng: np.random.Generator, texture: float = 0.01) -> Sample:
    """Ground of nearly one spectrum: what S2L1C sees at `level` (reflectance of bands), S2L2A 10 % brighter."""
    state = rng.bit_generator.state

    def ground(scale: float):
        def paint(band: str, values: np.ndarray) -> np.ndarray:
            rng.bit_generator.state = state
            if band == "B10":
                return 15 + rng.normal(0, 2, values.shape)
            return 1e4 * scale * level[band] * (1 + texture * rng.normal(0, 1, values.shape))

        return paint

    return changed(sample, {"S2L1C": ground(1.0), "S2L2A": ground(1.1)})


def spectrum(**groups: float) -> dict[str, float]:
    """Reflectance of all bands from that of a few: those between take the last one named."""
    level, last = {}, next(iter(groups.values()))
    for band in modality("S2L1C").band_names:
        last = groups.get(band, last)
        level[band] = last
    return level


def interpolated(sample: Sample, name: str) -> Sample:
    """A product at 10 m whose coarse bands are no copies any more."""
    grid = to_10m(name, sample.rasters[name]).grids[10].astype(np.float32)
    smooth = (grid + np.roll(grid, 1, -1) + np.roll(grid, 1, -2)) / 3
    coarse = np.array([band.gsd > 10 for band in modality(name).bands])
    grid[coarse] = smooth[coarse]
    raster = sample.rasters[name]
    made = Raster({10: np.rint(grid).astype(np.int16)}, raster.unit, raster.time)
    return replace(sample, rasters={**sample.rasters, name: made})


def cut(sample: Sample, pixels: int) -> Sample:
    """The top-left corner of a sample; a multiple of 6 pixels."""
    rasters = {
        name: replace(
            raster, grids={g: a[..., : pixels * 10 // g, : pixels * 10 // g] for g, a in raster.grids.items()}
        )
        for name, raster in sample.rasters.items()
    }
    return replace(sample, rasters=rasters)
