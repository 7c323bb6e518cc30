"""The commands that look at a corpus, as a user meets them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import terra_jax
from data_pipelines.errors import DataError
from data_pipelines.modalities import modality

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "data_pipelines"))
from fakes import plausible, write_folder  # noqa: E402

AUDIT = ("audit", "--source", "geotiff", "--path", "tiles")
STATS = ("stats", "--source", "geotiff", "--path", "tiles")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiles() -> Path:
    return write_folder(Path("tiles"), modalities=("S2L2A", "S1RTC", "LULC"), keys=("a", "b", "c", "d"))


def test_audit_of_real_tiles(terra_jax_command, fixtures_dir):
    path = fixtures_dir / "tiles"
    command = ("audit", "--source", "geotiff", "--path", path, "--json", "a.json", "--png", "a.png")
    result = terra_jax_command(*command)
    assert result.status == 0, result.err
    rows = [line.split()[:3] for line in result.out.splitlines()]
    for row in (["282D_485L_3_3", "1000", "0"], ["38D_378R_2_3", "0", "0"], ["433D_629L_3_1", "1000", "1000"]):
        assert row in rows
    report = json.loads(Path("a.json").read_text())
    assert [(s["key"], s["modalities"]["S2L1C"]["offset"]) for s in report["samples"]] == [
        ("282D_485L_3_3", 1000), ("38D_378R_2_3", 0), ("433D_629L_3_1", 1000),
    ]  # fmt: skip
    assert Path("a.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in Path().iterdir()} == {"a.json", "a.png"}


def test_statistics_that_a_model_takes(terra_jax_command, tiles):
    result = terra_jax_command(*STATS, "--out", "own.json", "--name", "own")
    assert result.status == 0 and "own: 4 samples" in result.out, result.err
    model = terra_jax.build("terrafm_nano", statistics="own.json")
    table = modality("S2L2A")
    image = np.moveaxis(plausible("S2L2A", 16), 0, -1)[None].astype(np.float32)
    mean, std = (np.array(json.loads(Path("own.json").read_text())["modalities"]["S2L2A"][n]) for n in ("mean", "std"))
    standard = ((image - mean) / std).astype(np.float32)
    assert mean.shape == (len(table.bands),)
    assert np.allclose(model({"S2L2A": image}), model({"S2L2A": standard}, normalised=True), atol=1e-4)
    with pytest.raises(DataError, match=r"own\.json has no statistics of S2L1C"):
        model({"S2L1C": np.zeros((1, 16, 16, 13), np.float32)})


def test_statistics_by_two_processes(terra_jax_command, tiles):
    first = terra_jax_command(*STATS, "--out", "two.json", "--process", "0/2")
    assert first.status == 0 and "the last one writes" in first.out and not Path("two.json").exists()
    assert terra_jax_command(*STATS, "--out", "two.json", "--process", "1/2").status == 0
    assert terra_jax_command(*STATS, "--out", "one.json").status == 0
    one, two = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two"))
    assert one["modalities"] == two["modalities"] and one["origin"] == two["origin"]
    assert not list(Path().glob(".two*"))


def test_harmonised_statistics(terra_jax_command, fixtures_dir):
    means = []
    for option in ((), ("--harmonise",)):
        command = ("stats", "--source", "geotiff", "--path", fixtures_dir / "tiles", "--out", "s.json", *option)
        assert terra_jax_command(*command).status == 0
        means.append(json.loads(Path("s.json").read_text())["modalities"]["S2L1C"]["mean"])
    assert np.allclose(np.subtract(*means), 2000 / 3, atol=1)  # two of three tiles


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((*AUDIT, "--json", "a.txt"), "a.txt does not end in .json"),
        ((*AUDIT, "--png", "a.jpg"), "a.jpg does not end in .png"),
        ((*AUDIT, "--json", "nowhere/a.json"), "nowhere is no folder"),
        (("audit", "--source", "geotif", "--path", "tiles"), "did you mean geotiff"),
        (("audit", "--source", "geotiff"), "needs a path"),
        (("audit", "--source", "geotiff", "--path", "nothing"), "nothing is not a folder"),
        ((*STATS, "--out", "set"), "set does not end in .json"),
        ((*STATS, "--out", "set.json", "--process", "2"), "no share"),
        ((*STATS, "--out", "set.json", "--process", "2/2"), "does not exist"),
        ((*STATS, "--out", "set.json", "--threads", "0"), "--threads 0"),
        ((*AUDIT, "--threads", "0"), "--threads 0"),
    ],
)
def test_mistakes_are_one_line(terra_jax_command, tiles, command, said):
    result = terra_jax_command(*command)
    assert result.status == 2 and said in result.err, result
    assert result.err.startswith("error: ") and len(result.err.splitlines()) == 1
    assert {path.name for path in Path().iterdir()} == {"tiles"}
