"""Long work: done ahead by threads, with a word on how far it has come."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from tqdm import tqdm


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
