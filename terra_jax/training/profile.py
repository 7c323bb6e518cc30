"""A profiler trace of a few steps, for TensorBoard or XProf."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from terra_jax.errors import ConfigError


class Profile:
    """Traces steps `first` to `first + count - 1`, on this process.

    Args:
        folder: takes the trace; open it with `xprof --logdir FOLDER` or TensorBoard.
        first, count: which steps; a count of 0 traces none.
        shown: False on all processes but the first, which trace nothing.

    Raises:
        ConfigError: negative numbers.
    """

    def __init__(self, folder: Path, first: int = 0, count: int = 0, *, shown: bool = True):
        if first < 0 or count < 0:
            raise ConfigError(f"profile=({first},{count}) is not the first step and the number of steps, as in (10,3)")
        self._folder, self._steps, self._running = folder, range(first, first + count) if shown else range(0), False

    def before(self, step: int) -> None:
        """Begin the trace if this is its first step."""
        if step in self._steps and not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def annotation(self, step: int) -> AbstractContextManager[Any]:
        """Mark a step, so that the trace can be read step by step."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, results: Any) -> None:
        """End the trace, once the device is done, if this was its last step."""
        if self._running and step + 1 not in self._steps:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """End a trace that is going on."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
