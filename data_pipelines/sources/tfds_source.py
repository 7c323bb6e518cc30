"""Samples from TFDS datasets on disk: what `data_pipelines.tfds` wrote, and public datasets that are described here."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import MODALITIES, Unit, modality
from data_pipelines.sample import Sample
from data_pipelines.sources import Index
from data_pipelines.sources.assembly import reading, to_raster, wanted_modalities

_THREADS = 8


@dataclass(frozen=True)
class Feature:
    """What a feature of a public dataset is: modality, bands as they lie in it, unit, key and label of an example."""

    feature: str
    modality: str
    bands: tuple[str, ...]
    unit: Unit
    key: str
    label: str


_ESA = modality("S2L1C").band_names
PUBLIC = {
    # EuroSAT's files, and so TFDS's tensors, have B8A last.
    "eurosat/all": Feature(
        "sentinel2", "S2L1C", (*(b for b in _ESA if b != "B8A"), "B8A"), Unit.DN10000, "filename", "label"
    ),
}
"""Dataset and config -> what is read of it. These have no georeference: place unknown, EPSG code 0."""


class TfdsSource:
    """Random access to a TFDS dataset in ArrayRecord files, without TensorFlow.

    Args:
        path: folder of one version of a dataset (it holds `dataset_info.json`), or one above with one dataset in it.
        modalities: yield these; None yields what there is.
        tile: least side of the samples in 10 m pixels, checked as they are read.
        samples: take only the first so many.
        keep_nodata: yield samples with NaN instead of refusing them (public datasets).

    Raises:
        DataError: naming the folder at fault and the cure.
    """

    name = "tfds"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
        keep_nodata: bool = False,
    ):
        folder = _version_folder(Path(path))
        self._folder, self._tile, self._keep_nodata = folder, tile, keep_nodata
        builder = _builder(folder)
        self._public = PUBLIC.get(f"{builder.name}/{builder.builder_config.name if builder.builder_config else ''}")
        features = builder.info.features or {}
        if self._public is None and not {"key", "rasters", "transform"} <= set(features):
            known = ", ".join(PUBLIC)
            raise DataError(f"{folder} was not written by data_pipelines.tfds, and is none of {known}")
        splits = list(builder.info.splits)
        try:
            self._parts = {name: builder.as_data_source(name) for name in splits}
        except (NotImplementedError, ValueError, OSError) as error:
            raise DataError(f"{folder} cannot be read at random ({error}); build it as array_record") from error
        ends = np.cumsum([len(part) for part in self._parts.values()] or [0])
        self._ends = ends if samples is None else np.minimum(ends, samples)
        if not len(self):
            raise DataError(f"{folder} holds no samples; build it again")
        present = [self._public.modality] if self._public else _rasters(features["rasters"])
        self._used = wanted_modalities(modalities, present, str(folder))
        with ThreadPoolExecutor(_THREADS) as pool:
            rows = list(pool.map(self._describe, range(len(self))))
        keys, lon, lat = zip(*rows, strict=True)
        self.index = Index.at(keys, np.array(lon), np.array(lat))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the dataset and the example that is corrupt.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        i %= len(self)
        with reading(f"{self._folder} example {i}"):
            return self._sample(i)

    def _sample(self, i: int) -> Sample:
        example, split = self._example(i)
        sample = self._public_sample(example, i) if self._public else self._own_sample(example)
        if self._tile is not None and min(sample.shape) < self._tile:
            raise DataError(f"{self._folder} example {i} is {sample.shape} pixels, smaller than tile={self._tile}")
        return Sample(**{**vars(sample), "attributes": {**sample.attributes, "split": split}})

    def _own_sample(self, example: Mapping[str, Any]) -> Sample:
        from data_pipelines.tfds.builder import to_sample

        sample = to_sample(example)
        return Sample(**{**vars(sample), "rasters": {name: sample.rasters[name] for name in self._used}})

    def _public_sample(self, example: Mapping[str, Any], i: int) -> Sample:
        assert self._public is not None
        known, where = self._public, f"{self._folder} example {i}"
        array = np.moveaxis(np.asarray(example[known.feature]), -1, 0)
        if known.unit is Unit.DN10000:
            array = np.rint(array).astype(np.int32)
        raster = to_raster(
            known.modality, array, where, bands=known.bands, unit=known.unit, keep_nodata=self._keep_nodata
        )
        label = example[known.label]
        return Sample(
            key=str(self.index.keys[i]),
            rasters={known.modality: raster},
            lon=float("nan"),
            lat=float("nan"),
            epsg=0,
            transform=(10.0, 0.0, 0.0, 0.0, -10.0, 0.0),
            source=self.name,
            attributes={"label": label.item() if isinstance(label, np.generic) else label},
        )

    def _describe(self, i: int) -> tuple[str, float, float]:
        example, _ = self._example(i)
        if self._public:
            return _text(example[self._public.key]), np.nan, np.nan
        return _text(example["key"]), float(example["lon"]), float(example["lat"])

    def _example(self, i: int) -> tuple[Mapping[str, Any], str]:
        part = int(np.searchsorted(self._ends, i, side="right"))
        first = int(self._ends[part - 1]) if part else 0
        split = list(self._parts)[part]
        try:
            return self._parts[split][i - first], split
        except (RuntimeError, ValueError, IndexError, KeyError, OSError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise DataError(f"{self._folder} example {i} cannot be read ({reason}); build it again") from error


def _builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{folder} is no whole TFDS dataset ({reason}); build it again") from error


def _version_folder(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; give one that TFDS wrote (it holds dataset_info.json)")
    found = sorted(file.parent for file in path.glob("**/dataset_info.json"))
    if len(found) != 1:
        held = ", ".join(str(folder.relative_to(path)) for folder in found) or "none"
        raise DataError(f"{path} holds {len(found)} TFDS datasets ({held}); give the folder of one version")
    return found[0]


def _rasters(features: Mapping[str, Any]) -> list[str]:
    found = {name.rpartition("_")[0] for name in features}
    return [name for name in MODALITIES if name in found]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
