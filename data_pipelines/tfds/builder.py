"""A TFDS builder over any source of samples."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.radiometry import require
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Source

_NO_TIME = np.datetime64("NaT", "s").astype(np.int64)


class EarthSamples(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the samples of a source as a TFDS dataset in ArrayRecord files.

        builder = EarthSamples(source=source, data_dir=folder)
        builder.download_and_prepare()
        train = builder.as_data_source("train")        # random access; to_sample(train[0])

    An example holds "key", "lon", "lat", "epsg", "transform", "rasters" ("S2L2A_20": (band, y, x) on that grid) and
    "time" (seconds since 1970 by modality; the smallest int64 where there is none). Splits are those of the index.

    Args:
        source: whose samples all have the modalities and shapes of its first one, in the modality table's units.
        licence: of the data.
        **options: of TFDS builders, first of all `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS reads it from the class)

    # TFDS would look for this file through importlib_resources, which it does not declare for these Pythons.
    code_path = epath.Path(__file__)

    def __init__(self, *, source: Source, licence: str = "", **options: Any):
        self._source, self._licence = source, licence
        super().__init__(**{"file_format": "array_record", **options})

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Co-registered Earth-observation samples of the source {self._source.name}.",
            features=tfds.features.FeaturesDict(self._features(self._source[0])),
            license=self._licence,
        )

    def _features(self, first: Sample) -> dict[str, Any]:
        """Of the examples, as the first sample has them."""
        return {
            "key": tfds.features.Text(),
            "lon": tensor((), np.float64),
            "lat": tensor((), np.float64),
            "epsg": tensor((), np.int32),
            "transform": tensor((6,), np.float64),
            "rasters": {
                f"{name}_{gsd}": tensor(grid.shape, grid.dtype)
                for name, raster in first.rasters.items()
                for gsd, grid in raster.grids.items()
            },
            "time": {name: tensor((), np.int64) for name in first.rasters},
        }

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = self._source.index.split
        return {str(split): self._generate_examples(np.flatnonzero(splits == split)) for split in np.unique(splits)}

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
        for i in indices:
            sample = self._source[int(i)]
            yield sample.key, to_example(sample)


def to_sample(example: Mapping[str, Any]) -> Sample:
    """Sample of an example that a data source of `EarthSamples` yields."""
    grids: dict[str, dict[int, np.ndarray]] = {}
    for path, grid in example["rasters"].items():
        name, _, gsd = path.rpartition("_")
        grids.setdefault(name, {})[int(gsd)] = grid
    times = {name: int(time) for name, time in example["time"].items()}
    a, b, c, d, e, f = (float(value) for value in example["transform"])
    return Sample(
        key=example["key"].decode(),
        rasters={
            name: Raster(grids[name], modality(name).unit, None if time == _NO_TIME else np.datetime64(time, "s"))
            for name, time in times.items()
        },
        lon=float(example["lon"]),
        lat=float(example["lat"]),
        epsg=int(example["epsg"]),
        transform=(a, b, c, d, e, f),
        source="tfds",
    )


def tensor(shape: tuple[int, ...], dtype: Any) -> tfds.features.Tensor:
    """Kept as bytes: fast, and exact where TFDS's own encoding would round float64 to float32."""
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def to_example(sample: Sample) -> dict[str, Any]:
    """What `EarthSamples` writes of a sample.

    Raises:
        DataError: if a raster has another unit than the modality table says, or is a series.
    """
    rasters: dict[str, np.ndarray] = {}
    times: dict[str, np.ndarray] = {}
    for name, raster in sample.rasters.items():
        require(raster, modality(name).unit, f"{name} of sample {sample.key}")
        time = np.asarray(np.datetime64("NaT") if raster.time is None else raster.time)
        if time.ndim:
            raise DataError(f"sample {sample.key} has a time series of {name}; write it with data_pipelines.records")
        times[name] = time.astype("datetime64[s]").astype(np.int64)
        rasters |= {f"{name}_{gsd}": grid for gsd, grid in raster.grids.items()}
    return {
        "key": sample.key,
        "lon": np.float64(sample.lon),
        "lat": np.float64(sample.lat),
        "epsg": np.int32(sample.epsg),
        "transform": np.asarray(sample.transform, np.float64),
        "rasters": rasters,
        "time": times,
    }
