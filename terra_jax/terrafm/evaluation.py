"""Land cover by nearest neighbours from TerraFM embeddings, on regions that training has not seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipelines.modalities import SCENE_CLASSES
from terra_jax.evaluation.features import extract_features
from terra_jax.evaluation.knn import band_statistics, evaluate_knn, standardised
from terra_jax.evaluation.table import Scores
from terra_jax.terrafm.model import STEMS
from terra_jax.terrafm.objective import standardised_views
from terra_jax.training.objective import Bind, Params

CLOUDY = 0.3
"""Cloud fraction from which a tile counts as cloudy."""

Batch = Mapping[str, np.ndarray]


class LandCoverKNN:
    """Scores of frozen class tokens beside two baselines: a random encoder, and per-band mean and deviation.

    Args:
        bank, queries: functions that iterate once over batches of whole tiles: the arrays of
            `data_pipelines.recipes.tiles.tile_spec`, with "scene" (class, index of SCENE_CLASSES) and "cloud"
            (cloud fraction).
        random_params: makes a run's initial parameters.
        modalities: that the tiles hold; see `input_sets`.
        size: pixels per side of the network's input.
        batch_size: tiles per call of the network.
        statistics: statistics set that standardises inputs.
    """

    def __init__(
        self,
        bank: Callable[[], Iterator[Batch]],
        queries: Callable[[], Iterator[Batch]],
        random_params: Callable[[], Params],
        *,
        modalities: Sequence[str],
        size: int,
        batch_size: int,
        statistics: str,
    ):
        self.inputs = input_sets(modalities)
        self._sets = bank, queries
        self._random_params = random_params
        self._modalities = tuple(modalities)
        self._size = size
        self._batch_size = batch_size
        self._statistics = statistics
        self._embedders: dict[Bind, Callable] = {}
        self._baselines: dict[str, Scores] = {}

    @property
    def headline(self) -> str:
        """The input set that a report shows first: the one with most modalities."""
        return max(self.inputs, key=lambda name: len(self.inputs[name]))

    def __call__(self, bind: Bind, params: Params) -> Scores:
        """Scores of the encoder with these parameters."""
        if bind not in self._embedders:
            self._embedders[bind] = jax.jit(partial(self._embed, bind))
        bank, queries = self._features(partial(self._embedders[bind], params), jax.device_put)
        return self._score(bank, queries)

    def baselines(self, bind: Bind) -> dict[str, Scores]:
        """Name of each baseline -> its scores; computed once."""
        if not self._baselines:
            self._baselines = {
                "random encoder": self(bind, self._random_params()),
                "band mean and deviation": self._statistics_scores,
            }
        return self._baselines

    def _embed(self, bind: Bind, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        encoder = bind(params).encoder
        height, width = batch[f"{self._modalities[0]}/10"].shape[-2:]
        boxes: Float[Array, "b 1 4"] = jnp.tile(jnp.array([0.0, 0.0, height, width]), (len(batch["scene"]), 1, 1))
        views = standardised_views(batch, boxes, self._size, self._modalities, self._statistics)
        tokens = {
            name: encoder.encode({STEMS[member]: views[STEMS[member]] for member in members})[:, 0]
            for name, members in self.inputs.items()
        }
        return {**tokens, "scene": batch["scene"], "cloud": batch["cloud"]}

    @cached_property
    def _statistics_scores(self) -> Scores:
        def describe(batch: Batch) -> dict[str, np.ndarray]:
            features = {
                name: band_statistics({key: array for key, array in batch.items() if key.split("/")[0] in members})
                for name, members in self.inputs.items()
            }
            return {**features, "scene": batch["scene"], "cloud": batch["cloud"]}

        bank, queries = self._features(describe, lambda batch: batch)
        for name in self.inputs:
            bank[name], queries[name] = standardised(bank[name], queries[name])
        return self._score(bank, queries)

    def _features(self, function, place) -> list[dict[str, np.ndarray]]:
        return [extract_features(function, batches(), self._batch_size, place=place) for batches in self._sets]

    def _score(self, bank: Mapping[str, np.ndarray], queries: Mapping[str, np.ndarray]) -> Scores:
        cloudy = queries["cloud"] >= CLOUDY
        scores: Scores = {}
        for name in self.inputs:
            scores[name] = evaluate_knn(bank[name], bank["scene"], queries[name], queries["scene"], names=SCENE_CLASSES)
            if cloudy.sum() >= 10:
                scores[f"{name}, cloudy"] = evaluate_knn(
                    bank[name], bank["scene"], queries[name][cloudy], queries["scene"][cloudy], names=SCENE_CLASSES
                )
        return scores


def input_sets(modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> modalities of each set that is scored: two sensors fused, then every modality alone.

    A fused set pairs the first Sentinel-2 product with the first Sentinel-1 one.
    """
    optical = [name for name in modalities if name.startswith("S2")]
    radar = [name for name in modalities if name.startswith("S1")]
    fused = {f"{optical[0]}+{radar[0]}": (optical[0], radar[0])} if optical and radar else {}
    return {**fused, **{name: (name,) for name in modalities}}
