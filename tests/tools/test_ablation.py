import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from terra_jax import registry
from terra_jax.training.config import load_config
from tools import ablation

TINY = {
    "steps": 2, "batch_size": 8, "data.samples": 900, "data.tile": 24, "data.cache": False,
    "views.global_size": 16, "views.local_size": 8, "views.local_views": 1, "objective.prototypes": 32,
    "objective.head_hidden": 16, "evaluation.bank": 40, "evaluation.queries": 30,
}  # fmt: skip


@pytest.mark.slow
def test_the_ladder_runs_and_prints_a_table(tmp_path, repository):
    command = [sys.executable, "tools/ablation.py", "terrafm", "--out", tmp_path, "--seeds", "1"]
    command += [f"--config.{key}={value}" for key, value in TINY.items()]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling is most of the work here
    result = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "ablation.json").read_text())
    assert list(results) == ["single modality", "+ modality augmentation", "+ fusion", "+ dual centring"]
    assert "S2L2A+S1RTC" not in results["single modality"][0]["scores"]
    lines = result.stdout.strip().splitlines()[-7:]
    assert lines[0].startswith("kNN accuracy") and lines[-1].startswith("band mean and deviation")


def test_bad_options_are_refused_in_one_line(tmp_path, repository):
    command = [sys.executable, "tools/ablation.py", "terrafm", "--out", tmp_path, "--config.stps=3"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown config key 'stps'; did you mean steps")


@pytest.mark.parametrize(
    ("family", "rung"), [(family, rung) for family, rungs in ablation.LADDER.items() for rung in rungs]
)
def test_every_rung_is_a_run(family, rung):
    few = ["data.samples=60", "data.cache=false", "evaluation.bank=0"]
    config = load_config(f"{family}/nano", [*few, *ablation.LADDER[family][rung]])
    assert registry.experiment(config).objective.steps == config.steps


def test_the_table_has_a_line_for_each_rung_and_baseline():
    sets = ablation.INPUTS["skysense"]
    scores = {name: [{"fraction": f, "accuracy": f / 2} for f in (0.01, 1.0)] for name in sets}
    runs = [{"scores": scores, "baselines": {"random encoder": scores}}] * 2
    lines = ablation.table({"everything": runs}, sets).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["kNN accuracy, %", "everything", "random encoder"]
    assert lines[1].count("50.0 +- 0.0") == len(sets)


def test_terramind_needs_weights_and_the_others_none(tmp_path, monkeypatch, capsys):
    for arguments, words in (
        (["terramind", "--out", "x"], "terramind needs it"),
        (["terrafm", "--out", "x", "--weights", "y"], "--weights is for terramind"),
    ):
        monkeypatch.setattr(sys, "argv", ["ablation.py", *arguments])
        with pytest.raises(SystemExit):
            ablation.main()
        assert words in capsys.readouterr().err
    monkeypatch.syspath_prepend(Path(ablation.__file__).parent)
    monkeypatch.setattr(sys, "argv", ["ablation.py", "terramind", "--out", "x", "--weights", str(tmp_path / "none")])
    assert ablation.main() == 2 and "none: does not exist" in capsys.readouterr().err


def test_terramind_writes_its_table(tmp_path, monkeypatch, capsys):
    """The comparison itself is tested beside its module."""
    run = {"input": "S2L2A", "labels": 8, "miou": 0.5}
    figures = {"runs": [{"rung": rung, **run} for rung in ("plain", "thinking of LULC")], "baseline": {"miou": 0.1}}
    asked: dict = {}

    def compared(model, **options):
        asked.update(options, model=model)
        return figures

    monkeypatch.syspath_prepend(Path(ablation.__file__).parent)
    monkeypatch.setattr("tim_ablation.compare", compared)
    monkeypatch.setattr(registry, "load", lambda name, path: (name, path))
    words = ["terramind", "--weights", "runs/tm", "--out", str(tmp_path / "runs" / "tim"), "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["ablation.py", *words])
    assert ablation.main() == 0
    assert asked == {"seeds": 2, "model": ("terramind_v1_nano_encdec", "runs/tm")}
    assert json.loads((tmp_path / "runs" / "tim" / "ablation.json").read_text()) == figures
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["mean IoU, %", "plain", "thinking of LULC", "commonest class"]
