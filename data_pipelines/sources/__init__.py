"""Random-access readers of samples, one format a module, opened by name with `open_source`."""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipelines import grid
from data_pipelines.errors import DataError
from data_pipelines.sample import Sample

# Name -> class and the options of `open_source` that it takes. Modules are imported when their source is opened.
_FILES = ("path", "modalities", "tile", "samples")
_SOURCES = {
    "procedural": ("data_pipelines.sources.procedural:ProceduralEarth", ("samples", "tile", "seed", "modalities")),
    "procedural_series": (
        "data_pipelines.sources.procedural.series:ProceduralSeries",
        ("samples", "tile", "seed", "modalities", "frames"),
    ),
    "geotiff": ("data_pipelines.sources.geotiff:GeoTiffSource", (*_FILES, "check")),
    "geotiff_series": ("data_pipelines.sources.geotiff_series:GeoTiffSeriesSource", _FILES),
    "records": ("data_pipelines.sources.records:RecordsSource", _FILES),
    "terramesh": ("data_pipelines.sources.terramesh:TerraMeshSource", (*_FILES, "cache", "keep_nodata")),
    "ssl4eo": ("data_pipelines.sources.ssl4eo:Ssl4eoSource", (*_FILES, "series", "keep_nodata")),
    "majortom": ("data_pipelines.sources.majortom:MajorTomSource", (*_FILES, "keep_nodata")),
    "tortilla": ("data_pipelines.sources.tortilla:TortillaSource", (*_FILES, "keep_nodata")),
    "xarray": ("data_pipelines.sources.array_store:ArrayStoreSource", (*_FILES, "keep_nodata")),
    "tfds": ("data_pipelines.sources.tfds_source:TfdsSource", (*_FILES, "keep_nodata")),
}

SOURCES = tuple(_SOURCES)
"""Names that `open_source` knows."""


@dataclass(frozen=True)
class Index:
    """What is known of every sample without touching pixels: columns of equal length.

    Attributes:
        keys: unique names, str.
        lon, lat: centres, degrees, float64.
        region: `grid.region_of` the centres, int32.
        split: "train", "val" or "test", str.
        scene: dominant class, an index into `modalities.SCENE_CLASSES`, int8; -1 where unknown.
        further: name -> what else the source knows: "cloud" in percent (NaN where unknown), "time", ...
    """

    keys: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    region: np.ndarray
    split: np.ndarray
    scene: np.ndarray
    further: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in {**self.own, **self.further}.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"columns of an index differ in length: {lengths}")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def own(self) -> dict[str, np.ndarray]:
        """The columns that every index has, by name."""
        return {name: column for name, column in vars(self).items() if name != "further"}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that `column` knows."""
        return ("key", "lon", "lat", "region", "climate", "split", "scene", *self.further)

    def column(self, name: str) -> np.ndarray:
        """A column by name; "climate" is `grid.climate_of` the latitudes.

        Raises:
            DataError: if there is none, naming those that there are.
        """
        if name not in self.columns:
            raise DataError(f"unknown column {name!r} of the index; it has {', '.join(self.columns)}")
        if name == "climate":
            return grid.climate_of(self.lat)
        return self.further[name] if name in self.further else self.own["keys" if name == "key" else name]

    def take(self, positions: np.ndarray | Sequence[int]) -> "Index":
        """The rows at some positions."""
        rows = np.asarray(positions, np.int64)
        further = {name: column[rows] for name, column in self.further.items()}
        return Index(**{name: column[rows] for name, column in self.own.items()}, further=further)

    @classmethod
    def at(
        cls,
        keys: Sequence[str],
        lon: np.ndarray,
        lat: np.ndarray,
        scene: np.ndarray | None = None,
        split_seed: int = 0,
        further: Mapping[str, np.ndarray] | None = None,
    ) -> "Index":
        """Index of samples at known places; regions and splits follow from them."""
        lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        return cls(
            keys=np.asarray(keys, dtype=np.str_),
            lon=lon,
            lat=lat,
            region=grid.region_of(lon, lat),
            split=grid.assign_splits(lon, lat, split_seed),
            scene=np.full(len(lon), -1, np.int8) if scene is None else np.asarray(scene, np.int8),
            further=further or {},
        )


@runtime_checkable
class Source(Protocol):
    """Samples by position. Reading is a pure function of the position and safe from several threads."""

    name: str
    index: Index

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the file at fault and the cure.
        """


def open_source(
    name: str,
    *,
    path: str = "",
    modalities: Sequence[str] | None = None,
    tile: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    cache: str | None = None,
    series: bool = False,
    keep_nodata: bool = False,
    frames: Mapping[str, int] | None = None,
    check: bool = True,
) -> Source:
    """Open a source by name.

    Args:
        name: one of `SOURCES`.
        path: folder of the data, where the source reads files; most take an fsspec URL too.
        modalities: what every sample must have; None takes what there is.
        tile: side of the tiles in 10 m pixels: made so by the procedural Earth, the least that files may have.
        samples: size of the procedural Earth; of files, take only the first so many.
        seed: of the procedural Earth.
        cache: folder in which archives' indices are kept between runs (TerraMesh).
        series: all dates of a place in one sample (SSL4EO-S12).
        keep_nodata: yield samples with no-data pixels (NaN) where a corpus has them, instead of refusing them.
        frames: series -> most frames, of the procedural Earth's series.
        check: refuse a folder of GeoTIFFs if a header shows that a file is wrong; False is for an audit.

    Raises:
        DataError: if the name is unknown, with the nearest known ones, or the source cannot be opened.
    """
    if name not in _SOURCES:
        near = difflib.get_close_matches(name, _SOURCES, n=2) or tuple(_SOURCES)
        raise DataError(f"unknown data source {name!r}; did you mean {' or '.join(near)}?")
    target, takes = _SOURCES[name]
    module, _, attribute = target.partition(":")
    options: dict[str, Any] = {"path": path or None, "modalities": modalities, "tile": tile, "samples": samples}
    options |= {"seed": seed, "cache": cache, "series": series, "keep_nodata": keep_nodata, "frames": frames}
    options["check"] = check
    given = {option: value for option, value in options.items() if value is not None}
    if "path" in takes and not path:
        raise DataError(f"data source {name!r} needs a path: the folder that holds the data")
    return getattr(importlib.import_module(module), attribute)(**{k: v for k, v in given.items() if k in takes})
