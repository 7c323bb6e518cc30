"""Any source to records: the same, whoever makes them, however often they are broken off."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fakes import same, write_folder, write_tif
from skies import lifted

from data_pipelines import records
from data_pipelines.errors import DataError
from data_pipelines.loader import Loader
from data_pipelines.prepare.plan import Plan, Preparation
from data_pipelines.prepare.run import dry_run, prepare
from data_pipelines.recipes.terrafm import TerraFMRecipe
from data_pipelines.sources import open_source
from data_pipelines.work import BROKEN

ROOT = Path(__file__).resolve().parents[3]
KILLS = int(os.environ.get("TERRA_JAX_KILLS", "3"))
"""How many kills at a random moment; the full count is 20."""

NAMES = ("S2L2A", "S1RTC", "LULC")
DRAWN = Plan("procedural", samples=14, tile=24, modalities=NAMES, shard_size=3)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def silent(_: str) -> None:
    pass


def make(path: Path, plan: Plan = DRAWN, **options) -> Path:
    assert prepare(replace(plan, out=str(path)), **{"workers": 1, "say": silent, **options})
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("prepared") / "unbroken")


# ---- what is written ----------------------------------------------------------------------------------------------


def test_records_are_the_source_s_samples(unbroken):
    source, found = (
        open_source("procedural", samples=14, tile=24, modalities=NAMES),
        open_source("records", path=unbroken),
    )
    assert np.array_equal(source.index.keys, found.index.keys) and np.array_equal(source.index.scene, found.index.scene)
    assert all(same(found[i], source[i]) for i in range(14))


def test_the_manifest_counts_and_seals(unbroken):
    manifest = records.read_manifest(unbroken)
    assert manifest["samples"] == 14 and [shard["samples"] for shard in manifest["shards"]] == [3, 3, 3, 3, 2]
    assert list(manifest["modalities"]) == ["S2L2A", "S1RTC", "LULC"] and manifest["quarantined"] == 0
    for shard in manifest["shards"]:
        data = (unbroken / shard["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert sum(json.loads((unbroken / "land_cover.json").read_text())["samples"].values()) == 14
    assert not [name for name in contents(unbroken) if name.startswith(".")]


def test_archives_are_smaller_and_hold_the_same(unbroken, tmp_path):
    archive = make(tmp_path / "zstd", replace(DRAWN, compression="zstd", licence="CC0-1.0"))
    zstd, lz4 = (Preparation(replace(DRAWN, compression=name)).made_of(0).records[0] for name in ("zstd", "lz4"))
    assert len(zstd) < len(lz4) and records.read_manifest(archive)["licence"] == "CC0-1.0"
    left, right = (open_source("records", path=path) for path in (archive, unbroken))
    assert all(same(left[i], right[i]) for i in range(14))


def test_records_of_records_are_equal(unbroken, tmp_path):
    again = make(tmp_path / "again", Plan("records", path=str(unbroken), shard_size=3))
    assert contents(again)["shard-00002.arrayrecord"] == contents(unbroken)["shard-00002.arrayrecord"]


def test_training_sees_the_same_batches_from_records(unbroken):
    recipe = TerraFMRecipe(NAMES[:2], 24, 2, (0.4, 1.0), (0.1, 0.4), frequent=(1, 2, 5), batch_size=4)
    sources = (
        open_source("procedural", samples=14, tile=24, modalities=NAMES[:2]),
        open_source("records", path=unbroken),
    )
    loaders = [Loader(source, recipe, np.arange(14), batch_size=4, seed=3, threads=0) for source in sources]
    for _ in range(5):
        drawn, read = (next(loader) for loader in loaders)
        assert drawn.keys() == read.keys()
        assert all(np.array_equal(drawn[name], read[name], equal_nan=drawn[name].dtype.kind == "f") for name in drawn)


# ---- whoever makes them -------------------------------------------------------------------------------------------


def test_processes_give_the_same_records(unbroken, tmp_path):
    assert contents(make(tmp_path / "two", workers=2)) == contents(unbroken)


def test_two_runs_give_the_union(unbroken, tmp_path):
    plan, said = replace(DRAWN, out=str(tmp_path / "shared"), threads=3), []
    assert not prepare(plan, workers=1, process=(1, 2), say=said.append)
    assert "the last one writes the manifest" in said[-1]
    assert len(list(Path(plan.out).glob("*.parquet"))) == 2
    with pytest.raises(DataError, match="unfinished"):
        open_source("records", path=plan.out)
    assert prepare(plan, workers=1, process=(0, 2), say=silent)
    assert contents(Path(plan.out)) == contents(unbroken)


def test_a_finished_run_does_nothing(unbroken):
    before = {file: file.stat().st_mtime_ns for file in unbroken.glob("shard-*")}
    make(unbroken)
    assert {file: file.stat().st_mtime_ns for file in unbroken.glob("shard-*")} == before


def test_shards_that_are_missing_or_cut_off_are_made_again(unbroken, tmp_path):
    out = make(tmp_path / "hurt")
    (out / "shard-00001.parquet").unlink()
    (out / "shard-00003.arrayrecord").write_bytes(b"half")
    (out / ".shard-00004.arrayrecord.77.part").write_bytes(b"half")
    assert contents(make(out)) == contents(unbroken)


def test_records_behind_a_url_are_the_same(unbroken):
    plan = replace(DRAWN, out="memory://prepared/records")
    assert not prepare(plan, workers=1, process=(0, 2), say=silent)
    assert prepare(plan, workers=1, say=silent)
    files = fsspec.filesystem("memory")
    held = {path.rpartition("/")[2]: files.cat_file(path) for path in files.ls("/prepared/records", detail=False)}
    assert held == contents(unbroken)


@pytest.mark.slow
def test_killed_runs_and_whoever_goes_on_give_the_same_records(tmp_path):
    plan = replace(DRAWN, tile=240, samples=24, shard_size=2)
    unbroken, out, moment = make(tmp_path / "unbroken", plan), tmp_path / "killed", random.Random()
    command = [sys.executable, "-m", "terra_jax.cli", "prepare", "--source", "procedural", "--tile", "240"]
    command += ["--samples", "24", "--shard-size", "2", "--out", str(out), "--workers", "2"]
    command += [word for name in NAMES for word in ("--modality", name)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for kill in range(KILLS):
        before = len(list(out.glob("*.parquet")))
        run = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
        while len(list(out.glob("*.parquet"))) in range(before, min(before + 1, 12)) and run.poll() is None:
            time.sleep(0.01)
        time.sleep(moment.uniform(0, 0.3))
        run.kill() if kill % 2 else os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert gone(run.pid), "workers outlive the process that started them"
        assert kill or not (out / "manifest.json").exists()
    assert contents(make(out, plan)) == contents(unbroken)


def gone(group: int) -> bool:
    for _ in range(3000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


# ---- what cannot be read ------------------------------------------------------------------------------------------


@pytest.fixture
def tiles(tmp_path) -> Path:
    root = write_folder(tmp_path / "tiles", keys=[f"t{i:02}" for i in range(20)], modalities=("DEM", "LULC"))
    file = root / "DEM" / "t03.tif"
    file.write_bytes(file.read_bytes()[:400])
    return root


def test_bad_samples_are_quarantined_and_can_be_tried_again(tiles, tmp_path):
    plan, said = Plan("geotiff", path=str(tiles), out=str(tmp_path / "out"), shard_size=8), []
    assert prepare(plan, workers=1, say=said.append)
    assert "19 records of 20 samples" in said[-1] and "1 samples left out, named in quarantine.json" in said[-1]
    (bad,) = json.loads((tmp_path / "out" / "quarantine.json").read_text())["samples"]
    assert bad["key"] == "t03" and "t03.tif" in bad["reason"] and bad["shard"] == "shard-00000.arrayrecord"
    assert records.read_manifest(plan.out)["quarantined"] == 1
    assert len(open_source("records", path=plan.out)) == 19
    (tiles / "DEM" / "t03.tif").unlink()
    write_folder(tiles, keys=("t03",), modalities=("DEM",))
    other = (tmp_path / "out" / "shard-00001.parquet").stat().st_mtime_ns
    assert prepare(plan, workers=1, say=said.append, retry=True) and "20 records" in said[-1]
    assert (tmp_path / "out" / "shard-00001.parquet").stat().st_mtime_ns == other
    assert contents(tmp_path / "out") == contents(make(tmp_path / "fresh", plan))


def test_data_out_of_reach_stop_the_job(tiles, tmp_path):
    for path in (tiles / "DEM").glob("t*.tif"):
        if path.stem >= "t02":
            path.write_bytes(b"II*\0")
    plan = Plan("geotiff", path=str(tiles), out=str(tmp_path / "out"))
    with pytest.raises(DataError, match=f"{BROKEN} samples in a row could not be read"):
        prepare(plan, workers=1, say=silent)
    assert list(contents(tmp_path / "out")) == ["job.json"]
    assert prepare(replace(plan, broken=0), workers=1, say=silent)
    assert records.read_manifest(plan.out)["quarantined"] == 18
    with pytest.raises(DataError, match=r"t02.tif"):
        prepare(replace(plan, strict=True, out=str(tmp_path / "strict")), workers=1, say=silent)


def test_a_worker_s_error_ends_all(tiles, tmp_path):
    plan = Plan("geotiff", path=str(tiles), out=str(tmp_path / "out"), shard_size=10, strict=True)
    with pytest.raises(DataError, match=r"^\S*t03.tif cannot be read"):
        prepare(plan, workers=2, say=silent)
    assert "manifest.json" not in contents(tmp_path / "out")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self):
        raise RuntimeError("write() failed: No space left on device; writing there; at byte 4096")

    monkeypatch.setattr("data_pipelines.jobs.ArrayRecordWriter.close", full)
    with pytest.raises(DataError, match=r"cannot be written \(write\(\) failed: No space left on device\); make room"):
        make(tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["job.json"]


# ---- what is asked for --------------------------------------------------------------------------------------------


def test_offsets_are_taken_off_and_recorded(tmp_path):
    plain = make(tmp_path / "plain", replace(DRAWN, modalities=("S2L1C", "S2L2A", "NDVI"), samples=3))
    source = open_source("records", path=plain)
    with records.RecordWriter(tmp_path / "lifted") as writer:
        for i in range(3):
            writer.write(lifted(source[i], S2L1C=1000, S2L2A=1000 * (i == 1)))
    plan = Plan("records", path=str(tmp_path / "lifted"), harmonise=True)
    out = make(tmp_path / "out", plan)
    found, manifest = open_source("records", path=out), records.read_manifest(out)
    index = records.read_index(out, manifest)
    assert index["S2L1C_offset_removed"].tolist() == ["1000"] * 3
    assert index["S2L2A_offset_removed"].tolist() == ["0", "1000", "0"]
    assert manifest["offset_removed"] == {"S2L1C": {"1000": 3}, "S2L2A": {"0": 2, "1000": 1}}
    assert found[1].attributes["NDVI_recomputed"] and found[1].attributes["S2L2A_offset_removed"] == 1000
    for i in range(3):
        for name in ("S2L1C", "S2L2A", "NDVI"):
            for gsd, grid in source[i].rasters[name].grids.items():
                assert np.array_equal(found[i].rasters[name].grids[gsd], grid, equal_nan=grid.dtype.kind == "f")


def test_an_audit_decides_what_is_taken_off(tmp_path):
    from data_pipelines.audit import audit

    plain = make(tmp_path / "plain", replace(DRAWN, modalities=("S2L1C",), samples=3))
    report = audit(open_source("records", path=plain), say=silent).as_json()
    report["samples"][2]["modalities"]["S2L1C"]["offset"] = 1000  # somebody knows better
    (tmp_path / "audit.json").write_text(json.dumps(report))
    plan = Plan("records", path=str(plain), harmonise=True, audit=str(tmp_path / "audit.json"))
    out = make(tmp_path / "out", plan)
    assert records.read_manifest(out)["offset_removed"] == {"S2L1C": {"0": 2, "1000": 1}}
    with pytest.raises(DataError, match=r"harmonised is \w{32} there and found here"):
        make(out, replace(plan, audit=""))


def test_a_dry_run_writes_nothing_and_is_near(tmp_path):
    lines = dry_run(replace(DRAWN, out=str(tmp_path / "deep" / "out")), workers=1)
    assert list(tmp_path.iterdir()) == [] and lines[-1] == "nothing was written"
    assert lines[0].startswith("samples: 14 in shards of 3; 8 read, 0 could not be")
    preparation = Preparation(DRAWN)
    size = sum(len(record) for i in range(14) for record in preparation.made_of(i).records)
    assert float(lines[2].split()[2]) == pytest.approx(size / 1e3, rel=0.2) and lines[2].split()[3] == "kB"
    assert "ms a sample" in lines[3]


def test_a_dry_run_names_what_is_unreadable(tiles, tmp_path):
    for path in (tiles / "DEM").iterdir():
        path.write_bytes(b"II*\0")
    with pytest.raises(DataError, match=r"t00.tif.*\(none of 8 samples could be read\)"):
        dry_run(Plan("geotiff", path=str(tiles), out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, r"source.keys is \w+ there and \w+ here"),
        ({"tile": 30}, "source.tile is 24 there and 30 here"),
        ({"samples": 15}, "samples is 14 there and 15 here"),
        ({"shard_size": 4}, "shard_size is 3 there and 4 here"),
        ({"compression": "zstd"}, "compression is lz4 there and zstd here"),
        ({"harmonise": True}, "harmonised is  there and found here"),
    ],
)
def test_another_job_in_the_folder_is_refused(unbroken, change, words):
    with pytest.raises(DataError, match=rf"unbroken holds another dataset: .*{words}; choose another folder"):
        make(unbroken, replace(DRAWN, **change))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"shard_size": 0}, {}, "--shard-size 0 is too small"),
        ({"threads": 0}, {}, "--threads 0 is too small"),
        ({"ocean": 2.0}, {}, "--ocean 2.0 is no share"),
        ({"broken": -1}, {}, "--broken -1 is negative"),
        ({"recipe": "terrafn"}, {}, "unknown recipe 'terrafn'; choose terrafm"),
        ({"landcover": "x"}, {}, "--landcover has no effect without --recipe"),
        ({"audit": "a.json"}, {}, "without harmonising has no effect"),
        ({}, {"workers": 0}, "--workers 0 is too small"),
        ({}, {"process": (2, 2)}, "--process 2/2 does not exist"),
        ({}, {"flags": ["--x"]}, "give --runner too"),
        ({}, {"runner": "DirectRunner"}, "leave --workers and --process out"),
    ],
)
def test_impossible_requests_are_refused_before_anything_is_written(tmp_path, change, options, words):
    with pytest.raises(DataError, match=words) as error:
        make(tmp_path / "out", replace(DRAWN, **change), **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_records_cannot_hold_is_refused(tmp_path):
    write_tif(tmp_path / "tiles" / "DEM" / "a.tif", np.zeros((1, 24, 24), np.int16))
    preparation = Preparation(Plan("geotiff", path=str(tmp_path / "tiles"), out="x"))
    assert len(preparation.made_of(0).records) == 1
    twice = records.RecordWriter(tmp_path / "twice", shard_size=1)
    twice.write(open_source("geotiff", path=str(tmp_path / "tiles"))[0])
    twice.close()
    manifest = json.loads((tmp_path / "twice" / "manifest.json").read_text())
    manifest["shards"] *= 2
    (tmp_path / "twice" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="sample 'a' occurs twice in records"):
        Preparation(Plan("records", path=str(tmp_path / "twice"), out="x"))
