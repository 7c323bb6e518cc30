"""A thread that notices what the main one cannot: that it hangs, or that another process is gone."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from terra_jax.parallel.distributed import POLL, Group

HUNG = 3
"""Exit status of a run that ended itself because it hung: the same command goes on."""


class Watchdog:
    """Names a step that takes too long and writes all threads' stacks; after as long again it ends the process.

    What hangs on a pod never comes back (a lost host inside a collective); ended, the launcher can start it again from
    the last checkpoint.

    Args:
        group: the processes of the run; when one ends with an error, this one ends too.
        workdir: takes `hang-PROCESS.txt`.
        seconds: that a step, or the wait for a batch, may take; 0 for ever.
    """

    def __init__(self, group: Group, workdir: Path, seconds: float):
        self._group, self._seconds = group, seconds
        self._path = workdir / f"hang-{group.index}.txt"
        self._doing, self._waited, self._told = "", 0.0, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def expect(self, doing: str) -> None:
        """Begin to wait for something, named as a message would; "" for what may take any time."""
        self._doing, self._waited, self._told = doing, 0.0, False

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(POLL):
            # a machine that slept, or a stopped process, has not hung: one tick counts for little, however long
            now = time.monotonic()
            self._waited += min(now - before, 2 * POLL)
            before = now
            self._look_at_others()
            if self._seconds > 0 and self._doing:
                self._look_at_time()

    def _look_at_time(self) -> None:
        if self._waited > self._seconds and not self._told:
            self._told = True
            with self._path.open("w") as file:
                file.write(f"{self._doing}: no end after {self._waited:.0f} s\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            print(
                f"warning: {self._doing} takes more than {self._seconds:g} s in process {self._group.index}; "
                f"the stacks of all threads are in {self._path}",
                file=sys.stderr,
                flush=True,
            )
        if self._waited > 2 * self._seconds:
            print(
                f"error: {self._doing} hangs for {self._waited:.0f} s; this process ends, run the same command again "
                "to go on (--config.guard.hang_seconds says how long to wait)",
                file=sys.stderr,
                flush=True,
            )
            os._exit(HUNG)

    def _look_at_others(self) -> None:
        try:
            failure = self._group.failure()
        except Exception:  # the coordinator is gone: JAX itself ends the process
            return
        if failure:
            status, reason = failure
            print(f"error: {reason}; this process ends too", file=sys.stderr, flush=True)
            os._exit(status)
