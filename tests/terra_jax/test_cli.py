"""The command line as a user meets it: help, mistakes, damaged and foreign files, a run that is killed."""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY

from terra_jax.weights.files import save_state
from terra_jax.weights.state import LazyTensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "data_pipelines"))
from fakes import plausible, write_folder, write_tif  # noqa: E402

TRAIN = ("train", "--config", "terrafm/nano", "--workdir", "run")
LULC = "terramind_v1_tokenizer_lulc_nano"
TOKENIZE = ("tokenize", "--out", "tokens", "--model")
RECONSTRUCT = ("reconstruct", "--in", "a.tif", "--out", "b.tif", "--model")
CONVERT = ("convert", "--model", "terrafm_nano")
GEOTIFF = ("--config.data.source=geotiff", "--config.data.path=tiles")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiles() -> Path:
    return write_folder(Path("tiles"), modalities=("S2L2A", "S1RTC", "LULC"), keys=("a", "b", "c", "d"))


@pytest.fixture
def run(tiny_run) -> Path:
    """A finished run that may be spoilt."""
    return Path(shutil.copytree(tiny_run, "run"))


def assert_refused(result, *words: str) -> None:
    """A user's mistake: status 2 and one line that names what is at fault and what would be right."""
    assert result.status == 2, result
    lines = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    assert "Traceback" not in result.err
    assert all(word in lines[0] for word in words), lines[0]


def steps(workdir: Path) -> list[int]:
    return [int(row["step"]) for row in csv.DictReader((workdir / "metrics.csv").read_text().splitlines())]


def losses(workdir: Path) -> list[tuple[str, str]]:
    """Text of each row's step and loss."""
    return [(row["step"], row["loss"]) for row in csv.DictReader((workdir / "metrics.csv").read_text().splitlines())]


@pytest.mark.parametrize("name", ["train", "evaluate", "convert", "tokenize", "reconstruct", "models"])
def test_every_command_has_help_with_an_example(terra_jax_command, name):
    result = terra_jax_command(name, "--help")
    assert result.status == 0 and f"\n  terra-jax {name}" in result.out
    assert name in terra_jax_command("--help").out and name in terra_jax_command().out


def test_models_lists_names_and_sizes(terra_jax_command):
    assert re.search(r"terrafm_base +112,951,296 parameters", terra_jax_command("models").out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "train", "--help"]),
        ([*TRAIN, "--frob"], ["'--frob'", "terra-jax train --help"]),
        (["models", "--config.steps=3"], ["--config.steps=3", "models takes no config"]),
        (["train", "--config", "terrafm/nano"], ["--workdir"]),
        (["train", "--workdir", "run"], ["--config"]),
        (["train", "--config", "terrafm/nono", "--workdir", "run"], ["'terrafm/nono'", "terrafm/nano"]),
        (["train", "--config", "mine.py", "--workdir", "run"], ["'mine.py'", "terrafm/nano"]),
        ([*TRAIN, "--config.stepz=3"], ["'stepz'", "did you mean steps"]),
        ([*TRAIN, "--config.optimiser.eps=3"], ["'optimiser.eps'", "optimizer.eps"]),
        ([*TRAIN, "--config.steps=many"], ["'steps'", "int", "'many'"]),
        ([*TRAIN, "--config.data.cache=perhaps"], ["'data.cache'", "bool", "'perhaps'"]),
        ([*TRAIN, "--config.objective=1"], ["'objective'", "section", "objective.alpha"]),
        ([*TRAIN, "--config.steps"], ["config.steps", "--config.KEY=VALUE"]),
        ([*TRAIN, "--config.model=terrafm_nanu"], ["'terrafm_nanu'", "did you mean terrafm_nano"]),
        ([*TRAIN, "--config.data.source=geotif"], ["'geotif'", "did you mean geotiff"]),
        ([*TRAIN, "--config.data.source=geotiff"], ["'geotiff'", "needs a path"]),
        ([*TRAIN, *GEOTIFF], ["tiles", "is not a folder"]),
        ([*TRAIN, "--config.data.modalities=(S2L2A,S1)"], ["'S1'", "did you mean"]),
        ([*TRAIN, "--config.mesh.fsdp=64"], ["mesh.fsdp=64", "mesh.data=-1"]),
        ([*TRAIN, "--config.dtype=float8"], ["'float8'", "bfloat16"]),
        ([*TRAIN, "--config.init=nowhere.pt", *TINY], ["nowhere.pt", ".safetensors"]),
        ([*CONVERT, "--from", "nowhere.pt", "--to", "x.pt"], ["nowhere.pt", ".safetensors"]),
        ([*CONVERT, "--from", "nowhere", "--to", "x.pt"], ["nowhere", "does not exist", "training folder"]),
        ([*CONVERT, "--from", ".", "--to", "x.pt"], ["holds no checkpoint", "--workdir"]),
        ([*CONVERT, "--from", "part=x.pt", "--to", "x.pt"], ["no part 'part'", "encoder"]),
        (["convert", "--model", "terrafm", "--from", "x.pt", "--to", "y.pt"], ["'terrafm'", "terrafm_nano"]),
        ([*TOKENIZE, f"{LULC}=nowhere.pt", "--source", "geotif"], ["'geotif'", "did you mean geotiff"]),
        ([*TOKENIZE, f"{LULC}=nowhere.pt", "--source", "geotiff"], ["'geotiff'", "needs a path"]),
        ([*TOKENIZE, f"{LULC}=nowhere.pt", "--source", "procedural"], ["nowhere.pt", ".safetensors"]),
        ([*TOKENIZE, LULC, "--source", "procedural"], ["no weights", f"{LULC}=PATH"]),
        ([*TOKENIZE, "coords", "--source", "procedural"], ["no image tokenizer", "s2l2a=PATH"]),
        ([*TOKENIZE, "terrafm_nano=x.pt", "--source", "procedural"], ["'terrafm_nano'", "did you mean"]),
        ([*TOKENIZE, f"{LULC}=x.pt", "--source", "procedural", "--size", "60"], ["--size 60", "multiple of 8"]),
        ([*TOKENIZE, f"{LULC}=x.pt", "--source", "procedural", "--process", "1"], ["'1'", "write 0/2"]),
        ([*RECONSTRUCT, "terrafm_nano", "--weights", "x.pt"], ["terrafm_nano", "image tokenizer", LULC]),
        ([*RECONSTRUCT, LULC, "--weights", "nowhere.pt"], ["nowhere.pt", ".safetensors"]),
        ([*RECONSTRUCT, LULC, "--weights", "x.pt", "--clip", "two"], ["'two'", "unit", "none"]),
        (["evaluate", "--config", "terrafm/nano", "--weights", "nowhere"], ["nowhere", "does not exist"]),
        (["evaluate", "--config", "terrafm/nano", "--weights", "x", "--split", "train"], ["'train'", "val"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_mistakes_are_one_line(terra_jax_command, arguments, words):
    assert_refused(terra_jax_command(*arguments), *words)
    assert not list(Path().iterdir())  # nothing was written


def test_a_workdir_that_cannot_be_made_is_refused(terra_jax_command):
    Path("run").write_text("mine")
    assert_refused(terra_jax_command(*TRAIN, *TINY), "run", "choose another --workdir")
    assert Path("run").read_text() == "mine"


def test_an_empty_folder_of_tiles_is_refused(terra_jax_command):
    Path("tiles").mkdir()
    assert_refused(terra_jax_command(*TRAIN, *TINY, *GEOTIFF), "tiles", "is empty")
    Path("tiles", "S2L2A").mkdir()
    assert_refused(terra_jax_command(*TRAIN, *TINY, *GEOTIFF), "tiles", "S1RTC")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: write_tif(file, plausible("S2L2A", 30)), ["30 x 30 pixels", "24 x 24"]),
        (lambda file: write_tif(file, plausible("S2L2A", 24), epsg=32632), ["EPSG:32632", "EPSG:32631", "reproject"]),
        (lambda file: write_tif(file, plausible("S2L2A", 24)[:10]), ["10 bands", "12 (B01"]),
        (lambda file: file.unlink(), ["is missing"]),
    ],
    ids=["size", "crs", "bands", "missing"],
)
def test_a_tile_whose_header_is_wrong_is_refused_by_name(terra_jax_command, tiles, spoil, words):
    spoil(tiles / "S2L2A" / "b.tif")
    assert_refused(terra_jax_command(*TRAIN, *TINY, *GEOTIFF), "b.tif", *words)
    assert not Path("run").exists()


def spoil_pixels(file: Path) -> None:
    array = plausible("S1RTC", 24).astype(np.float32)
    array[0, 3, 3] = np.nan
    write_tif(file, array)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])


def test_unreadable_tiles_among_others_are_replaced_and_named(terra_jax_command, tiles):
    spoil_pixels(tiles / "S1RTC" / "b.tif")
    truncate(tiles / "S2L2A" / "c.tif")
    result = terra_jax_command(*TRAIN, *TINY, *GEOTIFF)
    assert result.status == 0, result.err
    report = json.loads(Path("run/report.json").read_text())
    assert set(report["substituted_samples"]) == {"b", "c"}
    assert "b.tif has no data (NaN)" in report["substituted_samples"]["b"]
    assert "c.tif cannot be read" in report["substituted_samples"]["c"]
    assert result.out.count("warning: ") == 2 and "warning: b is unreadable and was substituted" in result.out
    assert report["knn"].startswith("not applicable: ") and steps(Path("run")) == [1, 2, 3, 4]


@pytest.mark.parametrize(("file", "spoil"), [("S1RTC/b.tif", spoil_pixels), ("S2L2A/b.tif", truncate)])
def test_strict_runs_refuse_an_unreadable_tile(terra_jax_command, tiles, file, spoil):
    spoil(tiles / file)
    result = terra_jax_command(*TRAIN, *TINY, *GEOTIFF, "--config.data.strict=true")
    assert_refused(result, file)


def test_tiles_that_are_all_unreadable_are_refused(terra_jax_command, tiles):
    for key in "abcd":
        spoil_pixels(tiles / "S1RTC" / f"{key}.tif")
    assert_refused(terra_jax_command(*TRAIN, *TINY, *GEOTIFF), ".tif has no data (NaN)", "substitutes")
    for file in tiles.glob("*/*.tif"):
        file.write_bytes(b"")
    assert_refused(terra_jax_command(*TRAIN, *TINY, *GEOTIFF), "none of the files in tiles can be read")


def test_a_finished_run_is_left_as_it_is(terra_jax_command, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = terra_jax_command(*TRAIN, *TINY)
    assert result.status == 0 and "has finished its 4 steps" in result.out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.model=terrafm_small", ["run holds another run", "terrafm_nano", "terrafm_small"]),
        ("--config.seed=7", ["run holds another run", "seed", "7"]),
        ("--config.steps=3", ["run is at step 4 already", "steps=3"]),
    ],
)
def test_a_workdir_of_another_run_is_refused(terra_jax_command, run, change, words):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert_refused(terra_jax_command(*TRAIN, *TINY, change), *words)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def damage(step: Path, cut: bool) -> None:
    """Flip a bit in the largest file of a checkpoint, or cut the file."""
    file = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data[: len(data) // 2] if cut else data)


@pytest.mark.parametrize("cut", [False, True], ids=["flipped", "truncated"])
def test_the_checkpoint_before_a_damaged_one_is_taken(terra_jax_command, run, tiny_run, cut):
    damage(run / "checkpoints" / "4", cut)
    result = terra_jax_command(*CONVERT, "--from", "run", "--to", "two.pt")
    assert result.status == 0 and result.err.startswith("warning: checkpoint ") and result.err.count("\n") == 1
    result = terra_jax_command(*TRAIN, *TINY)
    assert result.status == 0 and "going on from step 2" in result.out
    assert result.err.startswith("warning: checkpoint ") and "4 is damaged" in result.err
    assert losses(run) == losses(tiny_run) and (run / "checkpoints" / "damaged-4").is_dir()


def test_a_run_of_which_no_checkpoint_is_whole_is_refused(terra_jax_command, run):
    for step in (2, 4):
        damage(run / "checkpoints" / str(step), cut=True)
    words = ["none of the checkpoints in", "is whole"]
    assert_refused(terra_jax_command(*CONVERT, "--from", "run", "--to", "two.pt"), *words)
    assert_refused(terra_jax_command(*CONVERT, "--from", "run/checkpoints/2", "--to", "two.pt"), "2 is damaged")
    assert_refused(terra_jax_command(*TRAIN, *TINY), *words, "damaged-*")
    assert steps(run) == [1, 2, 3, 4] and not Path("two.pt").exists()


def test_weights_that_might_run_code_are_refused(terra_jax_command):
    sys.path.insert(0, str(ROOT / "tests" / "terra_jax" / "weights"))
    from torch_bytes import write_pickle

    write_pickle(Path("evil.pt"), b"cos\nsystem\n(X\x0b\x00\x00\x00touch ownedtR.")
    for arguments in ([*CONVERT, "--from", "evil.pt", "--to", "x.pt"], [*TRAIN, *TINY, "--config.init=evil.pt"]):
        assert_refused(terra_jax_command(*arguments), "evil.pt", "'os.system'", "state_dict")
    assert {path.name for path in Path().iterdir()} == {"evil.pt"}


def test_weights_that_do_not_fit_are_refused(terra_jax_command):
    save_state("other.safetensors", {"conv1.weight": LazyTensor.of(np.zeros((3, 3), np.float32))})
    result = terra_jax_command(*CONVERT, "--from", "other.safetensors", "--to", "x.pt")
    assert_refused(result, "other.safetensors", "missing (cls_token", "1 left over (conv1.weight (3, 3))")


@pytest.mark.parametrize("target", ["there.pt", "there"])
def test_a_target_that_exists_is_kept(terra_jax_command, run, target):
    assert terra_jax_command(*CONVERT, "--from", "run", "--to", target).status == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in Path().rglob(f"{target}*"))
    result = terra_jax_command(*CONVERT, "--from", "run/checkpoints/2", "--to", target)
    assert_refused(result, target, "exists", "--overwrite")
    assert sorted((path, path.stat().st_mtime_ns) for path in Path().rglob(f"{target}*")) == before
    assert terra_jax_command(*CONVERT, "--from", "run", "--to", target, "--overwrite").status == 0
    Path("mine").mkdir()
    assert_refused(
        terra_jax_command(*CONVERT, "--from", "run", "--to", "mine", "--overwrite"), "mine", "another target"
    )


def test_weights_of_another_model_are_refused(terra_jax_command, run):
    other = ("convert", "--model", "terrafm_base", "--from", "run", "--to", "x.pt")
    assert_refused(terra_jax_command(*other), "run holds terrafm_nano, not terrafm_base")


def test_evaluation_without_enough_regions_is_refused(terra_jax_command, run):
    result = terra_jax_command("evaluate", "--config", "terrafm/nano", "--weights", "run", *TINY)
    assert_refused(result, "kNN not applicable", "at least 20")


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """In processes of their own, killed before the first checkpoint and then anywhere: losses equal as text."""
    environment = {
        **os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }  # fmt: skip

    def start(workdir: Path) -> subprocess.Popen:
        words = ["train", "--config", "terrafm/nano", "--workdir", str(workdir), *TINY]
        words += ["--config.steps=60", "--config.checkpoint.every=10"]
        command = [sys.executable, "-m", "terra_jax.cli", *words]
        return subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(workdir: Path) -> None:
        process = start(workdir)
        out, _ = process.communicate()
        assert process.returncode == 0, out

    def rows(workdir: Path) -> int:
        path = workdir / "metrics.csv"
        return path.read_bytes().count(b"\n") - 1 if path.exists() else 0

    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    finish(unbroken)
    for kill in range(3):
        process = start(killed)
        enough = 1 if kill == 0 else rows(killed) + random.randrange(1, 25)
        while rows(killed) < enough and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    finish(killed)
    assert [step for step, _ in losses(killed)] == [str(step) for step in range(1, 61)]
    assert losses(killed) == losses(unbroken)
