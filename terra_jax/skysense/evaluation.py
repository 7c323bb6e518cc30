"""Land cover of single pixels by nearest neighbours from SkySense's features, on regions that training has not seen."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from data_pipelines.modalities import LAND_COVER
from terra_jax.evaluation.features import extract_features
from terra_jax.evaluation.frozen import Batch, FrozenKNN
from terra_jax.evaluation.knn import evaluate_knn, standardised
from terra_jax.evaluation.table import Scores, scores_table
from terra_jax.skysense.model import SkySense
from terra_jax.skysense.variants import HR_PIXELS
from terra_jax.skysense.views import whole_tiles
from terra_jax.training.objective import Bind, Params

__all__ = ["CLOUDY", "InputSet", "PixelKNN", "input_sets", "labelled_pixels", "scores_table"]

CLOUDY = 0.5
"""Cloud fraction from which a frame counts as cloudy."""

FEWEST_QUERIES = 20
"""Cloudy pixels below this number say nothing."""

IGNORED = tuple(LAND_COVER.index(name) for name in ("nodata", "clouds"))


class InputSet(NamedTuple):
    """What features are made of.

    Attributes:
        modalities: that are looked at.
        fused: through the fusion, or the aligned features of one modality, averaged over its frames.
        cloudy: queries see only Sentinel-2 frames under heavy cloud; the bank is that of the same modalities.
    """

    modalities: tuple[str, ...]
    fused: bool
    cloudy: bool = False


def input_sets(modalities: Sequence[str]) -> dict[str, InputSet]:
    """Name -> what is scored: everything fused, each modality alone, both under cloud with and without radar."""
    everything = tuple(modalities)
    sets = {"+".join(everything): InputSet(everything, True)} if len(everything) > 1 else {}
    sets |= {name: InputSet((name,), False) for name in everything}
    if {"S2L2A", "S1GRD"} <= set(everything):
        sets["S2L2A fused"] = InputSet(("S2L2A",), True)
        if len(everything) > 2:
            sets["S2L2A+S1GRD"] = InputSet(("S2L2A", "S1GRD"), True)
        sets["S2L2A fused, heavy cloud"] = InputSet(("S2L2A",), True, True)
        sets["S2L2A+S1GRD, heavy cloud"] = InputSet(("S2L2A", "S1GRD"), True, True)
    return sets


def labelled_pixels(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Flat places of `count` pixels with known land cover; some more than once where there are fewer.

    Args:
        labels: (n, n) ids of LAND_COVER.
        count: how many.
        seed: of the choice.

    Returns:
        int32 (count,); -1 throughout where no pixel is known.
    """
    known = np.flatnonzero(~np.isin(labels, IGNORED))
    if not len(known):
        return np.full(count, -1, np.int32)
    order = np.random.default_rng(seed).permutation(known)
    return np.resize(order, count).astype(np.int32)


class PixelKNN(FrozenKNN):
    """Scores of frozen pixel features beside two baselines: a random model, and what pixels measure by themselves.

    Args:
        bank, queries: functions that iterate once over batches of whole tiles: the arrays of
            `data_pipelines.recipes.skysense.SkySenseTileRecipe`, with "pixels" (`labelled_pixels`).
        random_params: makes a run's initial parameters.
        modalities: that the tiles hold; see `input_sets`.
        batch_size: tiles per call of the network.
        statistics: statistics set that standardises inputs.
    """

    measured_name = "pixel mean and deviation"
    input_sets = staticmethod(input_sets)

    def _embed(self, bind: Bind, params: Params, batch: Mapping[str, Array]) -> dict[str, Array]:
        encoder: SkySense = bind(params).encoder
        images, days, present = whole_tiles(batch, self._statistics)
        aligned = encoder.aligned(images, present=present, normalised=True)

        def features(wanted: InputSet) -> Float[Array, "b h w c"]:
            if not wanted.fused:
                (name,) = wanted.modalities
                return _mean_and_deviation(aligned[name], present[name])[0]
            shown = _shown(present, batch["cloud"], wanted)
            chosen = {name: aligned[name] for name in wanted.modalities}
            return encoder.fuse(chosen, {k: v for k, v in days.items() if k in chosen}, shown)

        return self._picked(batch, features)

    @cached_property
    def measured(self) -> Scores:
        """Scores of each pixel's mean and deviation over the frames; of HR, over the image's pixels within it."""

        @jax.jit
        def measure(batch: Mapping[str, Array]) -> dict[str, Array]:
            images, _, present = whole_tiles(batch, self._statistics)
            maps = dict(images)
            if "HR" in images:
                image = images["HR"]
                b, height, width, bands = image.shape
                split = image.reshape(b, height // HR_PIXELS, HR_PIXELS, width // HR_PIXELS, HR_PIXELS, bands)
                maps["HR"] = split.transpose(0, 2, 4, 1, 3, 5).reshape(b, HR_PIXELS**2, *split.shape[1::2])
                present = {**present, "HR": jnp.tile(present["HR"], (1, HR_PIXELS**2))}

            def features(wanted: InputSet) -> Float[Array, "b h w c"]:
                shown = _shown(present, batch["cloud"], wanted)
                values = [_mean_and_deviation(maps[name], shown[name]) for name in wanted.modalities]
                return jnp.concatenate([part for both in values for part in both], axis=-1)

            return self._picked(batch, features)

        return self._scored(measure, standardise=True)

    def _picked(self, batch: Mapping[str, Array], features: Callable[[InputSet], Array]) -> dict[str, Array]:
        """Features, labels and cloudiness of the chosen pixels."""

        def pick(maps: Array) -> Array:
            flat = maps.reshape(maps.shape[0], -1, *maps.shape[3:])
            place = jnp.maximum(batch["pixels"], 0)
            return jnp.take_along_axis(flat, place[..., None] if flat.ndim == 3 else place, axis=1)

        found = {name: pick(features(wanted)) for name, wanted in self.inputs.items()}
        known = batch["pixels"] >= 0
        cloudy = (batch["cloud"] >= CLOUDY).any(1)
        return {
            **found,
            "labels": jnp.where(known, pick(batch["labels"]).astype(jnp.int32), -1),
            "cloudy": jnp.broadcast_to(cloudy[:, None], known.shape),
        }

    def _scored(self, function: Callable, standardise: bool = False) -> Scores:
        bank, queries = (self._pixels(function, batches()) for batches in self._sets)
        scores: Scores = {}
        for name, wanted in self.inputs.items():
            stored = name
            chosen = np.ones(len(queries["labels"]), bool)
            if wanted.cloudy:
                stored = next(k for k, v in self.inputs.items() if v == wanted._replace(cloudy=False))
                chosen = queries["cloudy"]
            if chosen.sum() < FEWEST_QUERIES:
                continue
            known, asked = bank[stored], queries[name][chosen]
            if standardise:
                known, asked = standardised(known, asked)
            scores[name] = evaluate_knn(known, bank["labels"], asked, queries["labels"][chosen], names=LAND_COVER)
        return scores

    def _pixels(self, function: Callable, batches: Iterator[Batch]) -> dict[str, np.ndarray]:
        """One row a pixel with known land cover."""
        found = extract_features(function, batches, self._batch_size)
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in found.items()}
        return {name: array[flat["labels"] >= 0] for name, array in flat.items()}


def _shown(
    present: Mapping[str, Bool[Array, "b t"]], cloud: Float[Array, "b t"], wanted: InputSet
) -> dict[str, Bool[Array, "b t"]]:
    """Frames that an input set looks at; of the cloudy sets, under heavy cloud only (all where there is none)."""
    shown = {name: present[name] for name in wanted.modalities}
    if wanted.cloudy:
        heavy = shown["S2L2A"] & (cloud >= CLOUDY)
        shown["S2L2A"] = jnp.where(heavy.any(1, keepdims=True), heavy, shown["S2L2A"])
    return shown


def _mean_and_deviation(
    series: Float[Array, "b t h w c"], present: Bool[Array, "b t"]
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Over the frames that count; zeros where none does."""
    weight = present.astype(jnp.float32)[:, :, None, None, None]
    count = jnp.maximum(weight.sum(1), 1)
    mean = (weight * series).sum(1) / count
    return mean, jnp.sqrt((weight * jnp.square(series - mean[:, None])).sum(1) / count)
