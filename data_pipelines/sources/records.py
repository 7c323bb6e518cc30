"""Samples from a dataset of records (`data_pipelines.records`)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.grid import assign_splits
from data_pipelines.modalities import LAND_COVER, modality
from data_pipelines.records import decode_sample, read_index, read_manifest
from data_pipelines.sample import Sample
from data_pipelines.shards import ShardReader
from data_pipelines.sources import Index

_OWN = ("key", "lon", "lat", "region", "split", "scene")


class RecordsSource:
    """Random access to a dataset of records.

    Args:
        path: folder that `records.RecordWriter` wrote.
        modalities: decode these of each sample and require them, but for those that the dataset says may be missing;
            None decodes what there is.
        tile: least side of the samples in 10 m pixels.
        samples: take only the first so many.

    Attributes:
        manifest: the dataset's metadata: modalities with units and bands, writer, licence, shards.

    Raises:
        DataError: naming the file or sample at fault and the cure.
    """

    name = "records"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
    ):
        self._root = Path(path)
        self.manifest = read_manifest(self._root)
        columns = {name: column[:samples] for name, column in read_index(self._root, self.manifest).items()}
        if not len(columns["key"]):
            raise DataError(f"{self._root} holds no samples; write some with data_pipelines.records")
        self._modalities = None if modalities is None else frozenset(modality(name).name for name in modalities)
        for name in (self._modalities or frozenset()) - set(self.manifest.get("optional", ())):
            self._refuse(columns, columns[name] == 0, f"has no {name}; leave it out of the modalities")
        if tile is not None:
            small = np.minimum(columns["height"], columns["width"]) < tile
            self._refuse(columns, small, f"is smaller than {tile} x {tile} pixels; choose a smaller tile")
        shards = self.manifest["shards"]
        self._shards = ShardReader([self._root / s["file"] for s in shards], [s["samples"] for s in shards])
        self.index = _to_index(columns)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the file and the record that is corrupt.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return self._shards.read(i % len(self), partial(decode_sample, modalities=self._modalities))

    def _refuse(self, columns: dict[str, np.ndarray], bad: np.ndarray, reason: str) -> None:
        if bad.any():
            key, others = columns["key"][int(bad.argmax())], int(bad.sum()) - 1
            raise DataError(f"{self._root}: sample {key}{f' (and {others} others)' if others else ''} {reason}")


def _to_index(columns: dict[str, np.ndarray]) -> Index:
    """The stored columns, cloud in percent, but for the splits of a dataset that is too small to be divided."""
    everywhere = assign_splits(columns["lon"], columns["lat"])
    undivided = bool((everywhere == "train").all())
    further = {name: column for name, column in columns.items() if name not in _OWN}
    text = {name: column.astype(np.str_) for name, column in further.items() if column.dtype.kind == "O"}
    return Index(
        keys=columns["key"].astype(np.str_),
        lon=columns["lon"],
        lat=columns["lat"],
        region=columns["region"],
        split=everywhere if undivided else columns["split"].astype(np.str_),
        scene=_scenes(columns),
        further={**further, **text, "cloud": 100 * columns["cloud"]},
    )


def _scenes(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Dominant class of each sample: as it was written, else the land cover that takes up most of it."""
    numbers = np.array([number for number, name in enumerate(LAND_COVER) if name != "nodata"])
    cover = np.stack([np.nan_to_num(columns[f"cover_{LAND_COVER[number]}"]) for number in numbers], axis=1)
    dominant = np.where(cover.any(axis=1), numbers[cover.argmax(axis=1)], -1)
    return np.where(columns["scene"] < 0, dominant, columns["scene"]).astype(np.int8)
