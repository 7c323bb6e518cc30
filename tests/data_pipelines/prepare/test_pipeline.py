"""Shards made by Apache Beam are those that this machine makes."""

import builtins
import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import write_folder

from data_pipelines.errors import DataError
from data_pipelines.prepare.plan import Plan
from data_pipelines.prepare.run import prepare
from data_pipelines.records import read_manifest

PLAN = Plan("procedural", samples=7, tile=24, modalities=("S2L2A", "LULC"), shard_size=2)
MODULE = "data_pipelines.prepare.pipeline"


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(scope="module")
def beam():
    """Apache Beam, where the [beam] extra is installed."""
    try:
        return importlib.import_module("apache_beam")
    except ImportError:
        reason = 'Apache Beam is not installed; pip install "terra_jax[beam]"'
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def test_the_direct_runner_gives_the_same_records(beam, tmp_path):
    said = []
    for name, runner in (("local", {"workers": 1}), ("beam", {"runner": "DirectRunner"})):
        assert prepare(replace(PLAN, out=str(tmp_path / name)), say=said.append, **runner)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert said[1].replace("beam", "local") == said[0]


def test_a_pipeline_makes_only_what_is_missing(beam, tmp_path):
    plan = replace(PLAN, out=str(tmp_path / "out"))
    assert not prepare(plan, workers=1, process=(1, 2), say=lambda line: None)
    there = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert len(there) == 4
    flags = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    assert prepare(plan, runner="DirectRunner", flags=flags, say=lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in there} == there and read_manifest(plan.out)["samples"] == 7


def test_what_fails_in_a_pipeline_is_one_line(beam, tmp_path):
    tiles = write_folder(tmp_path / "tiles", modalities=("DEM",))
    (tiles / "DEM" / "b.tif").write_bytes(b"II*\0")
    plan = Plan("geotiff", path=str(tiles), out=str(tmp_path / "out"), strict=True)
    with pytest.raises(
        DataError, match=r"^DirectRunner: \S*b.tif cannot be read \(truncated or no TIFF\); copy"
    ) as error:
        prepare(plan, runner="DirectRunner", say=lambda line: None)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"NoSuchRunner: .*NoSuchRunner"):
        prepare(plan, runner="NoSuchRunner", say=lambda line: None)


def test_without_beam_the_cure_is_named(tmp_path, monkeypatch):
    def without(name, *arguments, **options):
        if name.startswith("apache_beam"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    original = builtins.__import__
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r'a runner needs Apache Beam: pip install "terra_jax\[beam\]"'):
        prepare(replace(PLAN, out=str(tmp_path / "out")), runner="DirectRunner", say=lambda line: None)


def test_beam_is_not_imported_where_it_is_not_asked_for():
    program = "import sys, data_pipelines.prepare.run, terra_jax.cli; print('apache_beam' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
