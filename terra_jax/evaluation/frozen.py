"""kNN on frozen features, beside a random model and what the input says by itself: what the families' scores share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array

from terra_jax.evaluation.table import Scores, scores_at
from terra_jax.training.objective import Bind, Params

Batch = Mapping[str, np.ndarray]


class FrozenKNN(ABC):
    """Scores of a model's frozen features, by input set.

    Args:
        bank, queries: functions that iterate once over batches of whole tiles.
        random_params: makes a run's initial parameters.
        modalities: that the tiles hold.
        batch_size: tiles per call of the network.
        statistics: statistics set that standardises inputs.
    """

    measured_name: ClassVar[str]
    """What the baseline without a network is called."""

    def __init__(
        self,
        bank: Callable[[], Iterator[Batch]],
        queries: Callable[[], Iterator[Batch]],
        random_params: Callable[[], Params],
        *,
        modalities: Sequence[str],
        batch_size: int,
        statistics: str,
    ):
        self.inputs = self.input_sets(modalities)
        self._modalities = tuple(modalities)
        self._sets = bank, queries
        self._random_params = random_params
        self._batch_size = batch_size
        self._statistics = statistics
        self._embedders: dict[Bind, Callable] = {}
        self._random: Scores = {}

    @property
    def headline(self) -> str:
        """The input set that a report shows first."""
        return next(iter(self.inputs))

    def __call__(self, bind: Bind, params: Params) -> Scores:
        """Scores of the model with these parameters."""
        if bind not in self._embedders:
            self._embedders[bind] = jax.jit(partial(self._embed, bind))
        return self._scored(partial(self._embedders[bind], params))

    def baselines(self, bind: Bind) -> dict[str, Scores]:
        """Name of each baseline -> its scores; computed once."""
        self._random = self._random or self(bind, self._random_params())
        return {"random encoder": self._random, self.measured_name: self.measured}

    @staticmethod
    @abstractmethod
    def input_sets(modalities: Sequence[str]) -> dict[str, Any]:
        """Name of an input set -> what it is made of; the one that a report shows comes first."""

    @property
    @abstractmethod
    def measured(self) -> Scores:
        """Scores of what the input says without a network."""

    @abstractmethod
    def _embed(self, bind: Bind, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Features of every input set, and what is known of them, of a batch; traced by `jax.jit`."""

    @abstractmethod
    def _scored(self, function: Callable) -> Scores:
        """Scores of what a compiled function makes of the bank's and the queries' batches."""


def knn_summary(
    knn: FrozenKNN, bind: Bind, params: Params, *, step: int, scores: Scores | None, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The kNN evaluation of a finished run, for its report.

    Args:
        knn: its evaluator, named "knn" in the run.
        bind, params: its model and the parameters that are scored.
        step: its last step.
        scores: of that step, where they are known.
        rows: of evaluations.csv.

    Returns:
        What report.json says of it, and what `report.report_png` draws over time.
    """
    scores = scores or knn(bind, params)
    summary = {"headline": knn.headline, "scores": scores, "baselines": knn.baselines(bind)}
    earlier = [scores_at(row, knn.headline) for row in rows if float(row["step"]) < step]
    return summary, [*earlier, {"step": step, "scores": scores[knn.headline]}]
