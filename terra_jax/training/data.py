"""From a config's `data` section to samples and batches: what every family's runs read alike."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import sampling
from data_pipelines.loader import Loader, Recipe
from data_pipelines.sources import Source, open_source
from data_pipelines.sources.cached import CachedSource
from terra_jax.training.experiment import BatchStream


def open_data(config: ConfigDict) -> Source:
    """The source that a config names, with the modalities of the run."""
    data = config.data
    made = data.source in ("procedural", "procedural_series")
    source = open_source(
        data.source,
        path=data.path,
        modalities=tuple(data.modalities),
        tile=data.tile if made else None,
        samples=data.samples if made else None,
        seed=config.seed,
        frames=data.frames.to_dict() if "frames" in data else None,
    )
    return CachedSource(source) if data.cache else source


def training_indices(source: Source, config: ConfigDict) -> np.ndarray:
    """Positions of the training samples: seen regions, the open sea thinned, land cover balanced."""
    train = sampling.select(source.index, split="train")
    kept = sampling.thin_ocean(source.index, config.data.ocean, config.seed, train)
    chosen = kept if len(kept) else train
    return chosen[sampling.balanced_indices(source.index.scene[chosen], config.data.balance, config.seed)]


def training_stream(
    config: ConfigDict, source: Source, recipe: Recipe, indices: np.ndarray
) -> Callable[[int, int, int], BatchStream]:
    """What `Experiment.loader` wants: (position, process index, process count) -> stream of batches."""

    def opened(position: int, process_index: int, process_count: int) -> BatchStream:
        return Loader(
            source,
            recipe,
            indices,
            batch_size=config.batch_size,
            seed=config.seed,
            process_index=process_index,
            process_count=process_count,
            start=position,
            strict=config.data.strict,
            threads=config.data.threads,
        )

    return opened
