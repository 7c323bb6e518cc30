"""Weighted nearest neighbours on frozen features, and the baselines that they are read against.

Everything here works on arrays: features (samples, dims), integer labels (samples,). No file is read.
Protocol: k = 20 cosine neighbours, each voting with weight exp(similarity / 0.07), as in DINO (Caron et al. 2021,
section 4.1) and in GEO-Bench evaluations of Earth-observation models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NEIGHBOURS = 20
TEMPERATURE = 0.07
FRACTIONS = (0.01, 1.0)
DRAWS = 10


def knn_predict(
    bank: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> np.ndarray:
    """Class of each query by the weighted vote of its nearest samples in the bank.

    Args:
        bank: features with known labels, (n, d). Lengths do not matter, directions do.
        labels: their classes, integers >= 0, (n,).
        queries: features to classify, (m, d).
        k: neighbours that vote; a bank with fewer samples votes whole.
        temperature: of the vote's weight, exp(cosine similarity / temperature).
        chunk: queries compared at a time; bounds memory at chunk x n similarities.

    Returns:
        Classes, int64 (m,). Between equal votes the lower class wins.

    Raises:
        ValueError: if the bank is empty, shapes or labels do not fit, or features are not finite.
    """
    labels = _checked_labels(labels, len(bank))
    if not len(bank):
        raise ValueError("the bank has no samples; nearest neighbours need at least one")
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(f"bank {bank.shape} and queries {queries.shape} must be (samples, dims) of equal dims")
    if not (np.isfinite(bank).all() and np.isfinite(queries).all()):
        raise ValueError("features hold NaN or infinity; has the encoder diverged?")
    k, classes = min(k, len(bank)), int(labels.max()) + 1
    unit_bank, unit_queries = _unit(bank), _unit(queries)
    predicted = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), chunk):
        similarity = unit_queries[start : start + chunk] @ unit_bank.T
        nearest = np.argpartition(similarity, len(bank) - k, axis=1)[:, len(bank) - k :]
        weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / np.float32(temperature))
        cell = np.arange(len(similarity))[:, None] * classes + labels[nearest]
        votes = np.bincount(cell.ravel(), weight.ravel(), minlength=len(similarity) * classes)
        predicted[start : start + chunk] = votes.reshape(-1, classes).argmax(axis=1)
    return predicted


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of samples whose class was found; NaN for no samples."""
    return float(np.mean(predicted == labels)) if len(labels) else float("nan")


def per_class_accuracy(predicted: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Accuracy over the samples of each class that `labels` holds, in ascending order of class."""
    return {int(c): accuracy(predicted[labels == c], labels[labels == c]) for c in np.unique(labels)}


def macro_accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes present of each class's accuracy; NaN for no samples."""
    scores = per_class_accuracy(predicted, labels)
    return float(np.mean(list(scores.values()))) if scores else float("nan")


def label_fraction(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Choose a stratified share of labelled samples.

    Every class present keeps round(fraction x its count) samples and at least one. A smaller fraction's choice is
    contained in a larger one's of the same seed, so scores over fractions differ by what was added alone.

    Args:
        labels: classes, integers >= 0, (n,).
        fraction: share to keep, in (0, 1].
        seed: of the choice; equal arguments choose equally.

    Returns:
        Ascending indices into `labels`.

    Raises:
        ValueError: if the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a label fraction lies in (0, 1], got {fraction}")
    labels = _checked_labels(labels, len(labels))
    chosen = []
    for c in np.unique(labels):
        members = np.flatnonzero(labels == c)
        order = np.random.default_rng([seed, int(c)]).permutation(len(members))
        chosen.append(members[order[: max(1, round(fraction * len(members)))]])
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def evaluate_knn(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    query_labels: np.ndarray,
    *,
    names: Sequence[str],
    fractions: Sequence[float] = FRACTIONS,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Score features by nearest neighbours, once for each share of the bank's labels.

    Args:
        bank: features of the samples that vote, (n, d), float32.
        bank_labels: their classes, indices into `names`, (n,).
        queries: features of the samples to classify, (m, d), from places that the bank has not seen.
        query_labels: their true classes, (m,).
        names: name of every class.
        fractions: shares of the bank's labels, each evaluated by itself.
        k: neighbours that vote.
        temperature: of their weights.
        seed: of the choice of labels.

    Returns:
        One score a fraction, of plain Python values that JSON can hold: `fraction`, `bank`, `queries` (sample counts),
        `accuracy`, `macro_accuracy`, `classes` (name -> accuracy and `bank`, `queries` counts) and `rarest` (names of
        the three classes with the fewest samples in the whole bank among those that the queries hold, rarest first).
        A small share depends on which labels it holds: accuracies are means over DRAWS choices of them.
    """
    bank_labels, query_labels = np.asarray(bank_labels), np.asarray(query_labels)
    rarest = [names[c] for c, _ in rarest_classes(bank_labels, among=query_labels)]
    scores = []
    for fraction in fractions:
        draws = [label_fraction(bank_labels, fraction, seed + i) for i in range(1 if fraction == 1 else DRAWS)]
        predictions = [
            knn_predict(bank[kept], bank_labels[kept], queries, k=k, temperature=temperature) for kept in draws
        ]
        by_class = [per_class_accuracy(predicted, query_labels) for predicted in predictions]
        macro = [macro_accuracy(predicted, query_labels) for predicted in predictions]
        scores.append(
            {
                "fraction": float(fraction),
                "bank": len(draws[0]),
                "queries": len(query_labels),
                "accuracy": float(np.mean([accuracy(predicted, query_labels) for predicted in predictions])),
                "macro_accuracy": float(np.mean(macro)),
                "classes": {
                    names[c]: {
                        "accuracy": float(np.mean([of_class[c] for of_class in by_class])),
                        "bank": int(np.sum(bank_labels[draws[0]] == c)),
                        "queries": int(np.sum(query_labels == c)),
                    }
                    for c in by_class[0]
                },
                "rarest": rarest,
            }
        )
    return scores


def rarest_classes(labels: np.ndarray, count: int = 3, among: np.ndarray | None = None) -> list[tuple[int, int]]:
    """Find the classes with the fewest samples.

    Args:
        labels: classes, (n,).
        count: how many to name at most.
        among: if given, only classes that these labels hold are named, as only they can be scored.

    Returns:
        (class, its number of samples), fewest first; equal counts in order of class.
    """
    classes, counts = np.unique(labels, return_counts=True)
    found = [(int(n), int(c)) for c, n in zip(classes, counts, strict=True) if among is None or c in among]
    return [(c, n) for n, c in sorted(found)[:count]]


def band_statistics(rasters: Mapping[str, np.ndarray]) -> np.ndarray:
    """Describe samples by the mean and standard deviation of each band: the baseline that knows no texture.

    Args:
        rasters: name -> (batch, ..., band, y, x), any unit, any number of modalities and grids. Values that are not
            finite (no data) are left out; a band without any valid pixel counts as mean 0, deviation 0.

    Returns:
        float32 (batch, 2 x total bands): names in sorted order, each with its bands' means before their deviations.
        Standardise it (`standardised`) before comparing, as units differ.

    Raises:
        ValueError: if there is no raster, or one lacks the band, y and x axes.
    """
    if not rasters:
        raise ValueError("band statistics need at least one raster")
    features = []
    for name in sorted(rasters):
        raster = np.asarray(rasters[name])
        if raster.ndim < 4:
            raise ValueError(f"{name} has shape {raster.shape}, want (batch, ..., band, y, x)")
        values = np.moveaxis(raster, -3, 1).reshape(len(raster), raster.shape[-3], -1).astype(np.float64)
        valid = np.isfinite(values)
        number = np.maximum(valid.sum(-1), 1)
        mean = np.where(valid, values, 0).sum(-1) / number
        variance = np.where(valid, (values - mean[..., None]) ** 2, 0).sum(-1) / number
        features += [mean, np.sqrt(variance)]
    return np.concatenate(features, axis=1).astype(np.float32)


def standardised(bank: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Shift and scale every dimension to mean 0 and deviation 1 over the bank; `others` by the bank's figures.

    A dimension that does not vary over the bank becomes 0 everywhere: it cannot tell samples apart.
    """
    mean, std = bank.mean(0, dtype=np.float64), bank.std(0, dtype=np.float64)
    varies = std > 1e-12 * np.maximum(np.abs(mean), 1)
    scale = np.where(varies, 1 / np.where(varies, std, 1), 0)
    return tuple(((features - mean) * scale).astype(np.float32) for features in (bank, *others))


def _unit(features: np.ndarray) -> np.ndarray:
    # float64 for the norm, so that features of any magnitude keep their direction
    features = np.asarray(features, np.float64)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(norm > 0, norm, 1)).astype(np.float32)


def _checked_labels(labels: np.ndarray, count: int) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or (count and labels.min() < 0):
        raise ValueError(f"labels must be {count} integers >= 0, one a sample; leave out samples without a class")
    return labels.astype(np.int64)
