"""Checkpoints of a run: asynchronous Orbax saves, sealed by checksums, restored onto any mesh.

Layout: `WORKDIR/checkpoints/STEP/{state,data,meta,checksums.json}`. Orbax commits a step's folder whole or not at all;
what it does not notice is a flipped bit inside a large array, hence the checksums.
"""

import json
import os
import threading
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from terra_jax.errors import CheckpointError

SEAL = "checksums.json"
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
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 2):
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._keep = keep
        self._orbax: ocp.training.Checkpointer | None = None
        self._sealing: threading.Thread | None = None
        self._error: Exception | None = None

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
                if jax.process_index() == 0:
                    _seal(self.directory / str(step))
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
        """Wait and release everything.

        Raises:
            CheckpointError: the last save failed.
        """
        try:
            self.wait()
        finally:
            if self._orbax is not None:
                self._orbax.close()
                self._orbax = None

    def restore(self, abstract_state: Mapping[str, Any]) -> Restored | None:
        """Load the latest whole checkpoint onto the mesh of `abstract_state`; None if there is no checkpoint yet.

        A damaged one is named in a warning, put aside as `damaged-STEP`, and the next older one is taken.

        Args:
            abstract_state: ShapeDtypeStructs with shardings (`Program.abstract_state`).

        Raises:
            CheckpointError: there are checkpoints but none is whole, or the state does not fit.
        """
        steps = sorted(_steps(self.directory), reverse=True)
        for step in steps:
            folder = self.directory / str(step)
            fault = _fault(folder)
            if fault is None:
                try:
                    items = {"state": dict(abstract_state)}
                    with _context():
                        state = ocp.load_checkpointables(folder, items)["state"]
                    return Restored(step, state, _read_json(folder, "data"), _read_json(folder, "meta"))
                except Exception as error:
                    fault = _cause(error)
                    if (folder / SEAL).exists():  # the files are as written: it is the state that is another
                        raise CheckpointError(
                            f"checkpoint {folder} does not fit this run: {fault}; give another --workdir"
                        ) from error
            warnings.warn(f"checkpoint {folder} is damaged ({fault}); trying the one before it", stacklevel=2)
            self._put_aside(folder)
        if steps:
            raise CheckpointError(
                f"none of the checkpoints in {self.directory} is whole (they are kept as damaged-*); "
                "restore the folder from a backup, or start again with another --workdir"
            )
        return None

    def _open(self) -> ocp.training.Checkpointer:
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

    def _put_aside(self, folder: Path) -> None:
        if jax.process_index() == 0:
            target = folder.with_name(f"damaged-{folder.name}")
            for number in range(1, 1000):
                if not target.exists():
                    break
                target = folder.with_name(f"damaged-{folder.name}-{number}")
            os.replace(folder, target)

    def _failed(self, step: int, error: BaseException) -> CheckpointError:
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
        if fault := _fault(path):
            raise CheckpointError(f"checkpoint {path} is damaged ({fault}); give another step's folder")
        return path
    directory = path if path.name == "checkpoints" else path / "checkpoints"
    steps = sorted(_steps(directory), reverse=True)
    if not steps:
        raise CheckpointError(f"{path} holds no checkpoint; give a --workdir of `terra-jax train` or one of its steps")
    for step in steps:
        fault = _fault(directory / str(step))
        if fault is None:
            return directory / str(step)
        warnings.warn(f"checkpoint {directory / str(step)} is damaged ({fault}); trying the one before", stacklevel=2)
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


def _checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file of a step, by relative path."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(SEAL):
            sums[path.relative_to(folder).as_posix()] = [path.stat().st_size, _crc(path)]
    return sums


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _seal(folder: Path) -> None:
    aside = folder / f"{SEAL}.tmp"
    aside.write_text(json.dumps(_checksums(folder)))
    os.replace(aside, folder / SEAL)


def _fault(folder: Path) -> str | None:
    """What is wrong with a step's files, None if they are as they were written.

    A process killed between Orbax's commit and the seal leaves a step without checksums; it is taken on trust.
    """
    if not (folder / "commit_success.txt").exists():
        return "it was never finished"
    if not (folder / SEAL).exists():
        return None
    try:
        sealed = json.loads((folder / SEAL).read_text())
    except ValueError:
        return f"{SEAL} is unreadable"
    for name, (size, crc) in sealed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _crc(path) != crc:
            return f"{name} has another checksum"
    return None


def _cause(error: BaseException) -> str:
    """First line of what really went wrong; Orbax hides it behind the handlers it tried."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
