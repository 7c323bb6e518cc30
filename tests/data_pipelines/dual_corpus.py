"""Places with pixels and tokens made by hand: every token says where it lies, of which crop setting and sample."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipelines.modalities import modality
from data_pipelines.recipes.terramind import DualScaleLayout, StreamLayout
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.dual_scale import DualScaleSource
from data_pipelines.sources.tokens import TokenCorpus
from data_pipelines.tokens import TokenJob, TokenRecord, TokenWriter
from data_pipelines.transforms.crops import Crop

TILE, GRID, SETTINGS = 36, 4, 3
EVERYTHING = ("S2L2A", "S1GRD", "S1RTC", "DEM")
TOKENS = ("S2L2A", "S1GRD", "S1RTC", "LULC", "NDVI")
SENTINELS = (5, 6, 7, 8, 9)
LAYOUT = DualScaleLayout(
    inputs=(
        *(StreamLayout(name, name, "pixels", GRID**2) for name in EVERYTHING),
        *(StreamLayout(f"tok_{name}", name, "tokens", GRID**2) for name in TOKENS),
        StreamLayout("coords", "coords", "sequence", 4),
    ),
    outputs=(
        *(StreamLayout(f"tok_{name}", name, "tokens", GRID**2) for name in TOKENS),
        StreamLayout("coords", "coords", "sequence", 4),
    ),
    sentinels=SENTINELS,
)


def pixels_of(i: int, names=EVERYTHING, tile: int = TILE) -> Sample:
    """A sample whose numbers are all i."""
    rasters = {}
    for name in names:
        table = modality(name)
        sides = {gsd: -(-tile * 10 // gsd) for gsd in table.grids}
        grids = {gsd: np.full((len(b), sides[gsd], sides[gsd]), i, table.dtype) for gsd, b in table.grids.items()}
        rasters[name] = Raster(grids, table.unit)
    return Sample(f"s{i}", rasters, 3.0 + i, 45.0, 32631, (10.0, 0.0, 6e5, 0.0, -10.0, 5e6), "fake")


def record_of(i: int, setting: int, names=TOKENS) -> TokenRecord:
    """Token p of a modality's place m is 1000 m + 16 * setting + p, so that it tells where it is from."""
    ids = {name: 1000 * TOKENS.index(name) + GRID**2 * setting + np.arange(GRID**2).reshape(GRID, GRID)
           for name in names}  # fmt: skip
    ids = {name: values.astype(np.int32) for name, values in ids.items()}
    ids["coords"] = np.array([300 + i, 2000 + i, 3], np.int32)
    crop = Crop(setting, 2, 32, 30, bool(setting % 2))
    return TokenRecord(f"s{i}", setting, crop, (TILE, TILE), ids, {name: f"made-{name}" for name in ids})


def write_corpus(path: Path, records, settings: int = SETTINGS) -> Path:
    """A corpus of samples, each a list of records."""
    names = {name for kept in records for record in kept for name in record.ids}
    job = TokenJob(
        source={"name": "fake", "keys": "0"},
        tokenizers={name: {"model": name, "fingerprint": f"made-{name}", "codebook": 9000} for name in sorted(names)},
        size=32, settings=settings, scale=0.8, seed=0, samples=len(records), shard_size=len(records), partial=True,
    )  # fmt: skip
    writer = TokenWriter(path, job)
    keys = [kept[0].key for kept in records]
    index = Index.at(keys, np.full(len(keys), 3.0), np.full(len(keys), 45.0))
    writer.commit(0, index, [record for kept in records for record in kept])
    assert writer.finish()
    return path


class Pixels:
    """Samples by number, some of which may be replaced."""

    name = "fake"

    def __init__(self, numbers, replaced=None):
        self.numbers, self.replaced = list(numbers), replaced or {}
        self.index = Index.at(
            [f"s{i}" for i in self.numbers], np.full(len(self.numbers), 3.0), np.full(len(self.numbers), 45.0)
        )

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        number = self.numbers[i]
        return self.replaced.get(number) or pixels_of(number)


def joined(path: Path, *, names=EVERYTHING, tokens=TOKENS, count: int = 2) -> DualScaleSource:
    """A source of a few samples with these pixels and tokens."""
    records = [[record_of(i, setting, tokens) for setting in range(SETTINGS)] for i in range(count)]
    pixels = Pixels(range(count), {i: pixels_of(i, names) for i in range(count)})
    return DualScaleSource(pixels, TokenCorpus(write_corpus(path, records)))


def without(sample, *names):
    """A sample that lacks pixels and tokens of some modalities."""
    records = tuple(
        replace(record, ids={name: ids for name, ids in record.ids.items() if name not in names})
        for record in sample.records
    )
    return replace(sample, rasters={n: r for n, r in sample.rasters.items() if n not in names}, records=records)
