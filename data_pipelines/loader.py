"""From samples to batches: sharded by process, shuffled, endless, and resumable at one integer.

The stream is a pure function of (source, recipe, indices, seed): its element at a position does not depend on the
batch size, the number of processes or threads, or what was read before. Therefore the position alone restores it.
"""

import contextlib
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

import grain
import grain.experimental
import grain.sharding
import numpy as np
from absl import flags

from data_pipelines.errors import DataError
from data_pipelines.mixture import Mixture
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.sample import Sample
from data_pipelines.sources import Source

_STATE_KEY = "global_next_index"  # of Grain's elastic iterator
_SUBSTITUTES = 16  # how many other samples stand in for an unreadable one before the data counts as broken
_ORDER_STREAM, _SUBSTITUTE_STREAM = 0x04DE4, 0x5AB5  # keep these draws apart from each other and from a recipe's
_EPOCHS_KEPT = 4  # permutations of a corpus in memory: threads that read ahead may be in the next epoch already
_BUFFER_BYTES = 2 << 30  # of batches that wait for the device


class Recipe(Protocol):
    """What one example of a batch is."""

    @property
    def batch_spec(self) -> Mapping[str, ArraySpec]:
        """Names, shapes, dtypes and units of an example."""

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        """Make an example; all randomness is a function of the position."""


class Loader:
    """Iterates this process's part of each global batch, endlessly.

    A sample that cannot be read is replaced by another, drawn from (seed, position), and named in `failures`.

    Args:
        source: where samples are read, by several threads at once (`sources.cached` keeps what fits into memory).
        recipe: makes an example of a sample and its position in the global stream.
        indices: (n,) positions of the samples to use; an epoch is one shuffled pass over them. Of a mixture, each
            corpus has epochs of its own.
        batch_size: global, over all processes.
        seed: of the order and of the substitutes.
        process_index, process_count: which of the equal contiguous parts of each global batch this process takes; the
            parts of all, in order, are the same batch whatever their number.
        start: position to begin at, as `position` gave it.
        strict: raise on an unreadable sample instead of replacing it.
        threads: that read and transform whole batches in parallel; 0 works in the caller's.

    Attributes:
        recipe, batch_size, threads: as given.

    Raises:
        DataError: if there are no samples, the batch does not divide, or (on iteration) nothing can be read.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        indices: np.ndarray | Mixture,
        *,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        start: int = 0,
        strict: bool = False,
        threads: int = 4,
    ):
        if not isinstance(indices, Mixture) and not len(indices):
            raise DataError(f"no samples of {source.name} to load; the split or the filters left none")
        if batch_size < 1 or batch_size % process_count:
            raise DataError(f"batch_size {batch_size} does not divide among {process_count} processes; change it")
        if not flags.FLAGS.is_parsed():  # Grain reads its flags outside absl's main too
            flags.FLAGS.mark_as_parsed()
        self.batch_size, self.recipe, self.threads = batch_size, recipe, threads
        self._stream: dict[str, Any] = {
            "source": source,
            "recipe": recipe,
            "indices": indices,
            "seed": seed,
            "strict": strict,
        }
        self._order = _Order(Mixture.of(indices), seed)
        self._reader = _Reader(source, self._order, strict)
        # The stream is a function of the position. Grain's own shuffle is not used: it costs milliseconds an element
        # where samples are few (it walks a 16-bit cipher until it falls on one of them).
        place = _Contiguous(int(start), batch_size, process_count)
        stream = grain.MapDataset.range(sys.maxsize).map(_Stream(place, self._reader, recipe))
        local = batch_size // process_count
        self._iterator = grain.experimental.ElasticIterator(
            stream,
            batch_size,
            grain.sharding.ShardOptions(process_index, process_count),
            read_options=grain.ReadOptions(threads, _buffered(recipe.batch_spec, local, threads)),
        )
        self._iterator.set_state({_STATE_KEY: int(start)})
        # Grain's threads must end before the interpreter does, also where nobody closes the loader.
        self._finalizer = weakref.finalize(self, self._iterator.close)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """This process's part of the next global batch: name -> (local batch, ...)."""
        return next(self._iterator)

    @property
    def position(self) -> int:
        """Examples of the global stream that were handed out by all processes together."""
        return int(self._iterator.get_state()[_STATE_KEY])

    def reopened(self, *, batch_size: int, threads: int, start: int = 0) -> "Loader":
        """The same stream for one process, in other portions: to measure it."""
        return Loader(**self._stream, batch_size=batch_size, threads=threads, start=start)

    def read(self, position: int) -> Sample:
        """The sample at a position of the stream, or its substitute; in the caller's thread.

        Raises:
            DataError: if the loader is strict, or no substitute can be read either.
        """
        return self._reader.read(int(position))

    @property
    def indices(self) -> np.ndarray:
        """Positions of all samples in the source, of a mixture corpus by corpus."""
        return np.concatenate(Mixture.of(self._stream["indices"]).parts)

    @property
    def failures(self) -> dict[str, str]:
        """Key of each unreadable sample met so far by this process -> why."""
        return dict(self._reader.failures)

    def keys(self, start: int, stop: int) -> list[str]:
        """Keys of the samples at these positions of the global stream (of an unreadable one: its own)."""
        keys = self._stream["source"].index.keys
        return [str(keys[self._order(position)]) for position in range(start, stop)]

    def close(self) -> None:
        """Stop reading ahead; iteration ends here."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def one_pass(
    source: Source,
    recipe: Callable[[Sample, int], dict[str, np.ndarray]],
    indices: np.ndarray,
    batch_size: int,
    threads: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Each sample once and in order, for evaluation; unreadable ones are left out.

    Args:
        source: where samples are read.
        recipe: makes an example of a sample and its position in the source.
        indices: positions of the samples.
        batch_size: most examples of a batch; the last one may have fewer.
        threads: that read at the same time.
    """

    def example(i: int) -> dict[str, np.ndarray] | None:
        with contextlib.suppress(DataError):
            return recipe(source[int(i)], int(i))
        return None

    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(indices), batch_size):
            examples = [e for e in pool.map(example, indices[start : start + batch_size]) if e is not None]
            if examples:
                yield {key: np.stack([e[key] for e in examples]) for key in examples[0]}


class _Order:
    """Which sample comes at a position: each epoch of a corpus is one permutation, drawn from (seed, epoch, corpus)."""

    def __init__(self, mixture: Mixture, seed: int):
        self._seed, self._mixture = seed, mixture
        self._lock = threading.Lock()
        self._epochs: list[dict[int, np.ndarray]] = [{} for _ in mixture.parts]

    def __call__(self, position: int) -> int:
        corpus, before = self._mixture.locate(position)
        indices, epochs = self._mixture.parts[corpus], self._epochs[corpus]
        epoch, offset = divmod(before, len(indices))
        with self._lock:
            if epoch not in epochs:
                while len(epochs) >= _EPOCHS_KEPT:
                    epochs.pop(next(iter(epochs)))
                rng = np.random.default_rng([self._seed, epoch, _ORDER_STREAM, corpus])
                epochs[epoch] = rng.permutation(indices)
            return int(epochs[epoch][offset])

    def substitutes(self, position: int) -> np.ndarray:
        """Other samples of the same corpus, drawn from (seed, position)."""
        rng = np.random.default_rng([self._seed, position, _SUBSTITUTE_STREAM])
        return rng.choice(self._mixture.parts[self._mixture.locate(position)[0]], _SUBSTITUTES)


class _Reader:
    """Reads samples, remembers the unreadable ones and finds substitutes for them."""

    def __init__(self, source: Source, order: _Order, strict: bool):
        self.failures: dict[str, str] = {}
        self._source, self._order, self._strict = source, order, strict

    def read(self, position: int) -> Sample:
        """The sample at a position of the stream, or the substitute for it.

        Raises:
            DataError: if the loader is strict, or no substitute can be read either.
        """
        try:
            return self._read(self._order(position))
        except DataError as error:
            if self._strict:
                raise
            reason = error
        for other in self._order.substitutes(position):
            with contextlib.suppress(DataError):
                return self._read(int(other))
        raise DataError(f"{reason} ({_SUBSTITUTES} substitutes in a row could not be read either)") from reason

    def _read(self, i: int) -> Sample:
        key = str(self._source.index.keys[i])
        if key in self.failures:
            raise DataError(self.failures[key])
        try:
            return self._source[i]
        except DataError as error:
            self.failures[key] = str(error)
            raise


class _Contiguous:
    """Where to read, so that Grain's parts, which take every n-th element, hold contiguous pieces of each batch.

    Then the global batch, as devices hold it, does not depend on the number of processes.
    """

    def __init__(self, start: int, batch_size: int, process_count: int):
        self._start, self._batch_size, self._count = start, batch_size, process_count

    def __call__(self, position: int) -> int:
        batch, place = divmod(position - self._start, self._batch_size)
        row, process = divmod(place, self._count)
        return self._start + batch * self._batch_size + process * (self._batch_size // self._count) + row


class _Stream:
    """Grain's mapped function: position -> example. It does not hold the loader, which ends when nobody else does."""

    def __init__(self, place: _Contiguous, reader: _Reader, recipe: Recipe):
        self._place, self._reader, self._recipe = place, reader, recipe

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        position = self._place(int(position))
        return self._recipe(self._reader.read(position), position)


def _buffered(spec: Mapping[str, ArraySpec], local_batch: int, threads: int) -> int:
    """Batches to read ahead: one for each thread and one spare, within the memory set aside for them."""
    if not threads:
        return 0
    size = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in spec.values()) * local_batch
    return max(2, min(threads + 1, _BUFFER_BYTES // max(size, 1)))
