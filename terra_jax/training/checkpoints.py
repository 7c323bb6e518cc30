"""Checkpoints of a run: asynchronous Orbax saves, sealed by checksums, restored onto any mesh.

Layout: `WORKDIR/checkpoints/STEP/{state,data,meta,checksums.json}`. Orbax commits a step's folder whole or not at all;
what it does not notice is a flipped bit inside a large array, hence the checksums.

All processes of a run write their parts into one folder, which all of them see. The first one seals, picks what is
restored, and makes the durable copies.
"""

import json
import logging
import os
import shutil
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from terra_jax.errors import CheckpointError
from terra_jax.parallel.distributed import Group
from terra_jax.training.config import same_run
from terra_jax.training.durable import Durable
from terra_jax.training.seal import SEAL, fault, seal

_COPIES = {"student": ("params",), "teacher": ("extra", "teacher"), "ema": ("extra", "ema")}


class Restored(NamedTuple):
    """What a checkpoint holds."""

    step: int
    state: dict[str, Any]
    data: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one working folder; to be used from the main thread of every process.

    Args:
        workdir: the run's folder; `checkpoints` is made inside it at the first save.
        keep: number of latest checkpoints that are kept.
        durable: path or URL of copies that outlive the machine; "" for none.
        group: the processes of the run; made here if not given.

    Raises:
        ConfigError: there is no such kind of storage.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2, durable: str = "", group: Group | None = None):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._keep = keep
        self._group = group or Group()
        self._durable = Durable(durable, self.directory.parent, keep) if durable and self._group.is_first else None
        self._orbax: ocp.training.Checkpointer | None = None
        self._sealing: threading.Thread | None = None
        self._error: Exception | None = None
        self._failed_before = False

    def save(self, step: int, state: Mapping[str, Any], data: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Start saving; returns as soon as the state is copied, so that it may be donated.

        Args:
            step: number of updates done.
            state: the train state.
            data: JSON values, the data position among them.
            meta: JSON values that say what the run is.

        Raises:
            CheckpointError: the previous save failed, or this one cannot be started.
        """
        self.wait()
        try:
            if self._orbax is None:
                self._orbax = self._open()
            items = {"state": dict(state), "data": dict(data), "meta": dict(meta)}
            response = self._orbax.save_checkpointables_async(step, items, force=True)
        except Exception as error:
            raise self._failed(step, error) from error

        def finish() -> None:
            try:
                response.result()
                if self._group.is_first:
                    seal(self.directory / str(step))
                    if self._durable is not None:
                        self._durable.copy(self.directory / str(step))
            except Exception as error:
                self._error = self._failed(step, error)

        self._sealing = threading.Thread(target=finish, name=f"checkpoint-{step}")
        self._sealing.start()

    def wait(self) -> None:
        """Block until the last save is on disk.

        Raises:
            CheckpointError: it failed.
        """
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait, for durable copies too, and release everything.

        Raises:
            CheckpointError: the last save, or its copy, failed.
        """
        try:
            self.wait()
        finally:
            if self._orbax is not None:
                orbax, self._orbax = self._orbax, None
                # after a failed save, which `wait` has raised, Orbax raises the same again
                with suppress(Exception) if self._failed_before else nullcontext():
                    orbax.close()
            if self._failed_before and self._group.is_first:
                self._remove_halves()
        if self._durable is not None:
            self._durable.close()

    def check_durable(self, config: Any) -> None:
        """Make sure that the durable copies, if there are any, are this run's.

        Raises:
            ConfigError: they are another's.
        """
        held = self._durable.config() if self._durable is not None else None
        if held is not None:
            assert self._durable is not None
            same_run(held, config, f"checkpoint.durable={self._durable.url}", "--config.checkpoint.durable")

    def restore(self, abstract_state: Mapping[str, Any]) -> Restored | None:
        """Load the latest whole checkpoint onto the mesh of `abstract_state`; None if there is no checkpoint yet.

        A damaged one is named in a warning, put aside as `damaged-STEP`, and the next older one is taken. A durable
        copy that is later than all that is whole here is fetched.

        Args:
            abstract_state: ShapeDtypeStructs with shardings (`Program.abstract_state`).

        Raises:
            CheckpointError: there are checkpoints but none is whole, or the state does not fit.
        """
        while (step := self._group.agree("the checkpoint", self._latest)) is not None:
            folder = self.directory / str(step)
            state: Any = None
            problem = ""
            try:
                with _context():
                    state = ocp.load_checkpointables(folder, {"state": dict(abstract_state)})["state"]
            except Exception as error:
                problem = _cause(error)
            problem = next(filter(None, self._group.gather("the checkpoint", problem)), "")
            if not problem:
                return Restored(step, state, _read_json(folder, "data"), _read_json(folder, "meta"))
            if (folder / SEAL).exists():  # the files are as written: it is the state that is another
                raise CheckpointError(f"checkpoint {folder} does not fit this run: {problem}; give another --workdir")
            self._group.barrier("the checkpoint")  # all have looked for the seal
            if self._group.is_first:
                self._put_aside(folder, problem)
        return None

    def _remove_halves(self) -> None:
        """Remove what a full disk cut short; threads of Orbax may write on for a moment after their error."""
        for _ in range(4):
            for half in self.directory.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(half, ignore_errors=True)
            time.sleep(0.5)

    def _latest(self) -> int | None:
        """Latest step whose files are whole; what is damaged is put aside.

        Raises:
            CheckpointError: there are some but none is whole.
        """
        found = sorted(_steps(self.directory), reverse=True)
        whole = None
        for step in found:
            problem = fault(self.directory / str(step))
            if problem is None:
                whole = step
                break
            self._put_aside(self.directory / str(step), problem)
        later = self._durable.steps() if self._durable is not None else []
        for step in (step for step in later if whole is None or step > whole):
            assert self._durable is not None
            self.directory.mkdir(parents=True, exist_ok=True)
            folder = self._durable.fetch(step, self.directory)
            problem = fault(folder)
            if problem is None:
                print(f"fetched step {step} from {self._durable.url}", flush=True)
                return step
            self._put_aside(folder, problem)
        damaged = any(self.directory.glob("damaged-*"))
        if whole is None and (found or later or damaged):
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} is whole (they are kept as damaged-*); "
                "restore the folder from a backup, or start again with another --workdir"
            )
        return whole

    def _open(self) -> ocp.training.Checkpointer:
        logging.getLogger("absl").addFilter(_is_news)
        registry = ocp.handlers.local_registry()
        for name in ("data", "meta"):  # plain readable JSON, not one array per number
            registry.add(ocp.handlers.JsonHandler, checkpointable_name=name)
        context = ocp.Context()
        context.checkpointables.registry = registry
        policies = ocp.training
        return ocp.training.Checkpointer(
            self.directory,
            context=context,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(self._keep),
            cleanup_tmp_directories=True,
        )

    def _put_aside(self, folder: Path, problem: str) -> None:
        warnings.warn(f"checkpoint {folder} is damaged ({problem}); trying the one before it", stacklevel=2)
        target = folder.with_name(f"damaged-{folder.name}")
        for number in range(1, 1000):
            if not target.exists():
                break
            target = folder.with_name(f"damaged-{folder.name}-{number}")
        os.replace(folder, target)

    def _failed(self, step: int, error: BaseException) -> CheckpointError:
        self._failed_before = True
        return CheckpointError(
            f"checkpoint {self.directory / str(step)} could not be written: {_cause(error)}; "
            "check space and permissions, then run the same command again"
        )


def find_step(path: str | os.PathLike) -> Path:
    """Return the folder of a whole checkpoint: `path` itself, or the latest one of a working folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = Path(path).absolute()
    if (path / "state").is_dir():
        if problem := fault(path):
            raise CheckpointError(f"checkpoint {path} is damaged ({problem}); give another step's folder")
        return path
    directory = path if path.name == "checkpoints" else path / "checkpoints"
    steps = sorted(_steps(directory), reverse=True)
    if not steps:
        raise CheckpointError(f"{path} holds no checkpoint; give a --workdir of `terra-jax train` or one of its steps")
    for step in steps:
        problem = fault(directory / str(step))
        if problem is None:
            return directory / str(step)
        warnings.warn(f"checkpoint {directory / str(step)} is damaged ({problem}); trying the one before", stacklevel=2)
    raise CheckpointError(f"none of the checkpoints in {directory} is whole; restore the folder from a backup")


def load_meta(path: str | os.PathLike) -> dict[str, Any]:
    """What the run at `path` (a working folder or a step's folder) is: model, config, versions, step."""
    return _read_json(find_step(path), "meta")


def load_params(path: str | os.PathLike, which: str = "student", part: str = "") -> dict[str, Any]:
    """Read parameters of a run onto the host, with no need of its mesh.

    Args:
        path: a working folder (its latest whole checkpoint) or one step's folder.
        which: "student" (the trained parameters), "teacher" or "ema".
        part: attribute of the module, or a deeper path with slashes; "" for all.

    Returns:
        Nested dict of NumPy arrays below `part`.

    Raises:
        CheckpointError: no such checkpoint, copy or part.
    """
    folder = find_step(path)
    if which not in _COPIES:
        raise CheckpointError(f"weights {which!r} are unknown; choose one of {', '.join(_COPIES)}")
    keys = (*_COPIES[which], *filter(None, part.split("/")))
    with _context(partial=True):
        tree = ocp.checkpointables_metadata(folder).metadata["state"]
        for depth, key in enumerate(keys):
            if not isinstance(tree, Mapping) or key not in tree:
                known = ", ".join(sorted(tree)) if isinstance(tree, Mapping) else "an array"
                where = "/".join(keys[:depth]) or "state"
                raise CheckpointError(f"{folder} has no {'/'.join(keys)}; {where} holds {known}")
            tree = tree[key]
        wanted: Any = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree)
        for key in reversed(keys):
            wanted = {key: wanted}
        try:
            loaded = ocp.load_checkpointables(folder, {"state": wanted})["state"]
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be read: {_cause(error)}") from error
    for key in keys:
        loaded = loaded[key]
    return loaded


def _context(partial: bool = False) -> ocp.Context:
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    return context


def _steps(directory: Path) -> list[int]:
    """Steps whose folders Orbax committed."""
    if not directory.is_dir():
        return []
    return [int(entry.name) for entry in directory.iterdir() if entry.name.isdigit() and entry.is_dir()]


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "data.json").read_text())


def _is_news(record: logging.LogRecord) -> bool:
    """Keep Orbax from printing the stacks of its threads: it also raises their errors."""
    return not (record.exc_info and "orbax" in record.pathname)


def _cause(error: BaseException) -> str:
    """First line of what really went wrong; Orbax hides it behind the handlers it tried."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
