import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY_TOKENIZER as TINY

from terra_jax.errors import ConfigError
from terra_jax.terramind.tokenizer_experiment import experiment, make_objective
from terra_jax.terramind.variants import TOKENIZERS
from terra_jax.training import checkpoints
from terra_jax.training.config import list_configs, load_config
from terra_jax.training.data import open_data, split_indices, training_indices

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_pipelines"))
from fakes import write_folder

CONFIGS = [name for name in list_configs() if name.startswith("terramind/tokenizer_")]
TRAIN = ("train", "--config", "terramind/tokenizer_lulc_nano")


@pytest.fixture(scope="module")
def run(terra_jax_command, tmp_path_factory):
    """Working folder of a finished run; not to be changed."""
    workdir = tmp_path_factory.mktemp("tokenizer") / "run"
    result = terra_jax_command(*TRAIN, "--workdir", workdir, *TINY)
    assert result.status == 0, result.err
    return workdir


def losses(workdir):
    return [(row["step"], row["loss"]) for row in csv.DictReader((workdir / "metrics.csv").read_text().splitlines())]


def test_there_is_a_config_for_every_tokenizer():
    assert {load_config(name).model for name in CONFIGS} == set(TOKENIZERS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_makes_an_objective(name):
    from data_pipelines.recipes.tokenizer import WindowRecipe

    config = load_config(name)
    recipe = WindowRecipe(config.data.modalities[0], config.data.tile, max(config.views.sizes))
    objective = make_objective(config, recipe)
    assert objective.batch_spec == recipe.batch_spec and recipe.windows == 1


@pytest.mark.parametrize(
    ("name", "epochs", "batch", "rate", "sizes", "momentum"),
    [
        ("s2l2a", 100, 2048, 1.414e-4, (224, 256), 0.9999),
        ("s1rtc", 100, 2048, 1.414e-4, (224, 256), 0.9999),
        ("s1grd", 100, 384, 1.0e-4, (224, 256), 0.9999),
        ("dem", 20, 2048, 1.414e-4, (256,), 0.9999),
        ("ndvi", 20, 2048, 1.414e-4, (256,), 0.9999),
        ("lulc", 20, 2048, 3.54e-5, (224, 240, 256), 0.99),
    ],
)
def test_published_settings_are_the_defaults(name, epochs, batch, rate, sizes, momentum):
    config = load_config(f"terramind/tokenizer_{name}")
    optimizer = config.optimizer
    assert (config.batch_size, optimizer.learning_rate, tuple(config.views.sizes)) == (batch, rate, sizes)
    assert config.objective.ema_momentum == momentum and config.steps == epochs * optimizer.warmup_steps
    assert (tuple(optimizer.betas), optimizer.eps, optimizer.weight_decay) == ((0.9, 0.99), 1e-8, 0.05)
    assert (optimizer.clip_norm, optimizer.clip, optimizer.first_learning_rate) == (1.0, "all", 1e-6)
    assert (config.data.tile, tuple(config.views.scale), config.views.flip) == (264, (0.8, 1.0), 0.5)
    assert optimizer.final_learning_rate == 0 and (config.data.balance, config.data.ocean) == (0, 1)


def test_training_never_sees_the_regions_that_are_scored():
    config = load_config("terramind/tokenizer_lulc_nano")
    source = open_data(config)
    trained = set(source.index.region[training_indices(source, config)])
    for split in ("val", "test"):
        scored = split_indices(source, split, 100)
        assert len(scored) == 100 and trained.isdisjoint(source.index.region[scored])
    assert len(split_indices(source, "all", 10**6)) == len(source)


def test_contradictions_are_named():
    for change, words in (("data.modalities=(DEM,)", "is trained on LULC"), ("views.sizes=(60,)", "views.sizes=60")):
        with pytest.raises(ConfigError, match=words):
            experiment(load_config("terramind/tokenizer_lulc_nano", [change, "data.samples=20", "data.cache=false"]))


def test_a_run_reports_reconstruction_and_codebook(run):
    report = json.loads((run / "report.json").read_text())
    for name in ("reconstruction", "reconstruction_ema"):
        assert {"accuracy", "miou", "iou"} == set(report[name]["scores"]["reconstruction"])
        assert report[name]["images"] == 6 and report[name]["codebook"]["tokens"] == 12 * 16
    assert [row["step"] for row in report["evaluations"]] == [0, 2, 4]
    assert 0 < report["evaluations"][-1]["reconstruction/codes_used"] <= 1
    assert (run / "report.png").stat().st_size > 10_000 and report["metrics"]["code_perplexity"] >= 1


def test_a_run_goes_on_from_its_last_checkpoint_bit_for_bit(run, terra_jax_command, tmp_path):
    cut = Path(shutil.copytree(run, tmp_path / "cut"))
    shutil.rmtree(cut / "checkpoints" / "4")
    (cut / "report.json").unlink()
    result = terra_jax_command(*TRAIN, "--workdir", cut, *TINY)
    assert result.status == 0 and "going on from step 2" in result.out, result.err
    assert losses(cut) == losses(run)


def test_weights_of_a_run_go_everywhere(run, terra_jax_command, tmp_path):
    model = ("convert", "--model", "terramind_v1_tokenizer_lulc_nano", "--from", run)
    for copy in ("student", "ema"):
        result = terra_jax_command(*model, "--weights", copy, "--to", tmp_path / f"{copy}.safetensors")
        assert result.status == 0, result.err
    assert terra_jax_command(*model, "--to", tmp_path / "default.safetensors").status == 0
    student, ema, default = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("student", "ema", "default"))
    assert student == default != ema
    result = terra_jax_command(
        *TRAIN, "--workdir", tmp_path / "next", *TINY, f"--config.init={tmp_path / 'student.safetensors'}",
        "--config.optimizer.learning_rate=0.0", "--config.steps=2",
    )  # fmt: skip
    assert result.status == 0 and "left 0 fresh: none" in result.out and "tokenizer.encoder" in result.out, result
    before, after = (checkpoints.load_params(path, part="tokenizer") for path in (run, tmp_path / "next"))
    np.testing.assert_array_equal(before["encoder"]["out"]["kernel"], after["encoder"]["out"]["kernel"])


def test_weights_are_scored_on_foreign_tiles(run, terra_jax_command, tmp_path):
    tiles = write_folder(tmp_path / "tiles", modalities=("LULC",), pixels=72)
    words = ("evaluate", "--config", "terramind/tokenizer_lulc_nano", "--weights", run, *TINY,
             "--config.data.source=geotiff", f"--config.data.path={tiles}", "--config.data.tile=72")  # fmt: skip
    result = terra_jax_command(*words)
    assert result.status == 2 and "no tiles of the split 'test'" in result.err and "--split all" in result.err
    result = terra_jax_command(*words, "--split", "all", "--json", tmp_path / "scores.json")
    assert result.status == 0 and "LULC, 12 images of 32 x 32 pixels" in result.out, result.err
    assert json.loads((tmp_path / "scores.json").read_text())["images"] == 12


def test_tiles_without_unseen_regions_are_trained_on_without_figures(terra_jax_command, tmp_path):
    tiles = write_folder(tmp_path / "tiles", modalities=("LULC",), pixels=36)
    result = terra_jax_command(
        *TRAIN, "--workdir", tmp_path / "run", *TINY, "--config.data.source=geotiff", f"--config.data.path={tiles}",
        "--config.steps=1",
    )  # fmt: skip
    assert result.status == 0, result.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reconstruction"].startswith("no figures: ") and (tmp_path / "run" / "report.png").is_file()
