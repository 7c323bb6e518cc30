"""A run in a process of its own, killed in every way that matters."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terra_jax.training.metrics import read_csv

TOY = Path(__file__).with_name("toy_run.py")
KILLS = int(os.environ.get("TERRA_JAX_KILLS", "1"))
"""How many kills at a random moment; the full count is 20."""


def start(workdir, kill_in_save=0, delay=0.0):
    root = str(TOY.parents[3])
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": root}
    command = [sys.executable, str(TOY), str(workdir), str(kill_in_save), str(delay)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(workdir):
    path = workdir / "metrics.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def wait_for(process, workdir, count):
    while rows(workdir) < count and process.poll() is None:
        time.sleep(0.02)


def losses(workdir):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_csv(workdir / "metrics.csv")]


@pytest.mark.slow
def test_killed_runs_go_on_bit_for_bit(tmp_path):
    unbroken, workdir = tmp_path / "unbroken", tmp_path / "killed"
    run = start(unbroken)
    out, _ = run.communicate()
    assert run.returncode == 0, out

    run = start(workdir, delay=0.05)  # before the first checkpoint
    wait_for(run, workdir, 2)
    run.kill()
    run.communicate()
    assert 2 <= rows(workdir) < 6

    run = start(workdir, kill_in_save=12)  # inside a save
    assert run.communicate() and run.returncode == -signal.SIGKILL

    for _ in range(KILLS):  # at any moment after the start
        run = start(workdir, delay=0.05)
        time.sleep(random.uniform(1.0, 8.0))
        run.kill()
        run.communicate()

    steps = rows(workdir)
    run = start(workdir, delay=0.2)  # a job's time limit
    wait_for(run, workdir, max(13, steps + 1))  # a step of its own, whatever the killed ones left
    run.send_signal(signal.SIGTERM)
    out, _ = run.communicate()
    assert run.returncode == 0, out
    assert "run the same command again to go on" in out or out.endswith("finished\n")

    run = start(workdir)
    out, _ = run.communicate()
    assert run.returncode == 0 and out.endswith("finished\n"), out
    assert losses(workdir) == losses(unbroken)
    assert [step for step, *_ in losses(workdir)] == list(range(1, 25))
