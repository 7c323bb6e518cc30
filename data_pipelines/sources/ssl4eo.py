"""Samples from SSL4EO-S12 v1.1 as it is released: zipped zarr batches of 64 places with four dates each.

    <path>/[train/ or val/]<MODALITY>/*_NNNNNN.zarr.zip

The files of one number hold the same places in every modality. The corpus is of Sentinel-2's processing baseline 4:
both products carry an offset of 1000 digital numbers, which `terra-jax audit` finds.

Source: Blumenstiel et al., SSL4EOS12 v1.1: A Multimodal, Multiseasonal Dataset for Pretraining, 2025.
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import ALIASES, MODALITIES
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.assembly import (
    decode_times,
    reading,
    to_raster,
    transform_of_axes,
    wanted_modalities,
)
from data_pipelines.storage import Storage
from data_pipelines.zarr_zip import ZarrZip

_SUFFIX = ".zarr.zip"
_OPEN = 512  # files whose directories stay in memory
_FRAMES = 4  # decoded chunks that hold one date of many places stay in memory, of each modality
_THREADS = 8


@dataclass(frozen=True)
class _Batch:
    """The files of one number, and the places in them."""

    files: dict[str, str]  # modality -> path
    places: np.ndarray
    lon: np.ndarray
    lat: np.ndarray
    dates: int


class Ssl4eoSource:
    """Random access to SSL4EO-S12's batches, in place.

    Args:
        path: folder or fsspec URL of the corpus or of one of its splits.
        modalities: read these; None reads what there is. Batches that lack one stay in without it.
        tile: least side of the samples in 10 m pixels, checked as they are read.
        samples: take only the first so many.
        series: one sample a place, its rasters (time, band, y, x); else one sample a place and date, keyed as the
            corpus does (`0194630_1`).
        keep_nodata: yield samples with NaN instead of refusing them.

    Raises:
        DataError: naming the file or folder at fault and the cure.
    """

    name = "ssl4eo"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
        series: bool = False,
        keep_nodata: bool = False,
    ):
        self._storage = Storage(path)
        where = self._storage.name(self._storage.root)
        files = self._storage.files(depth=3)
        batches = _files_by_number(list(files))
        present = tuple(name for name in MODALITIES if any(name in batch for batch in batches.values()))
        if not present:
            raise DataError(f"{where} holds no <MODALITY>/*{_SUFFIX}; give the folder of SSL4EO-S12 or of a split")
        self._used = wanted_modalities(modalities, present, where)
        self._sizes = {file: size for file, (size, _) in files.items()}
        self._tile, self._series, self._keep_nodata = tile, series, keep_nodata
        self._group = functools.lru_cache(maxsize=_OPEN)(self._open)
        self._frame = functools.lru_cache(maxsize=_FRAMES * len(self._used))(self._decode_frame)
        held = [{name: batch[name] for name in self._used if name in batch} for batch in batches.values()]
        with ThreadPoolExecutor(_THREADS) as pool:
            self._batches = list(pool.map(self._describe, [batch for batch in held if batch]))
        rows = [
            (b, row, date)
            for b, batch in enumerate(self._batches)
            for row in range(len(batch.places))
            for date in ([-1] if series else range(batch.dates))
        ]
        self._rows = np.asarray(rows[:samples], np.int64).reshape(-1, 3)
        keys = [self._key(*row) for row in self._rows.tolist()]
        if len(set(keys)) != len(keys):
            raise DataError(f"{where} holds some places twice; give one split")
        lon = np.array([self._batches[b].lon[row] for b, row, _ in self._rows.tolist()])
        lat = np.array([self._batches[b].lat[row] for b, row, _ in self._rows.tolist()])
        self.index = Index.at(keys, lon, lat)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the file that is truncated, corrupt or not of its modality.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        with reading(f"sample {self.index.keys[i]} of {self._storage.name(self._storage.root)}"):
            return self._sample(i % len(self))

    def _sample(self, i: int) -> Sample:
        b, row, date = self._rows[i].tolist()
        batch = self._batches[b]
        rasters = {name: self._raster(name, file, row, date) for name, file in batch.files.items()}
        group = self._group(next(iter(batch.files.values())))
        shape = next(iter(rasters.values())).grids[10].shape[-2:]
        if self._tile is not None and min(shape) < self._tile:
            raise DataError(f"{group.name} has tiles of {shape[1]} x {shape[0]} pixels, smaller than tile={self._tile}")
        missing = ",".join(name for name in self._used if name not in rasters)
        return Sample(
            key=str(self.index.keys[i]),
            rasters=rasters,
            lon=float(self.index.lon[i]),
            lat=float(self.index.lat[i]),
            epsg=int(group.read("crs", row)),
            transform=transform_of_axes(group.read("x_", row), group.read("y_", row), group.name),
            source=self.name,
            attributes={"place": str(batch.places[row]), **({"missing": missing} if missing else {})},
        )

    def _raster(self, name: str, file: str, row: int, date: int) -> Raster:
        group = self._group(file)
        where = f"{group.name} place {row}"
        array = np.stack([self._frame_of(file, row, d) for d in self._dates(group, date)])
        times = decode_times(group.read("time_", row), group.attributes("time_"), f"{group.name}: time_")
        bands = [str(band) for band in group.read("band").reshape(-1)]
        return to_raster(
            name,
            array if date < 0 else array[0],
            where,
            bands=bands,
            time=times if date < 0 else times[date],
            keep_nodata=self._keep_nodata,
        )

    def _frame_of(self, file: str, row: int, date: int) -> np.ndarray:
        """(band, y, x) of a place at a date; chunks that hold many places are decoded once for all of them."""
        group = self._group(file)
        if group.info("bands").chunks[0] == 1:
            return group.read("bands", row, date)
        return self._frame(file, date)[row]

    def _decode_frame(self, file: str, date: int) -> np.ndarray:
        return self._group(file).read("bands", None, date)

    def _open(self, file: str) -> ZarrZip:
        read = functools.partial(self._storage.read, file)
        return ZarrZip(read, self._sizes[file], self._storage.name(file))

    def _describe(self, files: dict[str, str]) -> _Batch:
        with reading(", ".join(self._storage.name(file) for file in files.values())):
            return self._describe_files(files)

    def _describe_files(self, files: dict[str, str]) -> _Batch:
        groups = {name: self._group(file) for name, file in files.items()}
        first = next(iter(groups.values()))
        places = first.read("sample").astype(np.str_)
        for name, group in groups.items():
            shape, dims = group.info("bands").shape, group.attributes("bands").get("_ARRAY_DIMENSIONS", _DIMS)
            if tuple(dims) != _DIMS or len(shape) != 5:
                raise DataError(f"{group.name}: bands has the dimensions {dims}, expected {', '.join(_DIMS)}")
            if not np.array_equal(group.read("sample").astype(np.str_), places) or shape[0] != len(places):
                raise DataError(f"{group.name} holds other places than {first.name}; fetch {name} again")
        lon, lat = (first.read(f"center_{axis}").astype(np.float64).reshape(-1) for axis in ("lon", "lat"))
        if not len(lon) == len(lat) == len(places):
            raise DataError(f"{first.name} has {len(lon)} centres for {len(places)} places; fetch it again")
        return _Batch(files, places, lon, lat, first.info("bands").shape[1])

    @staticmethod
    def _dates(group: ZarrZip, date: int) -> Sequence[int]:
        return range(group.info("bands").shape[1]) if date < 0 else (date,)

    def _key(self, batch: int, row: int, date: int) -> str:
        place = str(self._batches[batch].places[row])
        return place if date < 0 else f"{place}_{date}"


_DIMS = ("sample", "time", "band", "y", "x")


def _files_by_number(files: list[str]) -> dict[str, dict[str, str]]:
    """Split and file name -> modality -> path."""
    found: dict[str, dict[str, str]] = {}
    for path in files:
        folder, _, base = path.rpartition("/")
        split, _, name = folder.rpartition("/")
        name = ALIASES.get(name, name)
        if base.endswith(_SUFFIX) and name in MODALITIES:
            found.setdefault(f"{split}/{base}", {})[name] = path
    return found
