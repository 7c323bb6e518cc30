"""Long work: done ahead by threads, with a word on how far it has come, and an account of what cannot be read."""

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from data_pipelines.errors import DataError

T = TypeVar("T")

BROKEN = 16
"""Unreadable samples in a row after which the data counts as out of reach, not as a few bad files."""


class Progress:
    """Samples done: a bar on a terminal, else a line every half minute.

    Args:
        total: samples to do in all.
        done: of them before this run.
        say: takes lines.
    """

    EVERY = 30.0

    def __init__(self, total: int, done: int, say: Callable[[str], Any]):
        self._total, self._done, self._before, self._say = total, done, done, say
        self._began = self._last = time.monotonic()
        self._bar = tqdm(total=total, initial=done, unit="sample", file=sys.stderr, dynamic_ncols=True, disable=None)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Count finished samples."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._last >= self.EVERY:
            self._last = now
            speed = (self._done - self._before) / (now - self._began)
            left = tqdm.format_interval((self._total - self._done) / max(speed, 1e-9))
            self._say(f"{self._done}/{self._total} samples  {speed:.2f} samples/s  left {left}")


def run_ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable, count: int) -> Iterator[Future]:
    """`function` of each item, in order; at most `count` results wait to be taken."""
    items = iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(items, count))
    try:
        while waiting:
            yield waiting.popleft()
            waiting.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        for future in waiting:
            future.cancel()


class SoundReader(Generic[T]):
    """Prepares samples in order, ahead of time by threads, and keeps account of those that cannot be read.

    Args:
        prepare: position -> what is wanted of a sample; raises DataError where it cannot be read.
        keys: of all samples, by position.
        strict: raise on a sample that cannot be read instead of leaving it out.
        broken: so many of them in a row are an error; 0: none are.

    Attributes:
        kept: positions of the samples handed out.
        left_out: key -> reason of those that were not.
    """

    def __init__(self, prepare: Callable[[int], T], keys: np.ndarray, strict: bool = False, broken: int = BROKEN):
        self.kept: list[int] = []
        self.left_out: dict[str, str] = {}
        self._prepare, self._keys, self._strict, self._broken = prepare, keys, strict, broken

    def read(self, positions: Sequence[int], pool: ThreadPoolExecutor, ahead: int) -> Generator[T, None, None]:
        """What `prepare` makes of the readable samples, up to `ahead` of them before they are asked for.

        Raises:
            DataError: see `strict` and `broken`.
        """
        in_a_row = 0
        for i, future in zip(positions, run_ahead(pool, self._prepare, positions, ahead), strict=True):
            try:
                prepared = future.result()
            except DataError as error:
                in_a_row += 1
                if self._strict:
                    raise
                if in_a_row == self._broken:
                    raise DataError(f"{error} ({in_a_row} samples in a row could not be read)") from error
                self.left_out[str(self._keys[i])] = str(error)
                continue
            in_a_row = 0
            self.kept.append(i)
            yield prepared
