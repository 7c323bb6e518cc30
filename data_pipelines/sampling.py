"""Which samples are seen and how often: arithmetic on index arrays, before the loader.

Filters and class balance become an array of sample positions, so that the stream's position stays one integer.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.grid import SPLITS
from data_pipelines.hashing import hash_strings, to_unit
from data_pipelines.modalities import OCEAN, SCENE_CLASSES
from data_pipelines.sources import Index

_OCEAN = SCENE_CLASSES.index(OCEAN)


def select(index: Index, *, split: str | None = None, regions: Sequence[int] | None = None) -> np.ndarray:
    """Positions of the samples of a split, or of some regions; ascending, int64.

    Raises:
        DataError: if the split is unknown or nothing is left.
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


def balanced_indices(scene: np.ndarray, power: float, seed: int, length: int | None = None) -> np.ndarray:
    """Positions in which rarer land cover occurs more often than it does in the data.

    A class with frequency f has weight f^(1 - power) in the result: with power 0 classes occur as they do in the data,
    with 1 equally often. Within a class, samples repeat evenly: each occurs equally often, up to one.

    Args:
        scene: (n,) class of each sample.
        power: 0 (as is) to 1 (uniform over classes).
        seed: decides which samples of a class occur once more than others.
        length: of the result; None takes n.

    Returns:
        (length,) int64 positions into `scene`, ascending; the loader shuffles them.

    Raises:
        DataError: if there is no sample.
    """
    scene = np.asarray(scene)
    length = len(scene) if length is None else length
    if not len(scene):
        raise DataError("no samples to balance; the split or the filters left none")
    classes, counts = np.unique(scene, return_counts=True)
    share = (counts / counts.sum()) ** (1.0 - power)
    quotas = _apportion(share / share.sum(), length)
    rng = np.random.default_rng([seed, len(scene)])
    chosen = []
    for label, quota in zip(classes, quotas, strict=True):
        members = rng.permutation(np.flatnonzero(scene == label))
        chosen.append(np.resize(members, quota))
    return np.sort(np.concatenate(chosen))


def frequent_classes(scene: np.ndarray, coverage: float = 0.5) -> tuple[int, ...]:
    """The fewest classes that make up at least a share of the samples, most frequent first.

    Args:
        scene: (n,) class of each sample; negative where unknown, which counts as no class.
        coverage: 0 to 1.
    """
    scene = np.asarray(scene)
    classes, counts = np.unique(scene[scene >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    covered = np.cumsum(counts[order])
    if not len(covered):
        return ()
    enough = int(np.searchsorted(covered, coverage * covered[-1] * (1 - 1e-12))) + 1
    return tuple(int(label) for label in classes[order[:enough]])


def _apportion(share: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers proportional to `share` that add up to `total` (largest remainders)."""
    exact = share * total
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: total - whole.sum()]] += 1
    return whole
