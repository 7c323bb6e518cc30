import json
import os
import signal

import jax
import numpy as np
import pytest
from toy_run import Stream, toy_config, toy_experiment

from terra_jax.errors import CheckpointError, ConfigError, TerraJaxError, WeightsError
from terra_jax.training.checkpoints import load_meta, load_params
from terra_jax.training.experiment import Experiment, Initial
from terra_jax.training.loop import train
from terra_jax.training.metrics import read_csv

pytestmark = pytest.mark.usefixtures("compilation_cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An unbroken run of 8 steps."""
    workdir = tmp_path_factory.mktemp("run")
    config = toy_config()
    hook = lambda workdir, report, bind, state: {"drawn": report["steps"], "width": bind(state["params"]).head.shape[0]}  # noqa: E731
    report = train(toy_experiment(config, failures={"tile-3": "truncated"}, report=hook), config, workdir)
    return workdir, config, report


def losses(workdir):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_csv(workdir / "metrics.csv")]


def test_a_run_leaves_one_row_a_step_and_a_report(finished):
    workdir, _, report = finished
    assert [step for step, *_ in losses(workdir)] == list(range(1, 9))
    assert json.loads((workdir / "report.json").read_text()) == report
    assert report["status"] == "finished" and report["metrics"]["step"] == 8
    assert report["substituted_samples"] == {"tile-3": "truncated"}
    assert [row["step"] for row in report["evaluations"]] == [0, 4, 8]
    assert (report["drawn"], report["width"]) == (8, 16)
    assert report["samples_per_second"] > 0 and 0 <= report["data_wait_fraction"] < 1
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "8"]
    assert list((workdir / "tensorboard").iterdir())
    assert load_meta(workdir)["model"] == "toy"


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
    workdir, config, report = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.csv")}
    assert train(toy_experiment(config), config, workdir) == report
    assert "has finished its 8 steps" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*.csv")}


def test_another_run_is_refused(finished):
    workdir, *_ = finished
    for different, named in ((toy_config(model="other"), "model"), (toy_config(batch_size=16), "batch_size")):
        with pytest.raises(ConfigError, match=f"holds another run: {named} is"):
            train(toy_experiment(different), different, workdir)
    shorter = toy_config(steps=5)
    with pytest.raises(ConfigError, match="at step 8 already"):
        train(toy_experiment(shorter), shorter, workdir)


def test_a_folder_with_foreign_results_is_left_alone(tmp_path):
    (tmp_path / "metrics.csv").write_text("mine\n")
    config = toy_config()
    with pytest.raises(ConfigError, match=r"metrics\.csv but no config\.json"):
        train(toy_experiment(config), config, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "mine\n"


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_stopped_run_goes_on_bit_for_bit(finished, tmp_path, at, capsys):
    unbroken, config, _ = finished

    class Stopping(Stream):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__(), 1):
                if number == at:  # the signal arrives while the host waits for this step's data
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    normal = toy_experiment(config)
    if at:
        stopping = Experiment(normal.objective, lambda position, *_: Stopping(position, config.batch_size))
    else:
        stopping = Experiment(
            normal.objective,
            normal.loader,
            {"probe": lambda *_: os.kill(os.getpid(), signal.SIGTERM) or {}},  # before the first step
        )
    report = train(stopping, config, tmp_path)
    assert (report["status"], report["signal"], report["step"]) == ("interrupted", "SIGTERM", at)
    assert "run the same command again" in capsys.readouterr().out
    assert [step for step, *_ in losses(tmp_path)] == list(range(1, at + 1))
    train(normal, config, tmp_path)
    assert losses(tmp_path) == losses(unbroken)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished, tmp_path):
    unbroken, config, _ = finished
    train(toy_experiment(config), config, tmp_path)
    victim = max((tmp_path / "checkpoints" / "8").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.warns(UserWarning, match=r"checkpoints/8 is damaged .*another checksum"):
        train(toy_experiment(config), config, tmp_path)
    assert losses(tmp_path) == losses(unbroken)
    assert (tmp_path / "checkpoints" / "damaged-8").is_dir()

    for step in ("6", "8"):
        (tmp_path / "checkpoints" / step / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match=r"none of the checkpoints .* is whole"):
        train(toy_experiment(config), config, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = toy_config()
    with pytest.raises(TerraJaxError, match="loss is nan at step 5; the last checkpoint is kept"):
        train(toy_experiment(config, bad_step=5), config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_training_starts_from_given_weights(finished, tmp_path, capsys):
    source, *_ = finished
    teacher = load_params(source, "teacher", "encoder")
    config = toy_config(steps=1)
    seen = {}

    def look(bind, state, step):
        seen[step] = jax.device_get((state["params"]["encoder"], state["extra"]["teacher"]["encoder"], state["opt"]))
        return {}

    given = lambda: Initial({"encoder": teacher}, ["encoder/stem"], ["head"])  # noqa: E731
    normal = toy_experiment(config, init=given)
    train(Experiment(normal.objective, normal.loader, {"look": look}, given), config, tmp_path)
    student, copy, opt = seen[0]
    jax.tree.map(np.testing.assert_array_equal, student, teacher)
    jax.tree.map(np.testing.assert_array_equal, copy, teacher)
    assert all(not leaf.any() for leaf in jax.tree.leaves(opt))
    out = capsys.readouterr().out
    assert "loaded 1 parameters: encoder/stem" in out and "left 1 fresh: head" in out


def test_weights_that_do_not_fit_are_named(tmp_path):
    config = toy_config()
    for bad, message in (
        ({"stem": np.zeros(3)}, "stem is no parameter"),
        ({"head": np.zeros((2, 2))}, "head has shape"),
    ):
        with pytest.raises(WeightsError, match=message):
            train(toy_experiment(config, init=lambda bad=bad: Initial(bad, [], [])), config, tmp_path)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    config = toy_config(batch_size=12)
    with pytest.raises(ConfigError, match="batch_size=12 must be a multiple of"):
        train(toy_experiment(config), config, tmp_path)
