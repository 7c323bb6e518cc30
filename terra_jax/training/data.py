"""From a config's `data` section to samples and batches: what every family's runs read alike."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import sampling
from data_pipelines.loader import Loader, Recipe, one_pass
from data_pipelines.mixture import Mixture
from data_pipelines.sample import Sample
from data_pipelines.sources import Index, Source, open_source
from data_pipelines.sources.cached import CachedSource
from data_pipelines.sources.mixed import MixedSource, parse_mixture
from terra_jax.errors import ConfigError
from terra_jax.training.experiment import BatchStream


def open_data(config: ConfigDict, modalities: Sequence[str] | None = None, partial: bool = False) -> Source:
    """The source that a config names, or the mixture of sources.

    Args:
        config: of the run.
        modalities: what is read; None: those of `config.data.modalities`.
        partial: samples of files may lack some of them; everything that they have is read.

    Raises:
        ConfigError: if the config names a path and a mixture.
    """
    data = config.data
    names = tuple(data.modalities if modalities is None else modalities)
    if not data.get("mixture"):  # TerraMind's runs join places to tokens instead
        return _open(config, data.source, data.path, names, partial)
    if data.path:
        raise ConfigError(f"data.path={data.path} and data.mixture={data.mixture!r} are both given; leave one out")
    entries = parse_mixture(data.mixture)
    corpora = [_open(config, entry.source, entry.path, names, partial) for entry in entries]
    return MixedSource(corpora, [entry.weight for entry in entries])


def _open(config: ConfigDict, name: str, path: str, modalities: tuple[str, ...], partial: bool) -> Source:
    data = config.data
    made = name in ("procedural", "procedural_series")
    source = open_source(
        name,
        path=path,
        modalities=None if partial and not made else modalities,
        tile=data.tile if made else None,
        samples=data.samples if made else None,
        seed=config.seed,
        cache=data.index_cache or None,
        series="frames" in data,  # families that train on series say how many frames
        frames=data.frames.to_dict() if "frames" in data else None,
    )
    return CachedSource(source) if data.cache else source


def training_indices(source: Source, config: ConfigDict) -> np.ndarray:
    """Positions of the training samples: seen regions, filtered, the open sea thinned, strata balanced.

    Corpora of a mixture are treated one by one: each gives what it would give alone.

    Raises:
        DataError: naming the split or the filter that leaves nothing.
    """
    if not isinstance(source, MixedSource):
        return _chosen(source.index, config, [config.data.filter])
    filters = [[config.data.filter, entry.filter] for entry in parse_mixture(config.data.mixture)]
    parts = [_chosen(corpus.index, config, given) for corpus, given in zip(source.corpora, filters, strict=True)]
    return np.concatenate([part + start for part, start in zip(parts, source.starts, strict=False)])


def frequencies(source: Source, indices: np.ndarray) -> np.ndarray | None:
    """How often each training sample occurs relative to the others; None: all equally often."""
    return source.shares(indices) if isinstance(source, MixedSource) else None


def unlabelled(source: Source) -> str:
    """What to add to a message where no sample's land cover is known before it is read; else nothing."""
    known = not len(source) or bool((source.index.scene >= 0).any())
    return "" if known else f"; the index of {source.name} knows no land cover, that of `terra-jax prepare` does"


def _chosen(index: Index, config: ConfigDict, filters: list[str]) -> np.ndarray:
    data = config.data
    train = sampling.select(index, split="train", matching=" and ".join(filter(None, filters)))
    kept = sampling.thin_ocean(index, data.ocean, config.seed, train)
    chosen = kept if len(kept) else train
    strata = sampling.strata(index.take(chosen), [name.strip() for name in data.stratify.split(",") if name.strip()])
    return chosen[sampling.balanced_indices(strata, data.balance, config.seed)]


def training_stream(
    config: ConfigDict, source: Source, recipe: Recipe, indices: np.ndarray
) -> Callable[[int, int, int], BatchStream]:
    """What `Experiment.loader` wants: (position, process index, process count) -> stream of batches."""
    order: np.ndarray | Mixture = source.mixture(indices) if isinstance(source, MixedSource) else indices

    def opened(position: int, process_index: int, process_count: int) -> BatchStream:
        return Loader(
            source,
            recipe,
            order,
            batch_size=config.batch_size,
            seed=config.seed,
            process_index=process_index,
            process_count=process_count,
            start=position,
            strict=config.data.strict,
            threads=config.data.threads,
        )

    return opened


def split_indices(source: Source, split: str, count: int, *, labelled: bool = False) -> np.ndarray:
    """Up to `count` positions of a split ("val", "test", or "all" tiles), the same for every run.

    Args:
        source: of the samples.
        split: whose.
        count: how many at most.
        labelled: only those whose land cover the index knows.
    """
    index = source.index
    members = np.flatnonzero(((index.split == split) | (split == "all")) & ((index.scene >= 0) | (not labelled)))
    return np.sort(np.random.default_rng(0).permutation(members)[:count])


def numbered_batches(source: Source, recipe: Recipe, indices: np.ndarray, batch_size: int) -> Iterator[dict]:
    """Examples in batches of at most `batch_size`, with the "number" of each sample; unfit samples are left out."""

    def example(sample: Sample, i: int) -> dict[str, np.ndarray]:
        return {**recipe(sample, i), "number": np.asarray(i, np.int32)}

    return one_pass(source, example, indices, batch_size)
