import json
import os
import subprocess
import sys

import pytest

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
