"""Where the procedural Earth's chance comes from: functions of (seed, index), never of the order of calls."""

import numpy as np
from scipy.special import ndtri

from data_pipelines.hashing import hash_ints, to_unit

LAYERS = (
    "acquisition", "terrain", "pattern", "surface", "spectra", "weather", "sensor", "radar",
    "passes", "skies", "optics", "echoes", "image",
)  # fmt: skip
"""Independent streams of one sample: what a layer draws does not depend on which other layers are rendered.

The second row serves series and images of very high resolution. New layers come last: a stream is known by its place.
"""


def layer_rng(seed: int, index: int, layer: str) -> np.random.Generator:
    """Generator of one layer of one sample."""
    return np.random.default_rng([seed, index, LAYERS.index(layer)])


def uniforms(seed: int, index: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers of many samples at once, without a generator per sample.

    Args:
        seed: of the source.
        index: (samples,) integers.
        count: numbers per sample.

    Returns:
        (samples, count) float64 strictly between 0 and 1.
    """
    cells = np.asarray(index, np.int64)[:, None] * count + np.arange(count)
    return to_unit(hash_ints(cells, seed)) * (1 - 2.0**-40) + 2.0**-41


def normals(seed: int, index: np.ndarray, count: int) -> np.ndarray:
    """Standard normal numbers of many samples at once, independent of `uniforms` of the same seed."""
    return ndtri(uniforms(-1 - seed, index, count))
