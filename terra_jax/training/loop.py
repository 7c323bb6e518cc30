"""The training loop: one run from its config to its report, resumable at any moment, on any number of hosts."""

import errno
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from terra_jax.errors import ConfigError, MissingProcessError, TerraJaxError
from terra_jax.parallel.distributed import Group, batch_share, connect
from terra_jax.parallel.mesh import check_batch_size, make_mesh
from terra_jax.training import goodput
from terra_jax.training.build import Program, State, build
from terra_jax.training.checkpoints import Checkpoints, Restored
from terra_jax.training.config import check_workdir, remember, with_run_options
from terra_jax.training.evidence import BadStep
from terra_jax.training.experiment import Experiment
from terra_jax.training.optimiser import AdamW
from terra_jax.training.recorder import Recorder
from terra_jax.training.signals import StopSignals
from terra_jax.training.watchdog import Watchdog

MOST_SKIPS = 3
"""Batches that may be left out after one checkpoint; if the next step is bad too, it is not the batch."""
SHARED_WITHIN = 20.0
"""Seconds until a file that one host writes must be seen by the others."""


def train(experiment: Experiment, config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train, or go on with what `workdir` holds; the same call does both, in every process of a run.

    Every step's metrics go to `metrics.csv` and TensorBoard, evaluations to `evaluations.csv`, the state to
    `checkpoints`, bad steps to `evidence.json`, and at the end the summary to `report.json`. SIGTERM and SIGINT save
    and return early.

    Args:
        experiment: objective, loader, evaluators.
        config: sections as in `configs/`; read here: model, seed, steps, batch_size, accumulation, mesh, optimizer,
            checkpoint (every, keep), evaluation (every), and what `training.config.RUN_OPTIONS` lists.
        workdir: where everything is written; one folder that all processes see.

    Returns:
        The report; its "status" is "finished" or "interrupted".

    Raises:
        ConfigError: contradictory options, or a workdir of another run.
        CheckpointError: no checkpoint in workdir is whole, or one cannot be written.
        TerraJaxError: a bad step, a full disk.
        MissingProcessError: another process of the run is gone.
    """
    began = time.perf_counter()
    workdir, config, group = Path(workdir), with_run_options(config), Group()
    with (
        _one_line_errors(workdir, group),
        StopSignals() as stop,
        Watchdog(group, workdir, config.guard.hang_seconds) as watchdog,
    ):
        # 1. The program: mesh, shapes and the definition of the step; nothing is allocated yet.
        mesh = make_mesh(**config.mesh)
        _check_options(config, mesh)
        checkpoints = Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.durable, group)
        group.agree("the working folder", lambda: _check_places(config, workdir, checkpoints))
        _check_shared(workdir, group)
        connect(mesh, group)
        optimiser = AdamW.from_config(config.optimizer, config.steps)
        program = build(experiment.objective, optimiser, mesh, accumulation=config.accumulation, seed=config.seed)
        run = _Run(experiment, config, workdir, group, program, checkpoints, stop, watchdog)
        bad: list[dict[str, int]] = []
        while True:
            try:
                return _attempt(run, bad, began)
            except BadStep as error:
                if config.guard.on_nan != "skip":
                    raise
                bad.append({"step": error.step, "position": error.position})
                _say(f"{error.fault}: going back to the last checkpoint, and on without that batch", group)
            began = time.perf_counter()  # outside of the handler, which holds the failed attempt's state in memory


class _Run(NamedTuple):
    """What does not change between attempts."""

    experiment: Experiment
    config: ConfigDict
    workdir: Path
    group: Group
    program: Program
    checkpoints: Checkpoints
    stop: StopSignals
    watchdog: Watchdog


def _attempt(run: _Run, bad: list[dict[str, int]], began: float) -> dict[str, Any]:
    """Train from the last checkpoint to the end, to a stop, or to a bad step."""
    experiment, config, program, group = run.experiment, run.config, run.program, run.group

    # 2. The state: the latest whole checkpoint, else converted weights, else random.
    restored = run.checkpoints.restore(program.abstract_state)
    step_there = restored.step if restored is not None else 0
    if (report := group.agree("the report", partial(_finished, run.workdir, config, step_there))) is not None:
        _say(f"{run.workdir} has finished its {config.steps} steps: see report.json, or raise --config.steps", group)
        return report
    state, start, data = _first_state(experiment, program, restored, group)
    del restored  # the steps below give the state's memory away
    data = {**data, "skipped": _skipped(data["skipped"], bad, start)}
    ledger = goodput.Ledger(run.workdir / goodput.FILE if group.is_first else None, data["seconds"], began)

    # 3. The data, from the position that was saved with the state.
    part, parts = batch_share(program.batch_sharding)
    stream = experiment.loader(data["position"], part, parts)
    remember(config, run.workdir)

    # 4. The steps. Evaluations come before the save of their step, so that a saved step has all its figures.
    recorder = Recorder(
        experiment, config, run.workdir, program, run.checkpoints, stream,
        local_batch=config.batch_size // parts, start=start, data=data, ledger=ledger, group=group,
        watchdog=run.watchdog,
    )  # fmt: skip
    with recorder:
        batches = iter(stream)
        if start == 0 and config.evaluation.every > 0:
            recorder.evaluate(0, state)
        for step in range(start + 1, config.steps + 1):
            if run.stop.requested():
                return recorder.interrupted(step - 1, state, run.stop.name)
            batch = recorder.next_batch(step, batches)
            state, metrics = recorder.call(step, program.step, state, batch)
            recorder.log(step, metrics)
            if step == config.steps or _due(step, config.evaluation.every):
                recorder.evaluate(step, state)
            if step == config.steps or _due(step, config.checkpoint.every):
                recorder.save(step, state)
        return recorder.finish(state)


def _say(message: str, group: Group) -> None:
    if group.is_first:
        print(message, flush=True)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_options(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    check_batch_size(config.batch_size, config.accumulation, mesh)
    if config.guard.on_nan not in ("stop", "skip"):
        raise ConfigError(f"guard.on_nan={config.guard.on_nan!r} is unknown; choose stop or skip")


def _check_places(config: ConfigDict, workdir: Path, checkpoints: Checkpoints) -> None:
    check_workdir(config, workdir)
    checkpoints.check_durable(config)


def _check_shared(workdir: Path, group: Group) -> None:
    """Make sure that all processes see the same working folder."""
    if group.count == 1:
        return
    path = workdir / ".shared"

    def write() -> str:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(token := uuid.uuid4().hex)
        return token

    token = group.agree("the working folder", write)
    deadline = time.monotonic() + SHARED_WITHIN
    while not (seen := path.exists() and path.read_text() == token) and time.monotonic() < deadline:
        time.sleep(0.1)
    blind = [index for index, sees in enumerate(group.gather("the working folder", seen)) if not sees]
    if group.is_first:
        path.unlink()
    if blind:
        raise ConfigError(
            f"{workdir} of process 0 is not what {', '.join(map(group.called, blind))} sees; give a --workdir on a "
            "file system that all hosts share (NFS, Filestore, a mounted bucket)"
        )


def _finished(workdir: Path, config: ConfigDict, step: int) -> dict[str, Any] | None:
    """Return the report of a run that has nothing left to do."""
    if step < config.steps:
        return None
    if step > config.steps:
        raise ConfigError(
            f"{workdir} is at step {step} already, beyond steps={config.steps}; raise --config.steps to go on"
        )
    path = workdir / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    return report if report.get("steps") == config.steps else None


def _first_state(
    experiment: Experiment, program: Program, restored: Restored | None, group: Group
) -> tuple[State, int, dict[str, Any]]:
    """Take up the checkpoint, or begin from the given weights or at random."""
    if restored is not None:
        _say(f"going on from step {restored.step}", group)
        return restored.state, restored.step, restored.data
    replace = None
    if experiment.init is not None:
        initial = experiment.init()
        replace = initial.params
        _say(f"loaded {len(initial.loaded)} parameters: {', '.join(initial.loaded)}", group)
        _say(f"left {len(initial.fresh)} fresh: {', '.join(initial.fresh) or 'none'}", group)
    return program.init(replace), 0, {"position": 0, "substituted": {}, "skipped": [], "seconds": {}}


def _skipped(before: list[dict[str, int]], bad: list[dict[str, int]], start: int) -> list[dict[str, int]]:
    """Batches to leave out, from the checkpoint and since."""
    skipped = [*before, *(entry for entry in bad if entry not in before)]
    since = [entry for entry in skipped if entry["step"] > start]
    if len(since) > MOST_SKIPS:
        raise TerraJaxError(
            f"step {since[-1]['step']} is bad whatever the batch: {len(since)} were left out since step {start}; lower "
            "--config.optimizer.learning_rate"
        )
    return skipped


@contextmanager
def _one_line_errors(workdir: Path, group: Group) -> Iterator[None]:
    """Say what a full disk, or a process that is gone, looks like from inside."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
            raise
        raise TerraJaxError(
            f"{error.filename or workdir} cannot be written ({error.strerror}); see to it, then run the same command "
            "again to go on"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if group.count == 1:
            raise
        with suppress(jax.errors.JaxRuntimeError):  # gone too
            group.check()
        reason = str(error).splitlines()[0]
        raise MissingProcessError(
            f"a computation of all processes failed ({reason}): has one of them ended? Run the same command on all "
            "hosts again to go on"
        ) from error
