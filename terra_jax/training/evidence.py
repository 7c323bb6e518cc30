"""Bad steps: what counts as one, and what is kept of it."""

import json
import math
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terra_jax.errors import TerraJaxError
from terra_jax.training.config import write_json

FILE = "evidence.json"
HISTORY = 50
"""Steps before a bad one that are kept, and whose median says what is usual."""


class BadStep(TerraJaxError):
    """A step whose figures are not finite, or far from the usual.

    Attributes:
        fault: what is wrong with it.
        step: its number.
        position: of its batch in the global stream.
    """

    def __init__(self, message: str, fault: str, step: int, position: int):
        super().__init__(message)
        self.fault, self.step, self.position = fault, step, position


class Judge:
    """Tells bad steps from good ones.

    Args:
        divergence: a loss beyond so many times the median of the last steps' is bad; 0 for never.
    """

    def __init__(self, divergence: float):
        self._divergence = divergence
        self._history: deque[dict[str, float]] = deque(maxlen=HISTORY)

    @property
    def history(self) -> list[dict[str, float]]:
        """Figures of the last good steps."""
        return list(self._history)

    def fault(self, step: int, values: Mapping[str, float]) -> str | None:
        """What is wrong with a step's figures; good ones are remembered."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values[name]):
                return f"{name} is {values[name]} at step {step}"
        if self._divergence > 0 and len(self._history) == HISTORY:
            usual = statistics.median(abs(row["loss"]) for row in self._history)
            if abs(values["loss"]) > self._divergence * usual:
                return f"loss is {values['loss']:.4g} at step {step}, the last {HISTORY} steps' median is {usual:.4g}"
        self._history.append({"step": step, **values})
        return None


def keep_evidence(workdir: Path, event: Mapping[str, Any]) -> None:
    """Add an event to `WORKDIR/evidence.json`, once for each step and batch."""
    path = workdir / FILE
    events = json.loads(path.read_text()) if path.exists() else []
    others = [e for e in events if (e["step"], e["position"]) != (event["step"], event["position"])]
    write_json(path, [*others, _readable(dict(event))])


def _readable(value: Any) -> Any:
    """JSON has no numbers that are not finite: they become text."""
    if isinstance(value, Mapping):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
