"""Where a run's wall time goes, over all of its restarts."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from terra_jax.training.config import write_json

CATEGORIES = ("start", "compile", "step", "data wait", "checkpoint", "evaluation", "other", "lost")
"""`step` is the good part. `start` counts from the call of `train` to the first batch; `lost` is all that a killed run
did after the checkpoint that the next one went on from."""

FILE = "goodput.json"
NOTE_EVERY = 5.0
"""Seconds between two notes of the time spent so far, by which the next run knows what was lost."""


class Ledger:
    """Seconds by category; exactly one category is charged at any moment.

    Args:
        path: file that keeps the time spent between restarts; None keeps nothing (all processes but the first).
        seconds: by category, as the checkpoint that the run goes on from says; what `path` knows beyond is lost.
        since: when the run began, by `time.perf_counter`.
    """

    def __init__(self, path: Path | None, seconds: Mapping[str, float], since: float):
        self._path = path
        self._seconds = {name: float(seconds.get(name, 0.0)) for name in CATEGORIES}
        self._now, self._since, self._noted = "start", since, since
        self._seconds["lost"] += max(0.0, _spent(path) - sum(self._seconds.values()))

    def switch(self, category: str) -> None:
        """Charge what follows to another category."""
        now = time.perf_counter()
        self._seconds[self._now] += now - self._since
        self._now, self._since = category, now
        if now - self._noted > NOTE_EVERY:
            self.note()

    @contextmanager
    def during(self, category: str) -> Iterator[None]:
        """Charge a block to a category, then go back to the one before."""
        before = self._now
        self.switch(category)
        try:
            yield
        finally:
            self.switch(before)

    def note(self) -> None:
        """Write down how much time was spent so far."""
        self._noted = time.perf_counter()
        if self._path is not None:
            write_json(self._path, {"seconds": sum(self.seconds.values())})

    @property
    def seconds(self) -> dict[str, float]:
        """By category, up to now."""
        return {**self._seconds, self._now: self._seconds[self._now] + time.perf_counter() - self._since}


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each category's share of the wall time."""
    total = sum(seconds.values())
    return {name: value / total if total else 0.0 for name, value in seconds.items()}


def line(seconds: Mapping[str, float]) -> str:
    """Goodput and what took the rest, for people."""
    part = shares(seconds)
    rest = "  ".join(f"{name} {share:.1%}" for name, share in part.items() if name != "step" and share >= 0.0005)
    return f"goodput {part['step']:.1%} of {sum(seconds.values()):.0f} s; {rest}"


def _spent(path: Path | None) -> float:
    """What was noted last; nothing where a kill tore the note."""
    try:
        return float(json.loads(path.read_text())["seconds"]) if path is not None else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
