import json
import shutil

import numpy as np
import pytest
from command_line import TINY_SKYSENSE

from terra_jax.training import checkpoints
from terra_jax.training.metrics import read_csv
from terra_jax.weights.rules import flatten_params

TRAIN = ("train", "--config", "skysense/nano", *TINY_SKYSENSE)


@pytest.fixture(scope="module")
def run(terra_jax_command, tmp_path_factory):
    """Working folder of a finished run of 4 steps; not to be changed."""
    workdir = tmp_path_factory.mktemp("skysense") / "run"
    result = terra_jax_command(*TRAIN, "--workdir", workdir)
    assert result.status == 0, result.err
    return workdir


@pytest.mark.slow
def test_the_report_sets_fused_features_beside_all_that_they_must_beat(run):
    report = json.loads((run / "report.json").read_text())
    knn = report["knn"]
    assert knn["headline"] == "HR+S2L2A+S1GRD"
    assert {"HR", "S2L2A", "S1GRD", "HR+S2L2A+S1GRD", "S2L2A fused", "S2L2A+S1GRD"} <= set(knn["scores"])
    assert set(knn["baselines"]) == {"random encoder", "pixel mean and deviation"}
    assert (run / "report.png").stat().st_size > 10_000
    assert report["metrics"]["loss_object"] > 0 and report["substituted_samples"] == {}


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(terra_jax_command, run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "4")
    (again / "report.json").unlink()
    result = terra_jax_command(*TRAIN, "--workdir", again)
    assert result.status == 0 and "going on from step 2" in result.out, result.err
    losses = [[row["loss"] for row in read_csv(folder / "metrics.csv")] for folder in (run, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    for copy in ("student", "teacher"):
        first, second = (flatten_params(checkpoints.load_params(folder, copy)) for folder in (run, again))
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert np.array_equal(value, second[name]), f"{copy}: {name}"


@pytest.mark.slow
def test_what_was_trained_is_evaluated_and_converted_by_parts(terra_jax_command, run, tmp_path):
    result = terra_jax_command("convert", "--model", "skysense_nano", "--from", run, "--to", tmp_path / "nano.pt")
    assert result.status == 0, result.err
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {f"nano.{part}.pt" for part in ("hr", "s2", "s1", "head_s2", "head_s1", "fusion")}


def test_bad_options_are_refused_in_one_line(terra_jax_command, tmp_path):
    for change, words in (
        ("data.modalities=(S2L2A,LULC)", ("data.modalities", "not LULC")),
        ("objective.levels=(pixel,scene)", ("objective.levels", "pixel, object, image")),
        ("views.global_scale=(0.0,0.5)", ("global_scale",)),
        ("views.shipped.S2L2A=1", ("S2L2A", "ship more")),
        ("model=skysense_fusion", ("cannot be trained by itself",)),
    ):
        result = terra_jax_command(*TRAIN, f"--config.{change}", "--workdir", tmp_path / "run")
        assert result.status == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
        for word in words:
            assert word in result.err
