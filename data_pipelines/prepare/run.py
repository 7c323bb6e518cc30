"""Preparing a dataset of records, or going on where an earlier run, killed or not, stands; the records are the same.

job.json, shard-*, manifest.json    a folder of shards (`data_pipelines.jobs`), which the source "records" reads
quarantine.json                     samples that could not be read or used, with their shard and the reason
land_cover.json                     classes and which are frequent (`data_pipelines.land_cover`), if any are known
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data_pipelines import land_cover
from data_pipelines.errors import DataError
from data_pipelines.folders import Folder
from data_pipelines.jobs import JobFolder, Shard
from data_pipelines.modalities import MODALITIES, modality
from data_pipelines.offsets import PRODUCTS
from data_pipelines.prepare.crew import in_processes
from data_pipelines.prepare.plan import CACHE, Plan, Preparation, PrepareJob
from data_pipelines.record_index import dataset_metadata
from data_pipelines.storage import read_parquet
from data_pipelines.work import Progress

QUARANTINE = "quarantine.json"

_PROBES = 8  # samples that a dry run reads


def prepare(
    plan: Plan,
    *,
    workers: int | None = None,
    process: tuple[int, int] = (0, 1),
    runner: str = "",
    flags: Sequence[str] = (),
    retry: bool = False,
    say: Callable[[str], Any] = print,
) -> bool:
    """Prepare a dataset, or what is left of it.

    Args:
        plan: what is asked for.
        workers: processes on this machine; None: one for every four cores, whose threads keep them busy.
        process: (index, count): of several runs that share `plan.out`, each makes its own shards.
        runner: Apache Beam's name of what makes the shards instead; "" is this machine.
        flags: options of its pipeline.
        retry: make shards with samples left out again.
        say: takes each line for the user.

    Returns:
        Whether the dataset is whole; with several runs it is so once the last of them ends.

    Raises:
        DataError: options that do not fit, something else in the folder, or data out of reach.
    """
    _check_run(plan, workers, process, runner, flags)
    preparation = Preparation(plan)
    folder, job = preparation.folder(), preparation.job
    mine = range(process[0], job.shards, process[1])
    there = {shard: folder.committed(shard) for shard in mine}
    if retry:
        for shard in (number for number, one in there.items() if one and one.stated["left_out"]):
            folder.remove(shard)
            there[shard] = None
    missing = [shard for shard, one in there.items() if one is None]
    samples = {shard: len(job.positions(shard)) for shard in mine}
    done = sum(samples.values()) - sum(samples[shard] for shard in missing)
    workers = min(workers or usual_workers(), len(missing))
    if missing and runner:
        from data_pipelines.prepare.pipeline import run_pipeline

        run_pipeline(plan, missing, runner, flags)
    elif missing:
        with Progress(sum(samples.values()), done, say) as progress:
            if workers > 1:
                in_processes(plan, missing, workers, progress.add)
            else:
                for shard in missing:
                    preparation.make(folder, shard, progress.add)
    return _finished(folder, job, say)


def dry_run(plan: Plan, *, workers: int | None = None, process: tuple[int, int] = (0, 1)) -> list[str]:
    """What preparing would take, from a few samples that are read; nothing is written.

    Args:
        plan, workers, process: see `prepare`.

    Returns:
        Lines for the user.

    Raises:
        DataError: see `prepare`; or if none of those few samples can be read.
    """
    _check_run(plan, workers, process, "", ())
    preparation = Preparation(plan, cached=False)
    job = preparation.job
    mine = [i for shard in range(process[0], job.shards, process[1]) for i in job.positions(shard)]
    if not mine:
        raise DataError(f"--process {process[0]}/{process[1]} has nothing to do: there are {job.shards} shards")
    chosen = [mine[k] for k in sorted({round(k) for k in np.linspace(0, len(mine) - 1, _PROBES)})]
    preparation.probe(chosen[:1])  # the first opens files and loads codecs
    made, left_out, seconds = preparation.probe(chosen)
    if not made:
        raise DataError(f"{next(iter(left_out.values()))} (none of {len(chosen)} samples could be read)")
    records = sum(len(one.records) for one in made) / len(chosen)
    size = sum(len(record) for one in made for record in one.records) / len(chosen)
    workers = min(workers or usual_workers(), job.shards)
    free = f", {_size(shutil.disk_usage(_existing(home)).free)} free" if (home := Folder(plan.out).path) else ""
    of_all = f" of {job.samples}" if len(mine) < job.samples else ""
    lines = [
        f"samples: {len(mine)}{of_all} in shards of {job.shard_size}; {len(chosen)} read, {len(left_out)} could not be",
        f"records: about {records * len(mine):.0f}, {_size(size / records) if records else 0} each",
        f"size: about {_size(size * len(mine))} in {plan.out}{free}",
        f"time: about {tqdm.format_interval(seconds * len(mine) / workers)} with {workers} workers, "
        f"{1000 * seconds:.1f} ms a sample",
        "nothing was written",
    ]
    return [*(f"unreadable: {reason}" for reason in left_out.values()), *lines]


def usual_workers() -> int:
    """One for every four cores that this process may use: readers leave the interpreter's lock alone for the most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 4)


def _check_run(plan: Plan, workers: int | None, process: tuple[int, int], runner: str, flags: Sequence[str]) -> None:
    if not plan.out:
        raise DataError("--out is missing; give the folder of the records")
    if workers is not None and workers < 1:
        raise DataError(f"--workers {workers} is too small; use 1 or more")
    if not 0 <= process[0] < process[1]:
        raise DataError(f"--process {process[0]}/{process[1]} does not exist; count from 0, as in 0/2 and 1/2")
    if runner and (workers is not None or process != (0, 1)):
        raise DataError(f"--runner {runner} divides the work itself; leave --workers and --process out")
    if flags and not runner:
        raise DataError(f"{flags[0]!r} is an option of a pipeline; give --runner too, or leave it out")


# ---- the end ------------------------------------------------------------------------------------------------------


def _finished(folder: JobFolder, job: PrepareJob, say: Callable[[str], Any]) -> bool:
    """Write the manifest and what goes with it, once all shards are there."""
    shards = folder.shards()
    if shards is None:
        say(f"{folder}: this process is done, others are not; the last one writes the manifest")
        return False
    left_out = [
        {"key": key, "reason": reason, "shard": shard.file}
        for shard in shards
        for key, reason in shard.stated["left_out"].items()
    ]
    columns = _columns(folder, shards)
    folder.write(QUARANTINE, {"format": "terra_jax.quarantine", "version": 1, "samples": left_out})
    if (columns["scene"] >= 0).any():
        found = land_cover.describe(columns["scene"], columns["lon"], columns["lat"], job.frequent)
        folder.write(land_cover.FILE, found)
    manifest = _manifest(job, shards, columns, len(left_out))
    folder.finish(manifest)
    if (home := folder.folder.path) is not None:
        shutil.rmtree(home / CACHE, ignore_errors=True)
    bad = f"; {len(left_out)} samples left out, named in {QUARANTINE}" if left_out else ""
    thinned = f"; {manifest['thinned']} of open sea thinned out" if manifest["thinned"] else ""
    size = _size(sum(shard["bytes"] for shard in manifest["shards"]))
    say(f"{folder}: {manifest['samples']} records of {job.samples} samples, {size}{thinned}{bad}")
    return True


def _manifest(
    job: PrepareJob, shards: Sequence[Shard], columns: dict[str, np.ndarray], quarantined: int
) -> dict[str, Any]:
    units = {name: modality(name).unit for name in MODALITIES if (columns[name] > 0).any()}
    content = dataset_metadata(units, job.licence) | {"job": asdict(job), "samples": len(columns["scene"])}
    content |= {
        "optional": job.recipe.get("optional", []),
        "quarantined": quarantined,
        "thinned": sum(shard.stated["thinned"] for shard in shards),
    }
    if job.harmonised:
        removed = {name: Counter(columns[f"{name}_offset_removed"].tolist()) for name in PRODUCTS if name in units}
        content["offset_removed"] = {name: dict(sorted(tally.items())) for name, tally in removed.items()}
    listed = ({"file": one.file, "index": one.index, "samples": one.samples, **_sealed(one)} for one in shards)
    return content | {"shards": list(listed)}


def _sealed(shard: Shard) -> dict[str, Any]:
    return {name: shard.stated[name] for name in ("bytes", "sha256")}


def _columns(folder: JobFolder, shards: Sequence[Shard]) -> dict[str, np.ndarray]:
    """Some columns of all indices."""
    names = ["scene", "lon", "lat", *(f"{name}_offset_removed" for name in PRODUCTS), *MODALITIES]
    tables = []
    for shard in shards:
        try:
            with folder.folder.open(shard.index) as stream:
                tables.append(read_parquet(stream, columns=names).replace_schema_metadata(None))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{folder}/{shard.index} cannot be read; remove it and run again") from error
    table = pa.concat_tables(tables)
    return {name: table[name].to_numpy() for name in names}


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(one for one in (path, *path.absolute().parents) if one.is_dir())


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
