"""What one training run is made of; families put it together, the loop runs it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from terra_jax.training.objective import Bind, Objective, Params


class BatchStream(Protocol):
    """The endless stream of batches that a loader gives (see `data_pipelines.loader.Loader`)."""

    @property
    def position(self) -> int:
        """Number of examples of the global stream handed out so far; the stream can be reopened there."""
        ...

    @property
    def failures(self) -> Mapping[str, str]:
        """Key of each sample that could not be read and was substituted -> why."""
        ...

    def keys(self, start: int, stop: int) -> list[str]:
        """Keys of the samples at these positions."""
        ...

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield this process's part of each global batch."""
        ...

    def close(self) -> None:
        """Stop reading ahead."""
        ...


class Initial(NamedTuple):
    """Converted weights to start from."""

    params: Params
    """Nested dict that replaces a part of the parameters; host arrays."""
    loaded: list[str]
    """Paths that come from the weights."""
    fresh: list[str]
    """Paths that keep their random initialisation."""


Evaluator = Callable[[Bind, dict[str, Any], int], Mapping[str, float]]
"""`evaluator(bind, state, step) -> figures`; the state is only valid during the call."""

ReportHook = Callable[[Path, Mapping[str, Any], Bind, dict[str, Any]], Mapping[str, Any]]
"""`hook(workdir, report, bind, state) -> further entries of report.json`; may write pictures into workdir."""


@dataclass(frozen=True)
class Experiment:
    """One run.

    Attributes:
        objective: the task.
        loader: `loader(position, index, count)` opens the stream at a position, for the `index`-th of `count` equal,
            contiguous parts of each global batch.
        evaluators: called every `config.evaluation.every` steps and at the end; their figures are named
            "<evaluator>/<figure>" in the metrics and the report.
        init: weights to start from, asked for once, at step 0.
        report: called at the end, before report.json is written.
        options: options of the model that checkpoints record, so that whoever loads its weights need not give them.
    """

    objective: Objective
    loader: Callable[[int, int, int], BatchStream]
    evaluators: Mapping[str, Evaluator] = field(default_factory=dict)
    init: Callable[[], Initial] | None = None
    report: ReportHook | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
