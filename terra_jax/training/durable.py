"""Copies of checkpoints on storage that outlives the machine, made in the background.

Layout: `DURABLE/STEP/...` as in the working folder, beside `config.json` and the tables. Object stores cannot rename; a
step counts as whole once its seal (`checksums.json`), which is written last, is there and names files that are there.
"""

import json
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from terra_jax.errors import CheckpointError, ConfigError
from terra_jax.training.seal import SEAL

TABLES = ("config.json", "metrics.csv", "evaluations.csv")
ATTEMPTS = 3
PAUSE = 2.0


class Durable:
    """The copies of one run; to be used by its first process.

    Args:
        url: a path or any fsspec URL (gs://bucket/run; needs the file system's package, as gcsfs).
        workdir: of the run.
        keep: number of latest steps that are kept.

    Raises:
        ConfigError: no such kind of storage, or its package is missing.
    """

    def __init__(self, url: str, workdir: Path, keep: int):
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"checkpoint.durable={url!r} cannot be used: {str(error).splitlines()[0]}") from error
        self.url, self._workdir, self._keep = url, workdir, keep
        self._queue: list[Path] = []
        self._lock = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def copy(self, folder: Path) -> None:
        """Copy a sealed step soon; one that waits already gives way to it."""
        with self._lock:
            self._queue = [folder]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="durable")
                self._thread.start()

    def close(self) -> None:
        """Wait until all is copied.

        Raises:
            CheckpointError: the last step could not be copied.
        """
        thread = self._thread
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise CheckpointError(
                f"the last checkpoint could not be copied to {self.url}: {_reason(error)}; it is in {self._workdir}, "
                "run the same command again once the place can be written"
            ) from error

    def config(self) -> dict[str, Any] | None:
        """Config of the run whose copies these are, None if there are none.

        Raises:
            ConfigError: the place cannot be read.
        """
        path = f"{self._root}/config.json"
        try:
            return json.loads(self._fs.cat_file(path)) if self._fs.exists(path) else None
        except Exception as error:  # clients of object stores have exceptions of their own
            raise ConfigError(f"checkpoint.durable={self.url!r} cannot be read: {_reason(error)}") from error

    def steps(self) -> list[int]:
        """Steps that are whole, latest first."""
        if not self._fs.isdir(self._root):
            return []
        names = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self._root, detail=False)]
        found = sorted((int(name) for name in names if name.isdigit()), reverse=True)
        return [step for step in found if self._fs.exists(f"{self._root}/{step}/{SEAL}")]

    def fetch(self, step: int, checkpoints: Path) -> Path:
        """Bring a step back, with the run's tables where the working folder has none.

        Raises:
            CheckpointError: it cannot be read.
        """
        aside = checkpoints / f"fetched-{step}.tmp"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            for name in json.loads(self._fs.cat_file(f"{self._root}/{step}/{SEAL}")):
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(f"{self._root}/{step}/{name}", str(aside / name))
            self._fs.get_file(f"{self._root}/{step}/{SEAL}", str(aside / SEAL))
            for name in TABLES:
                if not (self._workdir / name).exists() and self._fs.exists(f"{self._root}/{name}"):
                    self._fs.get_file(f"{self._root}/{name}", str(self._workdir / f"{name}.tmp"))
                    os.replace(self._workdir / f"{name}.tmp", self._workdir / name)
            os.replace(aside, checkpoints / str(step))
        except Exception as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise CheckpointError(f"checkpoint {self.url}/{step} cannot be fetched: {_reason(error)}") from error
        return checkpoints / str(step)

    def _work(self) -> None:
        """Copy what waits; end when nothing does."""
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                folder = self._queue.pop()
            try:
                _patiently(partial(self._upload, folder))
                self._error = None
            except FileNotFoundError as error:
                with self._lock:  # given up in the working folder meanwhile: a newer one comes
                    self._error = None if self._queue or not folder.exists() else error
            except Exception as error:
                self._error = error
                warnings.warn(f"checkpoint {folder.name} is not copied to {self.url}: {_reason(error)}", stacklevel=2)

    def _upload(self, folder: Path) -> None:
        target = f"{self._root}/{folder.name}"
        sealed = json.loads((folder / SEAL).read_text())
        self._fs.makedirs(target, exist_ok=True)
        for name in TABLES:
            if (self._workdir / name).exists():
                self._put(self._workdir / name, f"{self._root}/{name}")
        for name in sealed:
            self._fs.makedirs(f"{target}/{name}".rsplit("/", 1)[0], exist_ok=True)
            self._put(folder / name, f"{target}/{name}")
        self._put(folder / SEAL, f"{target}/{SEAL}")
        for old in self.steps()[self._keep :]:
            self._fs.rm_file(f"{self._root}/{old}/{SEAL}")  # first, so that half of a step never looks whole
            self._fs.rm(f"{self._root}/{old}", recursive=True)

    def _put(self, source: Path, target: str) -> None:
        """Copy a file; one on a file system with renames appears whole."""
        aside = f"{target}.tmp" if "file" in self._fs.protocol else target
        self._fs.put_file(str(source), aside)
        if aside != target:
            os.replace(aside, target)


def _patiently(action: Callable[[], None]) -> None:
    """Try a few times: networks have their moments."""
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE * 2**attempt)


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__
