"""Bad steps, full disks, lost disks, traces: what a run does when something is the matter."""

import json
import shutil

import pytest
from toy_processes import finish, start, succeed
from toy_run import Stream, toy_config, toy_experiment

from terra_jax.errors import ConfigError, TerraJaxError
from terra_jax.training.config import with_run_options
from terra_jax.training.evidence import HISTORY, Judge
from terra_jax.training.loop import train
from terra_jax.training.metrics import CsvLog, read_csv

pytestmark = pytest.mark.usefixtures("compilation_cache")


def config_with(overrides, **options):
    config = with_run_options(toy_config(**options))
    for key, value in overrides.items():
        config.update_from_flattened_dict({key: value})
    return config


def steps(workdir):
    return [row["step"] for row in read_csv(workdir / "metrics.csv")]


def test_evidence_of_a_bad_step_is_kept(tmp_path):
    config = toy_config()
    for _ in range(2):  # the same again does not make it two
        with pytest.raises(TerraJaxError, match=r"loss is inf at step 5; the last checkpoint is kept.*evidence\.json"):
            train(toy_experiment(config, bad_example=35), config, tmp_path)
    (event,) = json.loads((tmp_path / "evidence.json").read_text())
    assert (event["step"], event["position"], event["last_checkpoint"]) == (5, 32, 3)
    assert event["batch"] == [f"sample-{i}" for i in range(32, 40)]
    assert event["metrics"]["loss"] == "inf" and "grad_norm" in event["metrics"]
    assert [row["step"] for row in event["history"]] == [4]  # the second run began after step 3


def test_a_bad_batch_can_be_left_out(tmp_path, capsys):
    config = config_with({"guard.on_nan": "skip"})
    report = train(toy_experiment(config, bad_example=35), config, tmp_path)
    assert report["skipped_batches"] == [{"step": 5, "position": 32}]
    assert "loss is inf at step 5: going back to the last checkpoint" in capsys.readouterr().out
    assert steps(tmp_path) == list(range(1, 9))
    assert all(row["loss"] < 100 for row in read_csv(tmp_path / "metrics.csv"))
    held = json.loads((tmp_path / "checkpoints" / "8" / "data" / "data.json").read_text())
    assert held["position"] == 9 * 8 and held["skipped"] == report["skipped_batches"]

    class Without(Stream):  # the same run whose data never had that batch
        def __iter__(self):
            for batch in super().__iter__():
                if self.position != 40:
                    yield batch

    normal = toy_experiment(config)
    clean = type(normal)(normal.objective, lambda position, *_: Without(position, config.batch_size))
    other = tmp_path / "clean"
    train(clean, config, other)
    ours, theirs = (read_csv(place / "metrics.csv") for place in (tmp_path, other))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


def test_a_step_that_is_bad_whatever_the_batch_stops(tmp_path):
    config = config_with({"guard.on_nan": "skip"})
    with pytest.raises(TerraJaxError, match="step 5 is bad whatever the batch: 4 were left out since step 3"):
        train(toy_experiment(config, bad_step=5), config, tmp_path)
    events = json.loads((tmp_path / "evidence.json").read_text())
    assert [event["position"] for event in events] == [32, 40, 48, 56]
    with pytest.raises(ConfigError, match=r"guard.on_nan='ignore' is unknown; choose stop or skip"):
        config = config_with({"guard.on_nan": "ignore"})
        train(toy_experiment(config), config, tmp_path / "other")


def test_divergence_is_judged_by_the_last_steps():
    judge = Judge(3.0)
    for step in range(HISTORY):
        assert judge.fault(step, {"loss": 50.0 if step == 7 else 2.0, "grad_norm": 1.0}) is None
    assert judge.fault(99, {"loss": 5.9, "grad_norm": 1.0}) is None
    assert judge.fault(100, {"loss": 6.5, "grad_norm": 1.0}) == (
        "loss is 6.5 at step 100, the last 50 steps' median is 2"
    )
    assert "grad_norm is nan" in judge.fault(101, {"loss": 2.0, "grad_norm": float("nan")})
    assert Judge(0.0).fault(1, {"loss": 1e9, "grad_norm": 1.0}) is None


def test_a_lost_disk_goes_on_from_the_durable_copy(tmp_path):
    workdir, durable = tmp_path / "run", {"checkpoint.durable": str(tmp_path / "durable")}
    train(toy_experiment(toy_config()), config_with(durable, steps=6), workdir)
    before = read_csv(workdir / "metrics.csv")
    shutil.rmtree(workdir)
    config = config_with(durable)
    report = train(toy_experiment(config), config, workdir)
    assert report["steps"] == 8 and steps(workdir) == list(range(1, 9))
    assert read_csv(workdir / "metrics.csv")[:6] == before
    other = config_with(durable, model="other")
    with pytest.raises(ConfigError, match=r"checkpoint\.durable=.* holds another run: model is 'toy' there"):
        train(toy_experiment(other), other, tmp_path / "another")
    assert not (tmp_path / "another").exists()


def test_a_trace_of_a_few_steps(tmp_path):
    config = config_with({"profile": (3, 2)}, steps=6, evaluate_every=0)
    train(toy_experiment(config), config, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    bad = config_with({"profile": (3, -2)}, steps=6)
    with pytest.raises(ConfigError, match=r"profile=\(3,-2\) is not the first step and the number of steps"):
        train(toy_experiment(bad), bad, tmp_path / "other")


def test_goodput_is_reported(tmp_path, capsys):
    config = toy_config()
    report = train(toy_experiment(config), config, tmp_path)
    assert sum(report["goodput"].values()) == pytest.approx(1)
    assert min(report["goodput"][name] for name in ("start", "compile", "step", "checkpoint")) > 0
    assert f"goodput {report['goodput']['step']:.1%} of" in capsys.readouterr().out


def test_a_row_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    log = CsvLog(tmp_path / "metrics.csv")
    log.write({"step": 1, "loss": 0.5})
    before = (tmp_path / "metrics.csv").read_bytes()

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, line):
            return self.file.write(line[: len(line) // 2])

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(log, "_file", Full(log._file))
    with pytest.raises(OSError, match="No space left on device"):
        log.write({"step": 2, "loss": 0.25})
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path):
    """Files of more than 6 kB cannot be written: the tables can, a checkpoint cannot."""
    workdir = tmp_path / "run"
    ((status, out),) = finish(start(workdir, config={"save_every": 3, "steps": 6}, largest_file=6000))
    lines = [line for line in out.splitlines() if line.startswith("error:")]
    assert status == 2 and len(lines) == 1 and "checkpoints/3 could not be written" in lines[0], out
    assert "Traceback" not in out
    assert not list((workdir / "checkpoints").glob("*"))
    succeed(start(workdir, config={"save_every": 3, "steps": 6}))
    assert steps(workdir) == list(range(1, 7))
