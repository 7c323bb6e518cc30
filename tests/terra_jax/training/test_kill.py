"""Runs in processes of their own, killed in every way that matters."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from toy_processes import finish, losses, rows, start, succeed, wait_for

KILLS = int(os.environ.get("TERRA_JAX_KILLS", "3"))
"""How many kills at a random moment of a run of several processes; the full count is 20."""


def given(log, index):
    """Lines on the examples that a process gave: first of the batch, first of its own, how many."""
    return Path(f"{log}-{index}").read_text().splitlines()


MESH = {"data": 2, "fsdp": 2}
"""Four devices, whoever holds them."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """One process that nobody kills."""
    workdir = tmp_path_factory.mktemp("runs") / "unbroken"
    succeed(start(workdir, devices=4, config=MESH))
    return workdir


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(unbroken, tmp_path):
    workdir = unbroken.parent / "killed"
    run = start(workdir, devices=4, config=MESH, delay=0.05)  # before the first checkpoint
    wait_for(run, workdir, 2)
    run[0].kill()
    finish(run)
    assert 2 <= rows(workdir) < 6

    run = start(workdir, devices=4, config=MESH, kill_in_save=12)
    assert finish(run)[0][0] == -signal.SIGKILL

    run = start(workdir, devices=4, config=MESH, delay=0.2)  # a job's time limit
    wait_for(run, workdir, max(13, rows(workdir) + 1))  # a step of its own, whatever the killed ones left
    run[0].send_signal(signal.SIGTERM)
    (out,) = succeed(run)
    assert "run the same command again to go on" in out or out.endswith("finished\n")

    (out,) = succeed(start(workdir, devices=4, config=MESH))
    assert out.endswith("finished\n")
    assert losses(workdir) == losses(unbroken)
    assert [step for step, *_ in losses(workdir)] == list(range(1, 25))


@pytest.mark.slow
def test_one_of_several_processes_is_killed_again_and_again(unbroken):
    """At random moments, two and four processes in turns; the rest ends by itself and the run goes on."""
    workdir = unbroken.parent / "several"
    for kill in range(KILLS):
        count = (2, 4)[kill % 2]
        run = start(workdir, processes=count, devices=4 // count, config=MESH, delay=0.1)
        if kill % 2 == 0:  # among the steps, else at any moment after the start
            wait_for(run, workdir, min(rows(workdir) + 1, 23))
        time.sleep(random.uniform(0.0, 3.0))
        victim = random.randrange(count)
        run[victim].kill()
        results = finish(run)
        assert "(did not end)" not in "".join(out for _, out in results), results
    for out in succeed(start(workdir, processes=2, devices=2, config=MESH)):
        assert out.endswith("finished\n")
    assert [step for step, *_ in losses(workdir)] == list(range(1, 25))
    np.testing.assert_allclose(losses(workdir), losses(unbroken), rtol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(unbroken):
    """Stopped at step 12 under two processes, it is finished by one, by four, and on another mesh."""
    workdir = unbroken.parent / "moved"
    log = unbroken.parent / "examples"
    logs = {i: {"log": f"{log}-{i}"} for i in range(2)}
    run = start(workdir, processes=2, devices=2, config=MESH, delay=0.2, each=logs)
    wait_for(run, workdir, 11)
    run[1].send_signal(signal.SIGTERM)  # preemption of one host
    outs = succeed(run)
    assert all(out.endswith("interrupted\n") for out in outs), outs
    (step,) = {int(line.split("saved step ")[1].split()[0]) for line in outs[0].splitlines() if "saved step" in line}
    assert len(losses(workdir)) == step < 24
    examples = [{int(a): (int(b), int(c)) for a, b, c in map(str.split, given(log, i))} for i in range(2)]
    for first in range(0, 8 * step, 8):  # every batch: two halves, in order, each by one process
        assert [examples[i][first] for i in range(2)] == [(first, 4), (first + 4, 4)]

    for name, processes, devices, mesh in (("one", 1, 4, MESH), ("four", 4, 1, {"data": 1, "fsdp": 4})):
        copy = unbroken.parent / f"moved-{name}"
        shutil.copytree(workdir, copy)
        succeed(start(copy, processes=processes, devices=devices, config=mesh))
        np.testing.assert_allclose(losses(copy), losses(unbroken), rtol=1e-5)
