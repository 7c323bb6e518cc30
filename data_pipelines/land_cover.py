"""Which classes of land cover a dataset's samples have, and which of them are frequent: a file that configs name."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.grid import assign_splits
from data_pipelines.modalities import SCENE_CLASSES
from data_pipelines.sampling import frequent_classes

FORMAT, VERSION = "terra_jax.land_cover", 1
FILE = "land_cover.json"


def describe(scene: np.ndarray, lon: np.ndarray, lat: np.ndarray, coverage: float) -> dict[str, Any]:
    """What `land_cover.json` says of a dataset.

    Args:
        scene: (n,) dominant class of each sample, an index into SCENE_CLASSES; -1 where unknown.
        lon, lat: (n,) degrees: frequencies are those of training regions.
        coverage: share of the training samples that the frequent classes make up, 0 to 1.
    """
    training = scene[assign_splits(lon, lat) == "train"]
    counts, seen = (np.bincount(s[s >= 0], minlength=len(SCENE_CLASSES)) for s in (scene, training))
    shares = seen / max(seen.sum(), 1)
    return {
        "format": FORMAT,
        "version": VERSION,
        "samples": {name: int(count) for name, count in zip(SCENE_CLASSES, counts, strict=True) if count},
        "unknown": int((scene < 0).sum()),
        "frequencies": {name: float(share) for name, share in zip(SCENE_CLASSES, shares, strict=True) if share},
        "coverage": coverage,
        "frequent": [SCENE_CLASSES[label] for label in frequent_classes(training, coverage)],
    }


def read_frequent(text: str) -> tuple[int, ...]:
    """Frequent classes, as indices of SCENE_CLASSES, from a config's value.

    Args:
        text: path of a `land_cover.json` that `terra-jax prepare` wrote, or names joined by commas.

    Raises:
        DataError: if the file is none, or a class is unknown.
    """
    names = [name.strip() for name in text.split(",")]
    if text.endswith(".json"):
        try:
            content = json.loads(Path(text).read_text())
            names = [str(name) for name in content["frequent"]]
            if content["format"] != FORMAT or content["version"] > VERSION:
                raise ValueError("another format")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{text} lists no frequent classes; give a {FILE} of `terra-jax prepare`") from error
    for name in names:
        if name not in SCENE_CLASSES:
            raise DataError(f"unknown land cover {name!r}; choose among {', '.join(SCENE_CLASSES)}")
    return tuple(SCENE_CLASSES.index(name) for name in names)
