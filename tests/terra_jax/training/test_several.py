"""Several processes as one run, and what they say when one of them is in trouble."""

import json
import shutil

import numpy as np
import pytest
from toy_processes import finish, losses, start, succeed

from terra_jax.training.metrics import read_csv

MESH = {"steps": 6, "save_every": 3, "data": 2, "fsdp": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def alone(folder):
    """One process with four devices, evaluated along the way."""
    succeed(start(folder / "alone", devices=4, config={**MESH, "evaluate_every": 2}))
    return folder / "alone"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_do_what_one_does(folder, alone, count):
    workdir = folder / f"of-{count}"
    config = {**MESH, "evaluate_every": 2}
    outs = succeed(start(workdir, processes=count, devices=4 // count, config=config))
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    if count == 2:  # four processes add up in another order
        assert losses(workdir) == losses(alone)
    mine, theirs = (read_csv(place / "evaluations.csv") for place in (workdir, alone))
    assert [row["step"] for row in mine] == [0, 2, 4, 6]
    for row, other in zip(mine, theirs, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    report = json.loads((workdir / "report.json").read_text())
    assert (report["processes"], report["mesh"]["data"], report["steps"]) == (count, 2, 6)
    assert sum(report["goodput"].values()) == pytest.approx(1)
    assert "goodput" in outs[0] and "goodput" not in outs[1]  # one process speaks


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_skipped_by_all(folder, alone):
    workdir = folder / "damaged"
    shutil.copytree(alone, workdir)
    before = losses(workdir)
    victim = max((workdir / "checkpoints" / "6").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    outs = succeed(start(workdir, processes=2, devices=2, config={**MESH, "evaluate_every": 2}))
    assert "checkpoints/6 is damaged" in outs[0] and "going on from step 3" in outs[0]
    assert losses(workdir) == before


@pytest.mark.slow
def test_a_failure_of_one_ends_all_with_its_reason(folder):
    run = start(folder / "fails", processes=2, devices=2, config=MESH, each={1: {"fail_at": 16}})
    (first, out), (second, other) = finish(run)
    assert (first, second) == (2, 2), (out, other)
    assert "error: sample-16 cannot be read; copy it again" in other
    assert "process 1 (" in out and "sample-16 cannot be read; copy it again" in out
    assert "Traceback" not in out + other


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_named(folder):
    apart = {1: {"workdir": str(folder / "elsewhere")}}
    overrides = {"guard.hang_seconds": 0.0}
    results = finish(start(folder / "here", processes=2, devices=2, config=MESH, overrides=overrides, each=apart))
    for status, out in results:
        assert (
            status == 2 and "of process 0 is not what process 1 (" in out and "file system that all hosts share" in out
        )


@pytest.mark.slow
def test_a_hung_process_is_named_and_ended(folder):
    overrides = {"guard.hang_seconds": 8.0}
    run = start(folder / "hangs", processes=2, devices=2, config=MESH, overrides=overrides, each={1: {"hang_at": 32}})
    results = finish(run)
    assert all(status not in (0, None) for status, _ in results), results
    assert "waiting for the batch of step 5 takes more than 8 s in process 1" in results[1][1]
    assert "toy_run.py" in (folder / "hangs" / "hang-1.txt").read_text()
    for out in succeed(start(folder / "hangs", processes=2, devices=2, config=MESH)):
        assert out.endswith("finished\n")


@pytest.mark.slow
def test_bad_steps_roll_all_processes_back(folder):
    overrides = {"guard.on_nan": "skip"}
    toy = {"bad_example": 4 * 8 + 1}  # in the fifth batch
    outs = succeed(start(folder / "bad", processes=2, devices=2, config=MESH, overrides=overrides, toy=toy))
    assert "loss is inf at step 5: going back" in outs[0] and "going on from step 3" in outs[0]
    (event,) = json.loads((folder / "bad" / "evidence.json").read_text())
    assert event["batch"] == [f"sample-{i}" for i in range(32, 40)]
    report = json.loads((folder / "bad" / "report.json").read_text())
    assert report["skipped_batches"] == [{"step": 5, "position": 32}]
    assert [step for step, *_ in losses(folder / "bad")] == list(range(1, 7))
