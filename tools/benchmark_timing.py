"""How every side of a benchmark is timed: the same loop and the same reading of memory in each fresh process."""

import gc
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Memory:
    """What the process holds when this is made, and later its peak above that."""

    def __init__(self) -> None:
        gc.collect()
        self.before = _status("VmRSS")

    def restart(self) -> None:
        """Forget the peak so far: what was needed to compile, or only once."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes above those held at first, at most since the restart."""
        return _status("VmHWM") - self.before


def timed(run: Callable[[], Any], repeats: int, *, untimed: int = 1, memory: Memory | None = None) -> dict[str, Any]:
    """Seconds of every repeat, their median, those of the first call of all, and the process's peak memory so far.

    Args:
        run: does the work and waits for its end.
        repeats: timed calls.
        untimed: calls before them, at least one.
        memory: made before the work's arrays; then their peak in the timed calls is told, too.
    """
    first, *_ = [_seconds(run) for _ in range(untimed)]
    if memory:
        memory.restart()
    times = [_seconds(run) for _ in range(repeats)]
    return {
        "seconds": statistics.median(times),
        "times": times,
        "first_call_seconds": first,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        **({"array_bytes": memory.peak()} if memory else {}),
    }


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _status(field: str) -> int:
    """A line of this process's status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field + ":")).split()[1])
