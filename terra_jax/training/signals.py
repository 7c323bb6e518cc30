"""A stop that is asked for from outside: preemption, a job's time limit, Ctrl-C."""

import signal
import threading
from types import FrameType
from typing import Any

import jax


class StopSignals:
    """SIGTERM or SIGINT asks for a stop at the next step; a second SIGINT aborts.

    With several processes JAX's own preemption notice is used, so that all stop at the same step.
    """

    def __init__(self) -> None:
        self.name = ""
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def requested(self, step: int) -> bool:
        """Whether to stop before this step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.name = "SIGTERM"
        return bool(self.name)
