"""Samples as zarr stores, for those who work with xarray."""

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.sample import to_dataset
from data_pipelines.sources import Source

_FILE_NAME = re.compile(r"[\w.-]+")


def export_zarr(
    source: Source,
    path: str | Path,
    indices: Iterable[int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Write samples as zarr version 3 stores `<path>/<key>.zarr`, as `sample.to_dataset` lays them out.

    Each appears whole or not at all; those that are there already are passed over, so that an export that was broken
    off goes on. The source "xarray" reads the folder back exactly.

    Args:
        source: of the samples.
        path: folder, made if need be.
        indices: positions of the samples; None: all.
        progress: called with each key.

    Returns:
        Number of stores written.

    Raises:
        DataError: if zarr is not installed, the folder cannot be written, or a sample cannot be read or named.
    """
    try:
        import zarr  # noqa: F401 (what xarray writes with)
    except ImportError as error:
        raise DataError('an export to zarr needs another package: pip install "terra_jax[xarray]"') from error
    root, written = Path(path), 0
    for i in range(len(source)) if indices is None else indices:
        key = str(source.index.keys[i])
        if not _FILE_NAME.fullmatch(key) or key.startswith("."):
            raise DataError(f"key {key!r} is no name for a file; rename the sample")
        target, aside = root / f"{key}.zarr", root / f".{key}.{os.getpid()}.part"
        if target.exists():
            continue
        try:
            root.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zarr warns of text arrays, whose encoding is young
                to_dataset(source[int(i)]).to_zarr(aside, mode="w", zarr_format=3, consolidated=False)
            os.replace(aside, target)
        except OSError as error:
            raise DataError(
                f"{target} cannot be written ({error.strerror}); make room or choose another path"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        written += 1
        if progress is not None:
            progress(key)
    return written
