"""Which samples are seen and how often: arithmetic on index arrays, before the loader.

Filters and class balance become an array of sample positions, so that the stream's position stays one integer.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines import filters
from data_pipelines.errors import DataError
from data_pipelines.grid import SPLITS
from data_pipelines.hashing import hash_strings, to_unit
from data_pipelines.modalities import OCEAN, SCENE_CLASSES
from data_pipelines.sources import Index

_OCEAN = SCENE_CLASSES.index(OCEAN)


def select(
    index: Index, *, split: str | None = None, regions: Sequence[int] | None = None, matching: str = ""
) -> np.ndarray:
    """Positions of the samples of a split, of some regions, that match a filter; ascending, int64.

    Args:
        index: of the source.
        split: one of `grid.SPLITS`; None takes all.
        regions: ids of `grid.region_of`; None takes all.
        matching: see `filters`; empty takes all.

    Raises:
        DataError: if the split or a column is unknown, or nothing is left.
    """
    keep = np.ones(len(index), bool)
    if split is not None:
        if split not in SPLITS:
            raise DataError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        keep &= index.split == split
    if regions is not None:
        keep &= np.isin(index.region, np.asarray(regions))
    if not keep.any():
        present = ", ".join(sorted(set(index.split.tolist()))) or "none"
        raise DataError(f"no sample is left for split {split!r}; the data has {len(index)} samples in splits {present}")
    if matching:
        keep &= filters.matching(index, matching)
        if not keep.any():
            raise DataError(f"filter {matching!r} leaves no sample {_of(split)}{_unknowns(index, matching)}")
    return np.flatnonzero(keep)


def thin_ocean(index: Index, keep: float = 0.02, seed: int = 0, indices: np.ndarray | None = None) -> np.ndarray:
    """Positions left when only a share of the open-sea samples is kept, chosen by the hash of their keys.

    Args:
        index: of the source.
        keep: share of the open-sea samples that stays, 0 to 1.
        seed: gives another choice.
        indices: positions to thin; None takes all.

    Returns:
        int64 positions in the order given; whether a sample stays depends on its key alone.
    """
    indices = np.arange(len(index)) if indices is None else np.asarray(indices, np.int64)
    ocean = index.scene[indices] == _OCEAN
    stays = ~ocean
    stays[ocean] = to_unit(hash_strings(index.keys[indices[ocean]], seed)) < keep
    return indices[stays]


def strata(index: Index, columns: Sequence[str]) -> np.ndarray:
    """Stratum of each sample: samples of one stratum agree in all the columns.

    Args:
        index: of the samples.
        columns: names of `Index.columns` that hold classes: scene, climate, region, split, ...

    Returns:
        (n,) int64, numbered from 0 in the columns' order.

    Raises:
        DataError: if a column is unknown or holds no classes but quantities.
    """
    number = np.zeros(len(index), np.int64)
    for name in columns:
        column = index.column(name)
        if column.dtype.kind in "fM":
            raise DataError(
                f"strata by {name!r}: it holds quantities, not classes; use scene, climate, region or split"
            )
        classes, codes = np.unique(column, return_inverse=True)
        number = number * len(classes) + codes.reshape(-1)
    return np.unique(number, return_inverse=True)[1].reshape(-1)


def balanced_indices(strata: np.ndarray, power: float, seed: int, length: int | None = None) -> np.ndarray:
    """Positions in which rarer strata (land cover, regions, ...) occur more often than they do in the data.

    A stratum with frequency f has weight f^(1 - power) in the result: with power 0 strata occur as they do in the data,
    with 1 equally often. Within a stratum, samples repeat evenly: each occurs equally often, up to one.

    Args:
        strata: (n,) stratum of each sample.
        power: 0 (as is) to 1 (uniform over strata).
        seed: decides which samples of a stratum occur once more than others.
        length: of the result; None takes n.

    Returns:
        (length,) int64 positions into `strata`, ascending; the loader shuffles them.

    Raises:
        DataError: if there is no sample.
    """
    strata = np.asarray(strata)
    length = len(strata) if length is None else length
    if not len(strata):
        raise DataError("no samples to balance; the split or the filters left none")
    _, counts = np.unique(strata, return_counts=True)
    share = (counts / counts.sum()) ** (1.0 - power)
    quotas = _apportion(share / share.sum(), length)
    rng = np.random.default_rng([seed, len(strata)])
    # One sort instead of one comparison a stratum: there may be thousands.
    members = np.split(np.argsort(strata, kind="stable"), np.cumsum(counts)[:-1])
    chosen = [np.resize(rng.permutation(group), quota) for group, quota in zip(members, quotas, strict=True)]
    return np.sort(np.concatenate(chosen))


def frequent_classes(scene: np.ndarray, coverage: float = 0.5, weights: np.ndarray | None = None) -> tuple[int, ...]:
    """The fewest classes that make up at least a share of the samples, most frequent first.

    Args:
        scene: (n,) class of each sample; negative where unknown, which counts as no class.
        coverage: 0 to 1.
        weights: (n,) how often each sample occurs; None: all equally often.
    """
    scene = np.asarray(scene)
    known = scene >= 0
    classes, codes = np.unique(scene[known], return_inverse=True)
    counts = np.bincount(codes.reshape(-1), None if weights is None else weights[known])
    order = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[order])
    if not len(covered):
        return ()
    enough = int(np.searchsorted(covered, coverage * covered[-1] * (1 - 1e-12))) + 1
    return tuple(int(label) for label in classes[order[:enough]])


def _of(split: str | None) -> str:
    return f"of the split {split!r}" if split else "of the data"


def _unknowns(index: Index, text: str) -> str:
    """What the samples do not say, where that is why a filter leaves none."""
    names = dict.fromkeys(comparison.column for comparison in filters.parse_filter(text))
    silent = [name for name in names if filters.unknown(name, index.column(name)).all()]
    return f": {' and '.join(silent)} is unknown of all" if silent else "; loosen it"


def _apportion(share: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers proportional to `share` that add up to `total` (largest remainders)."""
    exact = share * total
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole
