"""terra_jax's side of `benchmark.py data`: writes the samples in every format, or times one reader.

Started by benchmark.py; the arguments are the task ("fixtures", "reader" or "loader") and its settings as JSON.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_data import timed

from data_pipelines.export import export_zarr
from data_pipelines.records import RecordWriter
from data_pipelines.replication import native_or_fine
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index, open_source

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "data_pipelines"))

import corpora  # the tests' writers of the corpora's formats

MODALITIES = ("S2L2A", "S1RTC", "DEM", "LULC")


def make_samples(count: int, pixels: int, tiles: str) -> list[Sample]:
    """Drawn samples, or real tiles rolled, turned and mirrored at random on the 60 m lattice."""
    if not tiles:
        drawn = open_source("procedural", samples=count, tile=pixels, modalities=MODALITIES)
        return [drawn[i] for i in range(count)]
    source = open_source("geotiff", path=tiles, modalities=MODALITIES)
    rng = np.random.default_rng(0)
    return [_varied(source[n % len(source)], f"sample{n:04d}", rng) for n in range(count)]


def _varied(sample: Sample, key: str, rng: np.random.Generator) -> Sample:
    shift, turns, mirrored = 12 * rng.integers(0, 18, 2), int(rng.integers(4)), bool(rng.integers(2))

    def vary(name: str) -> Raster:
        image = corpora.at_10m(sample, name)
        side = image.shape[-1] // 12 * 12  # whole pixels of every grid, whatever the shift and the turn
        image = np.rot90(np.roll(image[:, :side, :side], tuple(shift), (1, 2)), turns, (1, 2))
        return native_or_fine(name, Raster({10: np.ascontiguousarray(image[:, :, ::-1] if mirrored else image)},
                                           sample.rasters[name].unit, sample.rasters[name].time))  # fmt: skip

    return replace(sample, key=key, rasters={name: vary(name) for name in sample.rasters})


def fixtures(settings: dict[str, Any]) -> dict[str, Any]:
    """Write every format that is asked for."""
    root, samples = Path(settings["root"]), make_samples(settings["samples"], settings["pixels"], settings["tiles"])
    for name in settings["formats"]:
        WRITERS[name](root / name, samples)
    return {}


def _records(compression: str) -> Callable[[Path, Sequence[Sample]], None]:
    def write(root: Path, samples: Sequence[Sample]) -> None:
        with RecordWriter(root, compression=compression) as writer:
            for sample in samples:
                writer.write(sample)

    return write


def _as_grd(sample: Sample) -> Sample:
    return replace(sample, rasters={"S2L2A": sample.rasters["S2L2A"], "S1GRD": sample.rasters["S1RTC"]})


def _majortom(root: Path, samples: Sequence[Sample]) -> None:
    kept = ("S2L2A", "S1RTC", "DEM")
    corpora.write_majortom(root, [replace(s, rasters={name: s.rasters[name] for name in kept}) for s in samples])


def _geotiffs(root: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        for name in sample.rasters:
            image = corpora.at_10m(sample, name)
            path = root / name / f"{sample.key}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(corpora.geotiff(image.astype(np.float32) if image.dtype == np.float16 else image, sample))


def _zips(root: Path, samples: Sequence[Sample]) -> None:
    for sample in samples:
        for name in sample.rasters:
            path = root / name / f"{sample.key}.zarr.zip"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(corpora.terramesh_member(sample, name))


def _tortilla(root: Path, samples: Sequence[Sample]) -> None:
    root.mkdir()
    (root / "set.tortilla").write_bytes(corpora.benv2([_as_grd(sample) for sample in samples]))


class Held:
    """The samples as a source, for what is written from one."""

    name = "held"

    def __init__(self, samples: Sequence[Sample]):
        self._samples = samples
        places = np.array([(sample.lon, sample.lat) for sample in samples])
        self.index = Index.at([sample.key for sample in samples], places[:, 0], places[:, 1])

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples)

    def __getitem__(self, i: int) -> Sample:
        """One of them."""
        return self._samples[i]


def _tfds(root: Path, samples: Sequence[Sample]) -> None:
    from data_pipelines.tfds import EarthSamples

    EarthSamples(source=Held(samples), data_dir=root).download_and_prepare()


WRITERS: dict[str, Callable[[Path, Sequence[Sample]], Any]] = {
    "records": _records("lz4"),
    "records-zstd": _records("zstd"),
    "terramesh": corpora.write_terramesh,
    "ssl4eo": lambda root, samples: corpora.write_ssl4eo(root, [[_as_grd(sample)] for sample in samples]),
    "majortom": _majortom,
    "geotiff": _geotiffs,
    "zips": _zips,
    "tortilla": _tortilla,
    "zarr": lambda root, samples: export_zarr(Held(samples), root),
    "tfds": _tfds,
}


def reader(settings: dict[str, Any]) -> dict[str, Any]:
    """One sample after the other, as the source yields it, copied into a batch's place."""
    source = open_source(settings["option"], path=settings["path"])
    arrays = [grid for raster in source[0].rasters.values() for grid in raster.grids.values()]
    slots = [np.empty_like(array) for array in arrays]

    def read(i: int) -> None:
        grids = (grid for raster in source[i].rasters.values() for grid in raster.grids.values())
        for slot, grid in zip(slots, grids, strict=True):
            np.copyto(slot, grid)

    return {**timed(len(source), read, settings["seconds"]), "bytes": sum(array.nbytes for array in arrays)}


def loader(settings: dict[str, Any]) -> dict[str, Any]:
    """Batches of whole tiles, as training gets them."""
    from data_pipelines.loader import Loader
    from data_pipelines.recipes.terrafm import TileRecipe

    source = open_source(settings["option"], path=settings["path"])
    recipe = TileRecipe(MODALITIES, settings["pixels"] // 12 * 12)
    size = min(settings["batch"], len(source))
    with Loader(source, recipe, np.arange(len(source)), batch_size=size, seed=0, threads=1) as batches:
        for batch in islice(batches, 4):
            held = sum(array.nbytes for array in batch.values()) // size
        done, faults = 0, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        cpu, began = time.process_time(), time.perf_counter()
        while done < len(source) or time.perf_counter() - began < settings["seconds"]:
            next(batches)
            done += size
        passed, used = time.perf_counter() - began, time.process_time() - cpu
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"samples_per_second": done / passed, "cpu_ms": 1e3 * used / done, "faults": faults / done, "bytes": held}


if __name__ == "__main__":
    print(json.dumps({"fixtures": fixtures, "reader": reader, "loader": loader}[sys.argv[1]](json.loads(sys.argv[2]))))
