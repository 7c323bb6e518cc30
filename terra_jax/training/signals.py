"""A stop that is asked for from outside: preemption, a job's time limit, Ctrl-C."""

import signal
import threading
from types import FrameType
from typing import Any

import jax


class StopSignals:
    """SIGTERM or SIGINT asks for a stop at the next step; a second SIGINT aborts.

    With several processes a signal to any one stops all at the same step: JAX's own preemption notice, which takes
    SIGTERM, lets them agree on it.
    """

    def __init__(self) -> None:
        self.name = ""
        self._old: dict[int, Any] = {}
        self._several = jax.process_count() > 1
        self._asked = 0

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if self._several:
            signal.raise_signal(signal.SIGTERM)

    def requested(self) -> bool:
        """Whether to stop before the next step; all processes get the same answer."""
        if not self._several:
            return bool(self.name)
        from jax.experimental import multihost_utils

        self._asked += 1  # the step itself would not do: it goes back when a batch is skipped
        if not multihost_utils.reached_preemption_sync_point(self._asked):
            return False
        self.name = self.name or "SIGTERM"
        return True
