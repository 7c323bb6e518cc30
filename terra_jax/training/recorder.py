"""What a run writes down while it goes: rows, points, progress, checkpoints and the report."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from data_pipelines.recipes.spec import check_batch
from terra_jax.parallel.distributed import Group
from terra_jax.training import goodput
from terra_jax.training.build import Program, State
from terra_jax.training.checkpoints import Checkpoints
from terra_jax.training.config import as_json, write_json
from terra_jax.training.evidence import FILE as EVIDENCE
from terra_jax.training.evidence import BadStep, Judge, keep_evidence
from terra_jax.training.experiment import BatchStream, Experiment
from terra_jax.training.metrics import CsvLog, Progress, TensorBoard, read_csv
from terra_jax.training.profile import Profile
from terra_jax.training.watchdog import Watchdog

SHOWN_FIGURES = 4
"""How many of an evaluation's figures are printed; evaluations.csv has them all."""


THE_END = 3600.0
"""Seconds that processes wait for the first one's report."""


class Pending(NamedTuple):
    """A step that may still be running."""

    step: int
    metrics: Mapping[str, jax.Array]
    waited: float
    position: int


class Recorder:
    """The bookkeeping of one run, to be used as a context manager.

    Metrics are fetched one step late, so that the host never waits for the step that is running.

    Args:
        experiment, config, workdir, program, checkpoints, stream, group, watchdog: of the run.
        local_batch: examples that this process feeds.
        start: step that the run goes on from.
        data: what the checkpoint says beside the state: "substituted", "skipped".
        ledger: of the wall time.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: ConfigDict,
        workdir: Path,
        program: Program,
        checkpoints: Checkpoints,
        stream: BatchStream,
        *,
        local_batch: int,
        start: int,
        data: Mapping[str, Any],
        ledger: goodput.Ledger,
        group: Group,
        watchdog: Watchdog,
    ):
        self.experiment, self.config, self.workdir, self.program = experiment, config, workdir, program
        self.checkpoints, self.stream, self.start = checkpoints, stream, start
        self.ledger, self.group, self.watchdog = ledger, group, watchdog
        self.substituted: dict[str, str] = dict(data["substituted"])
        self.skipped: list[dict[str, Any]] = list(data["skipped"])
        self.is_first = group.is_first
        self.local_batch = local_batch
        self.saved_step = start if start else None
        self.last = time.perf_counter()
        self.waited, self.position = 0.0, stream.position
        self.compile_seconds: float | None = None
        self.step_seconds: list[float] = []
        self.wait_seconds: list[float] = []
        self.dispatch_seconds: list[float] = []
        self.pending: Pending | None = None
        self.judge = Judge(config.guard.divergence)
        self.profile = Profile(workdir / "profile", *config.profile, shown=self.is_first)
        self.progress = Progress(config.steps, start, config.batch_size, self.is_first)
        if self.is_first:
            self.csv = CsvLog(workdir / "metrics.csv", start)
            self.evaluations = CsvLog(workdir / "evaluations.csv", start)
            self.board = TensorBoard(workdir / "tensorboard", start)

    def __enter__(self) -> "Recorder":
        self.ledger.switch("other")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close everything; a save in flight is waited for, and its failure raised."""
        self.watchdog.expect("")
        with contextlib.ExitStack() as stack:
            if kind is not None and issubclass(kind, Exception):
                stack.callback(self.ledger.note)
            stack.callback(self.checkpoints.close)
            stack.callback(self.stream.close)
            stack.callback(self.progress.close)
            stack.callback(self.profile.close)
            if self.is_first:
                for log in (self.csv, self.evaluations, self.board):
                    stack.callback(log.close)

    def next_batch(self, step: int, batches: Iterator[Mapping[str, Any]]) -> dict[str, jax.Array]:
        """Wait for a batch, check it against the contract and put it on the mesh."""
        self.watchdog.expect(f"waiting for the batch of step {step}")
        with self.ledger.during("data wait"):
            before = time.perf_counter()
            left_out = {entry["position"] for entry in self.skipped}
            while (position := self.stream.position) in left_out:
                next(batches)
            batch = next(batches)
            self.waited, self.position = time.perf_counter() - before, position
        if self.compile_seconds is None:
            check_batch(batch, self.experiment.objective.batch_spec, (self.local_batch,))
        for key in self.stream.failures.keys() - self.substituted.keys():
            self.substituted[key] = self.stream.failures[key]
            self.progress.say(f"warning: {key} is unreadable and was substituted: {self.substituted[key]}")
        return self.program.place(batch)

    def call(self, number: int, step: Callable[..., Any], state: State, batch: Mapping[str, jax.Array]) -> Any:
        """Start one step and time the start; the step itself goes on while the host fetches the next batch."""
        first = self.compile_seconds is None
        self.watchdog.expect("" if first else f"step {number}")  # a compilation takes what it takes
        self.profile.before(number)
        with self.ledger.during("compile" if first else "step"), self.profile.annotation(number):
            before = time.perf_counter()
            result = step(state, batch)
            seconds = time.perf_counter() - before
        self.profile.after(number, result[1])
        if first:
            self.compile_seconds = seconds
            self.last = time.perf_counter()
            self.progress.say(f"compiled the step in {seconds:.1f} s for {self.program.mesh.size} device(s)")
        else:
            self.dispatch_seconds.append(seconds)
        return result

    def log(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Write the previous step's metrics, keep this one's until it is done."""
        self.flush()
        self.pending = Pending(step, metrics, self.waited, self.position)

    def flush(self) -> None:
        """Write what is pending.

        Raises:
            BadStep: the loss or the gradient is not finite, or the loss has diverged.
        """
        if self.pending is None:
            return
        done, self.pending = self.pending, None
        self.watchdog.expect(f"step {done.step}")
        with self.ledger.during("step"):
            values = {name: float(value) for name, value in jax.device_get(dict(done.metrics)).items()}
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        if done.step > self.start + 1:  # the first one warms everything up
            self.step_seconds.append(seconds)
            self.wait_seconds.append(done.waited)
        if self.is_first:
            timing = {"seconds": round(seconds, 6), "data_wait": round(done.waited, 6)}
            self.csv.write({"step": done.step, "loss": values["loss"], **values, **timing})
            self.board.write(done.step, values)
        self.progress.update(done.step, values["loss"], seconds, done.waited)
        if fault := self.judge.fault(done.step, values):
            self._bad_step(done, values, fault)

    def _bad_step(self, done: Pending, values: Mapping[str, float], fault: str) -> None:
        """Keep the evidence of a bad step, and raise."""
        if self.is_first:
            event = {
                "step": done.step,
                "fault": fault,
                "position": done.position,
                "batch": self.stream.keys(done.position, done.position + self.config.batch_size),
                "metrics": values,
                "history": self.judge.history,
                "last_checkpoint": self.saved_step,
                "seed": self.config.seed,
            }
            keep_evidence(self.workdir, event)
        raise BadStep(
            f"{fault}; the last checkpoint is kept, and the batch and the steps before in {self.workdir / EVIDENCE}: "
            "lower --config.optimizer.learning_rate, look for bad values in the data, or leave the batch out with "
            "--config.guard.on_nan=skip",
            fault,
            done.step,
            done.position,
        )

    def evaluate(self, step: int, state: State) -> None:
        """Call the evaluators and note their figures."""
        if not self.experiment.evaluators:
            return
        self.flush()
        self.watchdog.expect("")
        figures: dict[str, float] = {}
        with self.ledger.during("evaluation"):
            for name, evaluator in self.experiment.evaluators.items():
                results = evaluator(self.program.bind, state, step)
                figures |= {f"{name}/{figure}": float(value) for figure, value in results.items()}
        if self.is_first:
            self.evaluations.write({"step": step, **figures})
            self.board.write(step, figures)
        shown = list(figures.items())[:SHOWN_FIGURES]
        self.progress.say(f"step {step}  " + "  ".join(f"{name} {value:.3f}" for name, value in shown))
        self.last = time.perf_counter()

    def save(self, step: int, state: State) -> None:
        """Save the state with the data position; its metrics are on disk before it."""
        self.flush()
        self.watchdog.expect("")
        with self.ledger.during("checkpoint"):
            if self.is_first:
                self.csv.sync()
                self.evaluations.sync()
            self._gather_substituted()
            data = {
                "position": self.stream.position,
                "substituted": self.substituted,
                "skipped": self.skipped,
                "seconds": self.ledger.seconds,
            }
            meta = {
                "model": self.config.model,
                "options": dict(self.experiment.options),
                "step": step,
                "config": as_json(self.config),
                "versions": versions(),
            }
            self.checkpoints.save(step, state, data, meta)
        self.saved_step = step
        self.last = time.perf_counter()

    def _gather_substituted(self) -> None:
        """Each process reads its own samples; the first one writes of all."""
        for found in self.group.gather("the names of unreadable samples", self.substituted):
            self.substituted |= found

    def interrupted(self, step: int, state: State, signal_name: str) -> dict[str, Any]:
        """Save and say how to go on."""
        if step != self.saved_step:
            self.save(step, state)
        self.checkpoints.close()
        self.progress.say(f"{signal_name}: saved step {step} in {self.workdir}; run the same command again to go on")
        return {"status": "interrupted", "signal": signal_name, "step": step}

    def finish(self, state: State) -> dict[str, Any]:
        """Put the report together and write it."""
        self.watchdog.expect("")
        with self.ledger.during("checkpoint"):
            self.checkpoints.close()
        self._gather_substituted()
        report = self.summary()
        if self.experiment.report is not None:
            with self.ledger.during("evaluation"):
                report |= self.experiment.report(self.workdir, report, self.program.bind, state)
        seconds = self.ledger.seconds
        report |= {"wall_seconds": sum(seconds.values()), "goodput": goodput.shares(seconds)}
        if self.is_first:
            self.ledger.note()
            write_json(self.workdir / "report.json", report)
        self.group.barrier("the report", THE_END)
        self.progress.say(goodput.line(seconds))
        self.progress.say(f"finished {self.config.steps} steps; report in {self.workdir / 'report.json'}")
        return report

    def summary(self) -> dict[str, Any]:
        """Make the report: what was reached, how fast, with what."""
        seconds = statistics.median(self.step_seconds) if self.step_seconds else None
        last = read_csv(self.workdir / "metrics.csv")[-1:] if self.is_first else []
        return {
            "status": "finished",
            "model": self.config.model,
            "steps": self.config.steps,
            "metrics": last[0] if last else {},
            "evaluations": read_csv(self.workdir / "evaluations.csv") if self.is_first else [],
            "samples_per_second": self.config.batch_size / seconds if seconds else None,
            "data_wait_fraction": sum(self.wait_seconds) / sum(self.step_seconds) if seconds else None,
            "step_seconds": seconds,
            "compile_seconds": self.compile_seconds,
            "dispatch_milliseconds": 1e3 * statistics.median(self.dispatch_seconds) if self.dispatch_seconds else None,
            "substituted_samples": self.substituted,
            "skipped_batches": self.skipped,
            "processes": self.group.count,
            "mesh": dict(self.program.mesh.shape),
            "device": jax.devices()[0].device_kind,
            "versions": versions(),
            "config": as_json(self.config),
        }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    packages = ("terra_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            found[package] = "unknown"
    return found
