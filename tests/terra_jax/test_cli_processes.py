"""`terra-jax train` on several hosts, as several processes of this one."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import TINY, TINY_EVALUATION

from terra_jax.training.metrics import read_csv

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ("train", "--config", "terrafm/nano", *TINY, *TINY_EVALUATION)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(folder, *arguments, devices=1, **environment):
    variables = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **environment,
    }
    command = [sys.executable, "-m", "terra_jax.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_two_hosts_train_evaluate_and_report_as_one(tmp_path):
    alone = start(tmp_path, *TRAIN, "--workdir", tmp_path / "alone", devices=2)
    out, _ = alone.communicate(timeout=400)
    assert alone.returncode == 0, out
    address = f"127.0.0.1:{free_port()}"
    both = [
        start(tmp_path, *TRAIN, "--workdir", tmp_path / "both", "--coordinator", address, "--processes", 2,
              "--process", index, "--wait", 120)
        for index in (0, 1)
    ]  # fmt: skip
    for process in both:
        out, _ = process.communicate(timeout=400)
        assert process.returncode == 0, out
    ours, theirs = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("both", "alone"))
    assert (ours["processes"], theirs["processes"]) == (2, 1)
    assert ours["metrics"]["loss"] == pytest.approx(theirs["metrics"]["loss"], rel=1e-5)
    assert ours["knn"]["scores"].keys() == theirs["knn"]["scores"].keys()
    assert ours["knn"]["baselines"] == theirs["knn"]["baselines"]
    rows = [read_csv(tmp_path / name / "evaluations.csv") for name in ("both", "alone")]
    assert rows[0] == [pytest.approx(row, abs=0.05) for row in rows[1]] and len(rows[0][0]) > 3  # a vote may tip over
    assert (tmp_path / "both" / "report.png").stat().st_size > 10_000


def test_a_coordinator_that_is_not_there_is_one_line_within_the_wait(tmp_path):
    began = time.monotonic()
    options = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2, "--process", 1, "--wait", 1)
    lost = start(tmp_path, *TRAIN, "--workdir", tmp_path / "run", *options)
    out, _ = lost.communicate(timeout=200)
    assert lost.returncode == 3 and out.startswith("error: coordinator 127.0.0.1:") and out.count("\n") == 1
    assert not (tmp_path / "run").exists() and time.monotonic() - began < 200


def test_options_of_processes_that_do_not_fit_together_are_refused(tmp_path, terra_jax_command):
    result = terra_jax_command(*TRAIN, "--workdir", tmp_path / "run", "--coordinator", "10.0.0.1:99")
    assert result.status == 2
    assert result.err == "error: --coordinator HOST:PORT, --processes N and --process I go together: give all three\n"
