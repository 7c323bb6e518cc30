"""The training loop: one run from its config to its report, resumable at any moment."""

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from terra_jax.errors import ConfigError
from terra_jax.parallel.mesh import make_mesh
from terra_jax.training.build import Program, State, build
from terra_jax.training.checkpoints import Checkpoints, Restored
from terra_jax.training.config import check_workdir, remember
from terra_jax.training.experiment import Experiment
from terra_jax.training.optimiser import AdamW
from terra_jax.training.recorder import Recorder
from terra_jax.training.signals import StopSignals


def train(experiment: Experiment, config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Train, or go on with what `workdir` holds; the same call does both.

    Every step's metrics go to `metrics.csv` and TensorBoard, evaluations to `evaluations.csv`, the state to
    `checkpoints`, and at the end the summary to `report.json`. SIGTERM and SIGINT save and return early.

    Args:
        experiment: objective, loader, evaluators.
        config: sections as in `configs/`; read here: model, seed, steps, batch_size, accumulation, mesh, optimizer,
            checkpoint (every, keep) and evaluation (every).
        workdir: where everything is written.

    Returns:
        The report; its "status" is "finished" or "interrupted".

    Raises:
        ConfigError: contradictory options, or a workdir of another run.
        CheckpointError: no checkpoint in workdir is whole, or one cannot be written.
        TerraJaxError: the loss is not finite.
    """
    workdir = Path(workdir)
    with StopSignals() as stop:
        # 1. The program: mesh, shapes and the definition of the step; nothing is allocated yet.
        mesh = make_mesh(**config.mesh)
        _check_batch_size(config, mesh)
        check_workdir(config, workdir)
        optimiser = AdamW.from_config(config.optimizer, config.steps)
        program = build(experiment.objective, optimiser, mesh, accumulation=config.accumulation, seed=config.seed)

        # 2. The state: the latest whole checkpoint, else converted weights, else random.
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        restored = checkpoints.restore(program.abstract_state)
        if (report := _finished(workdir, config, restored)) is not None:
            _say(f"{workdir} has finished its {config.steps} steps: see report.json, or raise --config.steps to go on")
            return report
        state, start, data = _first_state(experiment, program, restored)
        del restored  # the steps below give the state's memory away

        # 3. The data, from the position that was saved with the state.
        stream = experiment.loader(data["position"], jax.process_index(), jax.process_count())
        remember(config, workdir)

        # 4. The steps. Evaluations come before the save of their step, so that a saved step has all its figures.
        with Recorder(experiment, config, workdir, program, checkpoints, stream, start, data) as recorder:
            batches = iter(stream)
            if start == 0 and config.evaluation.every > 0:
                recorder.evaluate(0, state)
            for step in range(start + 1, config.steps + 1):
                if stop.requested(step):
                    return recorder.interrupted(step - 1, state, stop.name)
                batch = recorder.next_batch(batches)
                state, metrics = recorder.call(program.step, state, batch)
                recorder.log(step, metrics)
                if step == config.steps or _due(step, config.evaluation.every):
                    recorder.evaluate(step, state)
                if step == config.steps or _due(step, config.checkpoint.every):
                    recorder.save(step, state)
            checkpoints.wait()
            return recorder.finish(state)


def _say(message: str) -> None:
    if jax.process_index() == 0:
        print(message, flush=True)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _check_batch_size(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = shards * config.accumulation
    if config.batch_size < 1 or config.batch_size % unit:
        raise ConfigError(
            f"batch_size={config.batch_size} must be a multiple of mesh.data x mesh.fsdp x accumulation = "
            f"{shards} x {config.accumulation} = {unit}"
        )


def _finished(workdir: Path, config: ConfigDict, restored: Restored | None) -> dict[str, Any] | None:
    """Return the report of a run that has nothing left to do."""
    if restored is None or restored.step < config.steps:
        return None
    if restored.step > config.steps:
        raise ConfigError(
            f"{workdir} is at step {restored.step} already, beyond steps={config.steps}; raise --config.steps to go on"
        )
    path = workdir / "report.json"
    report = json.loads(path.read_text()) if path.exists() else {}
    return report if report.get("steps") == config.steps else None


def _first_state(
    experiment: Experiment, program: Program, restored: Restored | None
) -> tuple[State, int, dict[str, Any]]:
    """Take up the checkpoint, or begin from the given weights or at random."""
    if restored is not None:
        _say(f"going on from step {restored.step}")
        return restored.state, restored.step, restored.data
    replace = None
    if experiment.init is not None:
        initial = experiment.init()
        replace = initial.params
        _say(f"loaded {len(initial.loaded)} parameters: {', '.join(initial.loaded)}")
        _say(f"left {len(initial.fresh)} fresh: {', '.join(initial.fresh) or 'none'}")
    return program.init(replace), 0, {"position": 0, "substituted": {}, "seconds": 0.0}
