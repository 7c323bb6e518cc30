"""Writing aside, then renaming: whoever looks at the target sees the old file, the new one, or none."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from terra_jax.errors import WeightsError


@contextmanager
def file_aside(target: Path) -> Iterator[Path]:
    """Yields a path beside `target` to write to; on success it becomes `target`, on any error it is removed."""
    aside = _beside(target)
    try:
        yield aside
        with open(aside, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(aside, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error}); choose another target") from error
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target`; on success it takes the place of `target`, on any error it is removed."""
    aside, former = _beside(target), _beside(target, "old")
    try:
        aside.mkdir()
        yield aside
        if target.exists():
            os.rename(target, former)
        os.rename(aside, target)
    except OSError as error:
        raise WeightsError(f"{target}: cannot be written ({error.strerror or error}); choose another target") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if target.exists():
            shutil.rmtree(former, ignore_errors=True)


def _beside(target: Path, suffix: str = "tmp") -> Path:
    """A hidden sibling of `target`, on the same file system, that no other process uses."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{target.parent}: cannot be created ({error.strerror or error})") from error
    return target.parent / f".{target.name}.{os.getpid()}.{suffix}"
