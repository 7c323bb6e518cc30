"""How every side of a benchmark is timed: the same loop and the same reading of memory in each fresh process."""

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any


def timed(run: Callable[[], Any], repeats: int, *, untimed: int = 1) -> dict[str, Any]:
    """Seconds of every repeat, their median, those of the first call of all, and the process's peak memory so far.

    Args:
        run: does the work and waits for its end.
        repeats: timed calls.
        untimed: calls before them, at least one.
    """
    first, *_ = [_seconds(run) for _ in range(untimed)]
    times = [_seconds(run) for _ in range(repeats)]
    return {
        "seconds": statistics.median(times),
        "times": times,
        "first_call_seconds": first,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
