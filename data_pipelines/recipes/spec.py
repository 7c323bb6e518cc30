"""The contract between a recipe and an objective: names, shapes, dtypes and units of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_pipelines.errors import DataError


@dataclass(frozen=True)
class ArraySpec:
    """One array of a batch, without its leading batch dimensions.

    Attributes:
        shape: per example.
        dtype: NumPy's name of it.
        unit: what the numbers mean; "" for indices, masks and other plain numbers.
    """

    shape: tuple[int, ...]
    dtype: str
    unit: str = ""


def check_batch(batch: Mapping[str, Any], spec: Mapping[str, ArraySpec], leading: tuple[int, ...] = ()) -> None:
    """Assert that a batch is what its spec says.

    Args:
        batch: name -> array (NumPy's or JAX's: whatever has a shape and a dtype).
        spec: name -> per-example spec.
        leading: batch dimensions, for example (32,); () for a single example.

    Raises:
        DataError: naming the first key that is missing, unexpected, misshapen or of another dtype.
    """
    for name, expected in spec.items():
        if name not in batch:
            raise DataError(f"batch lacks {name!r}; it has {', '.join(sorted(batch)) or 'nothing'}")
        array, shape = batch[name], (*leading, *expected.shape)
        if tuple(array.shape) != shape:
            raise DataError(f"batch[{name!r}] has shape {tuple(array.shape)}, expected {shape}")
        if str(array.dtype) != expected.dtype:
            raise DataError(f"batch[{name!r}] is {array.dtype}, expected {expected.dtype}")
    extra = sorted(set(batch) - set(spec))
    if extra:
        raise DataError(f"batch has {', '.join(map(repr, extra))}, which its spec does not name")
