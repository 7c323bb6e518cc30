"""A TFDS builder of labelled sets, as GEO-Bench has them: images with a class, several classes, or a mask."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, MODALITIES, Unit
from data_pipelines.radiometry import to_10m
from data_pipelines.sample import Sample
from data_pipelines.sources import Source
from data_pipelines.tfds.builder import EarthSamples, tensor, to_example


class LabelledEarth(EarthSamples, skip_registration=True):  # type: ignore[call-arg]
    """Writes the samples of a source with their labels as a TFDS dataset, for classification or segmentation.

        source = open_source("tortilla", path="benv2.tortilla")
        builder = LabelledEarth(source=source, target="labels", data_dir=folder)
        builder.download_and_prepare()
        example = builder.as_data_source("train")[0]  # example["labels"] says which of builder.info.metadata["classes"]

    An example is that of `EarthSamples` with all bands at 10 m, and one of "label" (number of the class), "labels"
    ((classes,) bool) or "mask" ((y, x) uint8, the class of each pixel). `info.metadata["classes"]` names them. Splits
    are the benchmark's own (the column "data_split" of the index) where it has some, else those of the regions.

    Args:
        source: whose samples have the same modalities and size, and the target.
        target: what is learnt: an attribute of the samples (one class, or a JSON list of several), or a modality of
            classes, which then is no input.
        classes: their names, in order; None: those that occur, in alphabetical order, or land cover's.
        licence: of the data.
        **options: of TFDS builders, first of all `data_dir`.

    Raises:
        DataError: if a sample has no such target, or one of another kind, or a class that is not listed.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS reads it from the class)
    code_path = epath.Path(__file__)

    def __init__(
        self, *, source: Source, target: str, classes: Sequence[str] | None = None, licence: str = "", **options: Any
    ):
        self._target, self._is_mask = target, target in MODALITIES
        if self._is_mask and MODALITIES[target].unit is not Unit.CLASS:
            raise DataError(f"target {target} holds {MODALITIES[target].unit.value}, not classes; choose LULC")
        first = _target_of(source[0], target)
        self._is_list = isinstance(first, list)
        self._classes = tuple(classes or (LAND_COVER if self._is_mask else _classes_of(source, target)))
        super().__init__(source=source, licence=licence, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        return tfds.core.DatasetInfo(
            builder=self,
            description=info.description,
            features=info.features,
            license=self._licence,
            metadata=tfds.core.MetadataDict(classes=list(self._classes), target=self._target),
        )

    def _features(self, first: Sample) -> dict[str, Any]:
        sample = self._inputs(first)
        features = super()._features(sample)
        if self._is_mask:
            return {**features, "mask": tensor(sample.shape, np.uint8)}
        if self._is_list:
            return {**features, "labels": tensor((len(self._classes),), np.bool_)}
        return {**features, "label": tfds.features.ClassLabel(names=list(self._classes))}

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        index = self._source.index
        splits = index.column("data_split" if "data_split" in index.columns else "split")
        return {str(split): self._generate_examples(np.flatnonzero(splits == split)) for split in np.unique(splits)}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in indices:
            sample = self._source[int(i)]
            target = _target_of(sample, self._target)
            example = to_example(self._inputs(sample))
            if self._is_mask:
                example["mask"] = target.astype(np.uint8)
            elif self._is_list != isinstance(target, list):
                raise DataError(f"sample {sample.key}: {self._target} is one class here and a list elsewhere")
            else:
                numbers = [self._number(sample.key, name) for name in (target if self._is_list else [target])]
                example["labels" if self._is_list else "label"] = (
                    np.isin(np.arange(len(self._classes)), numbers) if self._is_list else numbers[0]
                )
            yield sample.key, example

    def _inputs(self, sample: Sample) -> Sample:
        rasters = {name: to_10m(name, raster) for name, raster in sample.rasters.items() if name != self._target}
        return replace(sample, rasters=rasters)

    def _number(self, key: str, name: Any) -> int:
        if str(name) not in self._classes:
            raise DataError(f"sample {key}: {self._target} is {name!r}, not one of {', '.join(self._classes)}")
        return self._classes.index(str(name))


def _target_of(sample: Sample, target: str) -> Any:
    """A mask (y, x), a list of names, or one name.

    Raises:
        DataError: if the sample has none.
    """
    if target in MODALITIES:
        if target not in sample.rasters:
            raise DataError(
                f"sample {sample.key} has no {target} to be its mask; leave it out, or choose another target"
            )
        return sample.rasters[target].grids[10][0]
    if target not in sample.attributes:
        known = ", ".join(sample.attributes) or "none"
        raise DataError(f"sample {sample.key} has no attribute {target!r} to be its target; it has {known}")
    value = sample.attributes[target]
    if isinstance(value, str) and value.startswith("["):
        return [str(name) for name in json.loads(value)]
    return str(value)


def _classes_of(source: Source, target: str) -> list[str]:
    """All that occur; from the index where it has them, else from the samples one by one."""
    if target in source.index.further:
        values = (json.loads(v) if v.startswith("[") else v for v in map(str, source.index.further[target]))
    else:
        values = (_target_of(source[i], target) for i in range(len(source)))
    return sorted({str(name) for value in values for name in (value if isinstance(value, list) else [value])})
