"""What a run writes down while it goes: rows, points, progress, checkpoints and the report."""

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines.recipes.spec import check_batch
from terra_jax.errors import TerraJaxError
from terra_jax.training.build import Program, State
from terra_jax.training.checkpoints import Checkpoints
from terra_jax.training.config import as_json, write_json
from terra_jax.training.experiment import BatchStream, Experiment
from terra_jax.training.metrics import CsvLog, Progress, TensorBoard, read_csv

SHOWN_FIGURES = 4
"""How many of an evaluation's figures are printed; evaluations.csv has them all."""


class Recorder:
    """The bookkeeping of one run, to be used as a context manager.

    Metrics are fetched one step late, so that the host never waits for the step that is running.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: ConfigDict,
        workdir: Path,
        program: Program,
        checkpoints: Checkpoints,
        stream: BatchStream,
        start: int,
        data: Mapping[str, Any],
    ):
        self.experiment, self.config, self.workdir, self.program = experiment, config, workdir, program
        self.checkpoints, self.stream, self.start = checkpoints, stream, start
        self.substituted: dict[str, str] = dict(data["substituted"])
        self.seconds_before: float = data["seconds"]
        self.is_first = jax.process_index() == 0
        self.saved_step = start if start else None
        self.began = self.last = time.perf_counter()
        self.waited = 0.0
        self.compile_seconds: float | None = None
        self.step_seconds: list[float] = []
        self.wait_seconds: list[float] = []
        self.dispatch_seconds: list[float] = []
        self.pending: tuple[int, Mapping[str, jax.Array], float] | None = None
        self.progress = Progress(config.steps, start, config.batch_size, self.is_first)
        if self.is_first:
            self.csv = CsvLog(workdir / "metrics.csv", start)
            self.evaluations = CsvLog(workdir / "evaluations.csv", start)
            self.board = TensorBoard(workdir / "tensorboard", start)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything; a save in flight is waited for, and its failure raised."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            stack.callback(self.stream.close)
            stack.callback(self.progress.close)
            if self.is_first:
                for log in (self.csv, self.evaluations, self.board):
                    stack.callback(log.close)

    def next_batch(self, batches: Iterator[Mapping[str, Any]]) -> dict[str, jax.Array]:
        """Wait for a batch, check it against the contract and put it on the mesh."""
        before = time.perf_counter()
        batch = next(batches)
        self.waited = time.perf_counter() - before
        if self.compile_seconds is None:
            check_batch(batch, self.experiment.objective.batch_spec, (self.config.batch_size // jax.process_count(),))
        for key in self.stream.failures.keys() - self.substituted.keys():
            self.substituted[key] = self.stream.failures[key]
            self.progress.say(f"warning: {key} is unreadable and was substituted: {self.substituted[key]}")
        return self.program.place(batch)

    def call(self, step: Callable[..., Any], state: State, batch: Mapping[str, jax.Array]) -> Any:
        """Start one step and time the start; the step itself goes on while the host fetches the next batch."""
        before = time.perf_counter()
        result = step(state, batch)
        seconds = time.perf_counter() - before
        if self.compile_seconds is None:
            self.compile_seconds = seconds
            self.last = time.perf_counter()
            self.progress.say(f"compiled the step in {seconds:.1f} s for {self.program.mesh.size} device(s)")
        else:
            self.dispatch_seconds.append(seconds)
        return result

    def log(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Write the previous step's metrics, keep this one's until it is done."""
        self.flush()
        self.pending = (step, metrics, self.waited)

    def flush(self) -> None:
        """Write what is pending.

        Raises:
            TerraJaxError: the loss or the gradient is not finite.
        """
        if self.pending is None:
            return
        (step, metrics, waited), self.pending = self.pending, None
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        if step > self.start + 1:  # the first one warms everything up
            self.step_seconds.append(seconds)
            self.wait_seconds.append(waited)
        if self.is_first:
            timing = {"seconds": round(seconds, 6), "data_wait": round(waited, 6)}
            self.csv.write({"step": step, "loss": values["loss"], **values, **timing})
            self.board.write(step, values)
        self.progress.update(step, values["loss"], seconds, waited)
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                raise TerraJaxError(
                    f"{name} is {values[name]} at step {step}; the last checkpoint is kept: "
                    "lower --config.optimizer.learning_rate, or look for bad values in the data"
                )

    def evaluate(self, step: int, state: State) -> None:
        """Call the evaluators and note their figures."""
        if not self.experiment.evaluators:
            return
        self.flush()
        figures: dict[str, float] = {}
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
        if self.is_first:
            self.csv.sync()
            self.evaluations.sync()
        seconds = self.seconds_before + time.perf_counter() - self.began
        data = {"position": self.stream.position, "substituted": self.substituted, "seconds": seconds}
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

    def interrupted(self, step: int, state: State, signal_name: str) -> dict[str, Any]:
        """Save and say how to go on."""
        if step != self.saved_step:
            self.save(step, state)
        self.checkpoints.wait()
        self.progress.say(f"{signal_name}: saved step {step} in {self.workdir}; run the same command again to go on")
        return {"status": "interrupted", "signal": signal_name, "step": step}

    def finish(self, state: State) -> dict[str, Any]:
        """Put the report together and write it."""
        report = self.summary()
        if self.experiment.report is not None:
            report |= self.experiment.report(self.workdir, report, self.program.bind, state)
        if self.is_first:
            write_json(self.workdir / "report.json", report)
        self.progress.say(f"finished {self.config.steps} steps; report in {self.workdir / 'report.json'}")
        return report

    def summary(self) -> dict[str, Any]:
        """Make the report: what was reached, how fast, with what."""
        seconds = statistics.median(self.step_seconds) if self.step_seconds else None
        elapsed = time.perf_counter() - self.began
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
            "wall_seconds": self.seconds_before + elapsed,
            "substituted_samples": self.substituted,
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
