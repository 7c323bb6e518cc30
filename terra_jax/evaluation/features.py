"""Run a jitted function over batches and collect what it returns on the host."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from terra_jax.parallel.distributed import fetch, place_everywhere

Batch = Mapping[str, np.ndarray]


def extract_features(
    function: Callable[[Any], Any],
    batches: Iterable[Batch],
    batch_size: int,
    *,
    place: Callable[[Any], Any] = place_everywhere,
) -> Any:
    """Apply `function` to every batch and join the results along the first axis.

    A short batch (the last one, as a rule) is filled up by repeating its last sample and the surplus is cut off the
    result, so that the function is compiled for one shape only. The next batch is read while the device works.

    Args:
        function: batch -> array, or pytree of arrays, with the batch as first axis. Pass it jitted, its parameters
            bound, e.g. `functools.partial(jax.jit(apply), params)`.
        batches: dicts of arrays with equal first axes of at most `batch_size` samples.
        batch_size: number of samples that the function sees.
        place: puts a full batch on the devices. Every process of a run is to pass the same batches; every one gets
            whole results back.

    Returns:
        NumPy array or pytree of them, one row a sample, in order.

    Raises:
        ValueError: if there is no batch, or one is empty, uneven or longer than `batch_size`.
    """
    collected: list[Any] = []
    pending: tuple[Any, int] | None = None
    for batch in batches:
        count = _count(batch, batch_size)
        result = function(place(jax.tree.map(lambda array: _padded(array, batch_size), dict(batch))))
        if pending is not None:
            collected.append(_fetched(*pending))
        pending = (result, count)
    if pending is None:
        raise ValueError("there is no batch to extract features from")
    collected.append(_fetched(*pending))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *collected)


def _count(batch: Batch, batch_size: int) -> int:
    counts = {key: len(array) for key, array in batch.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"arrays of a batch must have equal first axes, got {counts}")
    count = next(iter(counts.values()))
    if not 0 < count <= batch_size:
        raise ValueError(f"a batch has {count} samples, want 1 to {batch_size}")
    return count


def _padded(array: np.ndarray, batch_size: int) -> np.ndarray:
    missing = batch_size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else np.asarray(array)


def _fetched(result: Any, count: int) -> Any:
    return jax.tree.map(lambda array: array[:count], fetch(result))
