"""`terra-jax prepare` as a user meets it."""

import json
import sys
from pathlib import Path

import pytest
from command_line import TINY

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "data_pipelines"))
from fakes import write_folder  # noqa: E402

from data_pipelines.sources import open_source  # noqa: E402

PREPARE = ("prepare", "--source", "geotiff", "--path", "tiles", "--out", "records", "--workers", "1")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiles() -> Path:
    return write_folder(Path("tiles"), modalities=("S2L2A", "S1RTC", "LULC"), keys=("a", "b", "c", "d"))


def test_tiles_are_prepared_and_looked_at(terra_jax_command, tiles):
    dry = terra_jax_command(*PREPARE, "--dry-run")
    assert dry.status == 0 and "samples: 4 in shards of 256" in dry.out and "nothing was written" in dry.out, dry.err
    assert not Path("records").exists()
    result = terra_jax_command(*PREPARE, "--archive", "--licence", "CC0-1.0")
    assert result.status == 0 and "records: 4 records of 4 samples" in result.out, result.err
    assert open_source("records", path="records").manifest["licence"] == "CC0-1.0"
    records = ("--source", "records", "--path", "records")
    audit = terra_jax_command("audit", *records, "--json", "audit.json")
    assert audit.status == 0 and len(json.loads(Path("audit.json").read_text())["samples"]) == 4, audit.err
    own = terra_jax_command("stats", *records, "--out", "own.json")
    assert own.status == 0 and "own: 4 samples" in own.out, own.err


def test_classes_called_frequent_reach_the_recipe(tiles):
    from terra_jax import registry
    from terra_jax.training.config import load_config

    shares = []
    for value in ("", "nodata", ", ".join(("trees", "crops", "built", "bare", "water", "rangeland"))):
        changes = [change.removeprefix("--") for change in TINY]
        config = load_config("terrafm/nano", [*changes, f"config.data.frequent_classes={value}"])
        experiment = registry.experiment(config)
        with experiment.loader(0, 0, 1) as stream:
            shares.append(sum(next(stream)["frequent"].mean() for _ in range(3)) / 3)
    assert shares[1] == 0 and shares[2] > shares[1] and 0 < shares[0] <= 1


def test_several_runs_share_a_folder(terra_jax_command, tiles):
    first = terra_jax_command(*PREPARE, "--shard-size", "1", "--process", "1/2")
    assert first.status == 0 and "the last one writes the manifest" in first.out, first.err
    second = terra_jax_command(*PREPARE, "--shard-size", "1", "--process", "0/2")
    assert second.status == 0 and "4 records of 4 samples" in second.out, second.err


def test_real_tiles_lose_their_offsets(terra_jax_command, fixtures_dir):
    path = fixtures_dir / "tiles"
    result = terra_jax_command(
        "prepare", "--source", "geotiff", "--path", path, "--harmonise", "--out", "records", "--workers", "1"
    )
    assert result.status == 0, result.err
    index = open_source("records", path="records").index
    removed = {name: index.column(f"{name}_offset_removed").tolist() for name in ("S2L1C", "S2L2A")}
    assert index.keys.tolist() == ["282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1"]
    assert removed == {"S2L1C": ["1000", "0", "1000"], "S2L2A": ["0", "0", "1000"]}


def test_a_benchmark_file_is_prepared(terra_jax_command, fixtures_dir):
    path = fixtures_dir / "benchmarks" / "benv2.tortilla"
    result = terra_jax_command("prepare", "--source", "tortilla", "--path", path, "--out", "ben", "--workers", "1")
    assert result.status == 0 and "9 records of 9 samples" in result.out, result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*PREPARE, "--shard-size", "0"), "--shard-size 0"),
        ((*PREPARE, "--recipe", "terramind"), "unknown recipe 'terramind'"),
        ((*PREPARE, "--process", "3/2"), "--process 3/2 does not exist"),
        ((*PREPARE, "--tile", "500"), "24 x 24 pixels, smaller than tile=500"),
        ((*PREPARE, "--", "--project=x"), "'--project=x' is an option of a pipeline; give --runner too"),
        ((*PREPARE, "--harmonise", "no.json"), "no.json is no audit"),
        (("prepare", "--source", "geotif", "--out", "x"), "did you mean geotiff"),
        (("prepare", "--source", "geotiff", "--path", "none", "--out", "x"), "none is not a folder"),
        (("prepare", "--source", "majortom", "--path", "abc://x", "--out", "x"), "abc://x cannot be opened"),
        ((*PREPARE[:5], "--out", "tiles"), "tiles holds LULC but no job.json; choose another folder"),
        ((*PREPARE[:5], "--out", "/proc/nowhere"), "/proc/nowhere cannot be written"),
        (("models", "--", "--x"), "'--x': terra-jax models passes nothing on"),
    ],
)
def test_mistakes_are_one_line(terra_jax_command, tiles, arguments, words):
    result = terra_jax_command(*arguments)
    assert result.status == 2 and words in result.err, result
    assert result.err.startswith("error: ") and len(result.err.splitlines()) == 1
    assert {path.name for path in Path().iterdir()} == {"tiles"}
