"""Land cover by nearest neighbours from TerraFM embeddings, on regions that training has not seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_pipelines.modalities import SCENE_CLASSES
from terra_jax.evaluation.features import extract_features
from terra_jax.evaluation.frozen import Batch, FrozenKNN
from terra_jax.evaluation.knn import band_statistics, evaluate_knn, standardised
from terra_jax.evaluation.table import Scores
from terra_jax.parallel.distributed import place_everywhere
from terra_jax.terrafm.model import STEMS
from terra_jax.terrafm.objective import standardised_views
from terra_jax.training.objective import Bind, Params

CLOUDY = 0.3
"""Cloud fraction from which a tile counts as cloudy."""


def input_sets(modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> modalities of each set that is scored: two sensors fused, then every modality alone.

    A fused set pairs the first Sentinel-2 product with the first Sentinel-1 one.
    """
    optical = [name for name in modalities if name.startswith("S2")]
    radar = [name for name in modalities if name.startswith("S1")]
    fused = {f"{optical[0]}+{radar[0]}": (optical[0], radar[0])} if optical and radar else {}
    return {**fused, **{name: (name,) for name in modalities}}


class LandCoverKNN(FrozenKNN):
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

    measured_name = "band mean and deviation"
    input_sets = staticmethod(input_sets)

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
        super().__init__(
            bank, queries, random_params, modalities=modalities, batch_size=batch_size, statistics=statistics
        )
        self._size = size

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
    def measured(self) -> Scores:
        """Scores of each band's mean and deviation over the tile."""

        def describe(batch: Batch) -> dict[str, np.ndarray]:
            features = {
                name: band_statistics({key: array for key, array in batch.items() if key.split("/")[0] in members})
                for name, members in self.inputs.items()
            }
            return {**features, "scene": batch["scene"], "cloud": batch["cloud"]}

        bank, queries = self._features(describe, place=lambda batch: batch)
        for name in self.inputs:
            bank[name], queries[name] = standardised(bank[name], queries[name])
        return self._score(bank, queries)

    def _scored(self, function: Callable) -> Scores:
        return self._score(*self._features(function))

    def _features(self, function: Callable, place: Callable = place_everywhere) -> list[dict[str, np.ndarray]]:
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
