"""What is to be prepared: a request as plain values, opened to the shards that it makes.

A request can be sent to other processes and machines; each opens it and makes shards by their number, whether
threads, processes or Apache Beam hand the numbers out.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_pipelines.audit import read_offsets
from data_pipelines.errors import DataError
from data_pipelines.folders import Folder
from data_pipelines.harmonise import harmonised
from data_pipelines.jobs import Format, Job, JobFolder, digest_of
from data_pipelines.modalities import MODALITIES, modality
from data_pipelines.prepare.terrafm import Cut, TerraFMTiles
from data_pipelines.record_index import FORMAT, VERSION, dataset_metadata, index_schema
from data_pipelines.records import record_and_row
from data_pipelines.sample import Sample
from data_pipelines.sources import Source, open_source
from data_pipelines.work import BROKEN, SoundReader

RECORDS = Format(FORMAT, VERSION, "dataset", "prepare the data again")
RECIPES = ("terrafm",)
DRAWN = ("procedural", "procedural_series")
"""Sources whose samples depend on a seed and a tile."""

CACHE = ".index"
"""Folder, within the output, of archives' indices while a job runs."""

_AHEAD = 4  # samples a thread may be ahead of the writer


@dataclass(frozen=True)
class Plan:
    """What `terra-jax prepare` was asked for.

    Attributes:
        source, path, modalities, samples, seed, series, keep_nodata: see `sources.open_source`.
        out: folder or fsspec URL of the records.
        tile: side of drawn tiles, or least side of others, 10 m pixels; with a recipe, side of its tiles.
        harmonise: take Sentinel-2's offset off where there is one.
        audit: JSON of `terra-jax audit` whose offsets are taken off; "" finds those of each sample.
        recipe: "" writes samples as they are; "terrafm" cuts Major TOM's cells (`prepare.terrafm`).
        landcover: with a recipe, folder of WorldCover GeoTIFFs; "" has none.
        ocean: with a recipe, share of open-sea tiles that is kept.
        frequent: share of training samples that the commonest classes of land cover must make up to be "frequent".
        compression: "lz4" (fast) or "zstd" (small).
        licence: of the data.
        shard_size: samples of the source a shard; a kill costs each worker at most one.
        threads: that read samples, of each worker.
        strict: stop at a sample that cannot be read.
        broken: unreadable samples in a row that stop the job; 0: none do.
    """

    source: str
    out: str = ""
    path: str = ""
    modalities: tuple[str, ...] | None = None
    samples: int | None = None
    tile: int | None = None
    seed: int = 0
    series: bool = False
    keep_nodata: bool = False
    harmonise: bool = False
    audit: str = ""
    recipe: str = ""
    landcover: str = ""
    ocean: float = 0.02
    frequent: float = 0.5
    compression: str = "lz4"
    licence: str = ""
    shard_size: int = 256
    threads: int = 4
    strict: bool = False
    broken: int = BROKEN

    def __post_init__(self) -> None:
        for name in ("shard_size", "threads", "samples", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"--{name.replace('_', '-')} {value} is too small; use 1 or more")
        for name in ("seed", "broken"):
            if getattr(self, name) < 0:
                raise DataError(f"--{name} {getattr(self, name)} is negative; use 0 or more")
        for name in ("ocean", "frequent"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"--{name} {getattr(self, name)} is no share; use 0 to 1")
        if self.recipe not in ("", *RECIPES):
            raise DataError(f"unknown recipe {self.recipe!r}; choose {', '.join(RECIPES)}, or leave it out")
        if self.landcover and not self.recipe:
            raise DataError("--landcover has no effect without --recipe; give both or none")
        if self.audit and not self.harmonise:
            raise DataError(f"an audit ({self.audit}) without harmonising has no effect; ask for both")


@dataclass(frozen=True)
class PrepareJob(Job):
    """What a dataset is made of: everything that its records depend on.

    Attributes:
        source: what the samples are: name, digest of the keys, options that pixels depend on.
        harmonised: "" not; "found" by what each sample shows; else the digest of an audit.
        recipe: name and options; empty without one.
        compression, licence, frequent: see `Plan`.
    """

    source: Mapping[str, Any]
    harmonised: str
    recipe: Mapping[str, Any]
    compression: str
    licence: str
    frequent: float


class Made(NamedTuple):
    """What one sample of the source gives: records with their index rows, and how many were thinned out."""

    records: tuple[bytes, ...]
    rows: tuple[dict[str, Any], ...]
    thinned: int


class Preparation:
    """A plan, opened.

    Args:
        plan: what is asked for.
        cached: whether sources may keep indices of archives in the output folder.

    Attributes:
        plan: the same.
        job: what its records depend on.

    Raises:
        DataError: if the source cannot be opened, or a key occurs twice in it.
    """

    def __init__(self, plan: Plan, *, cached: bool = True):
        self.plan = plan
        source = _open(plan, cached)
        self._cut, recipe = _recipe(plan)
        self._positions = self._cut.usable(source)
        self.keys = source.index.keys[self._positions]
        keys, counts = np.unique(self.keys, return_counts=True)
        if len(keys) < len(self.keys):
            raise DataError(f"sample {str(keys[counts > 1][0])!r} occurs twice in {plan.source}; keys must be unique")
        if not len(keys):
            raise DataError(f"{plan.path or plan.source} has no sample that the recipe {plan.recipe} can use")
        drawn = {"tile": plan.tile, "seed": plan.seed} if plan.source in DRAWN else {}
        options = {"modalities": plan.modalities, "series": plan.series, "keep_nodata": plan.keep_nodata}
        offsets = read_offsets(plan.audit) if plan.audit else None
        audited = digest_of(map(str, sorted(offsets.items()))) if offsets else "found"
        self._source = harmonised(source, offsets) if plan.harmonise else source
        self.job = PrepareJob(
            samples=len(keys),
            shard_size=plan.shard_size,
            source={"name": source.name, "keys": digest_of(self.keys.tolist()), **options, **drawn},
            harmonised=audited if plan.harmonise else "",
            recipe=recipe,
            compression=plan.compression,
            licence=plan.licence,
            frequent=plan.frequent,
        )

    def folder(self) -> JobFolder:
        """Where the records go, with the job begun in it.

        Raises:
            DataError: if it holds another job, or cannot be written.
        """
        return JobFolder(self.plan.out, RECORDS, self.job)

    def made_of(self, i: int) -> Made:
        """What sample `i` of the job gives.

        Raises:
            DataError: if it cannot be read, or not be used.
        """
        samples, thinned = self._cut(self._source[int(self._positions[i])])
        made = [record_and_row(_checked(sample), compression=self.plan.compression) for sample in samples]
        return Made(tuple(record for record, _ in made), tuple(row for _, row in made), thinned)

    def make(self, folder: JobFolder, shard: int, note: Callable[[int], Any] = lambda count: None) -> None:
        """Make a shard: its records, and an account of what is not among them.

        Args:
            folder: as `folder` gave it.
            shard: its number.
            note: called with how many more samples are done.

        Raises:
            DataError: if the folder cannot be written, or too much cannot be read.
        """
        reader = SoundReader(self.made_of, self.keys, self.plan.strict, self.plan.broken)
        rows: list[dict[str, Any]] = []
        stated: dict[str, Any] = {"thinned": 0, "left_out": reader.left_out}

        def records(made: Iterator[Made]) -> Iterator[bytes]:
            seen = 0
            for one in made:
                rows.extend(one.rows)
                stated["thinned"] += one.thinned
                yield from one.records
                note(len(reader.kept) + len(reader.left_out) - seen)
                seen = len(reader.kept) + len(reader.left_out)
            note(len(reader.kept) + len(reader.left_out) - seen)

        def table(_: int) -> pa.Table:
            units = {name: modality(name).unit for name in _held(rows)}
            return pa.Table.from_pylist(rows, schema=index_schema(dataset_metadata(units, self.job.licence)))

        ahead = _AHEAD * self.plan.threads
        with (
            ThreadPoolExecutor(self.plan.threads) as pool,
            closing(reader.read(self.job.positions(shard), pool, ahead)) as made,
        ):
            folder.commit(shard, records(made), table, stated)

    def probe(self, positions: Sequence[int]) -> tuple[list[Made], dict[str, str], float]:
        """A few samples, as they would be written: what they give, what cannot be read, and seconds a sample."""
        reader = SoundReader(self.made_of, self.keys, broken=0)
        began = time.perf_counter()
        with ThreadPoolExecutor(self.plan.threads) as pool:
            made = list(reader.read(positions, pool, self.plan.threads))
        return made, reader.left_out, (time.perf_counter() - began) / max(len(positions), 1)


def _open(plan: Plan, cached: bool) -> Source:
    recipe_tile = plan.recipe and (plan.tile or TerraFMTiles.TILE)
    home = Folder(plan.out).path if cached and plan.source == "terramesh" else None
    return open_source(
        plan.source,
        path=plan.path,
        modalities=plan.modalities or (TerraFMTiles.MODALITIES if plan.recipe else None),
        tile=2 * recipe_tile if recipe_tile else plan.tile,
        samples=plan.samples,
        seed=plan.seed,
        cache=str(home / CACHE) if home else None,
        series=plan.series,
        keep_nodata=plan.keep_nodata,
    )


def _recipe(plan: Plan) -> tuple[Cut, dict[str, Any]]:
    if not plan.recipe:
        return Cut(), {}
    tiles = TerraFMTiles.open(plan.tile or TerraFMTiles.TILE, plan.landcover, plan.ocean)
    return tiles, {"name": plan.recipe, **tiles.identity}


def _checked(sample: Sample) -> Sample:
    """A sample that records of one dataset can hold: with a 10 m grid, in the modality table's units.

    Raises:
        DataError: if it has none, or other units.
    """
    if not any(10 in raster.grids for raster in sample.rasters.values()):
        raise DataError(f"sample {sample.key} has no 10 m grid; leave it out")
    for name, raster in sample.rasters.items():
        unit = modality(name).unit
        if raster.unit is not unit:
            raise DataError(f"sample {sample.key}: {name} is in {raster.unit.value}, not in {unit.value}; convert it")
    return sample


def _held(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Modalities that some of the rows have."""
    return [name for name in MODALITIES if any(row[name] for row in rows)]
