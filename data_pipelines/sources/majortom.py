"""Samples from Major TOM Core as it is released: parquet files whose columns hold one-band GeoTIFFs, joined by cell.

    <path>/Core-<MODALITY>/images/part_NNNNN.parquet      one row a row group and sample, a column a band
    <path>/Core-<MODALITY>/metadata.parquet               optional: where each cell is, which part and row holds it

Sentinel-2 comes on its native grids. Sentinel-1 RTC is power here, in decibels elsewhere: it is converted. Elevation
of 30 m pixels is repeated to 10 m.

Source: Francis and Czerkawski, Major TOM: Expandable Datasets for Earth Observation, 2024.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.errors import DataError
from data_pipelines.modalities import MODALITIES, Unit, modality
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.assembly import (
    check_complete,
    converted,
    reading,
    scene_of,
    stored,
    to_raster,
    wanted_modalities,
)
from data_pipelines.sources.geotiff_bytes import Picture, decode_geotiff
from data_pipelines.storage import Storage

UNITS = {"S1RTC": Unit.LINEAR}
"""Units of this corpus where they are not the modality table's."""

_FOLDER = re.compile(r"(?:Core-)?(\w+)")
_METADATA = "metadata.parquet"
_DESCRIPTION = ("grid_cell", "product_id", "timestamp", "cloud_cover", "nodata", "centre_lat", "centre_lon")
_OPEN = 8  # parquet files that a thread keeps open
_THREADS = 8
_ELEVATION = ("DEM", "elevation")  # names that its column goes by


class MajorTomSource:
    """Random access to Major TOM's parquet files, in place. The key of a sample is its grid cell.

    Of several products of one cell and modality the least cloudy is read. Cells that lack a modality stay in: what
    is absent is told by `present`, and by the attribute "missing" of the sample.

    Args:
        path: folder or fsspec URL that holds `Core-<MODALITY>/` folders.
        modalities: read these; None reads what there is.
        tile: least side of the samples in 10 m pixels, checked as they are read.
        samples: take only the first so many.
        keep_nodata: yield samples with NaN instead of refusing them.

    Attributes:
        present: modality -> (samples,) bool.

    Raises:
        DataError: naming the file or folder at fault and the cure.
    """

    name = "majortom"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
        keep_nodata: bool = False,
    ):
        self._storage = Storage(path)
        where = self._storage.name(self._storage.root)
        parts, tables = _find(self._storage.files(depth=4))
        if not parts:
            raise DataError(f"{where} holds no Core-<MODALITY>/images/*.parquet; give Major TOM's folder")
        self._used = wanted_modalities(modalities, tuple(parts), where)
        self._tile, self._keep_nodata = tile, keep_nodata
        self._parquet = _ParquetFiles(self._storage)
        rows = {name: self._rows(parts[name], tables.get(name)) for name in self._used}
        cells = list(dict.fromkeys(cell for name in self._used for cell in rows[name]))[:samples]
        if not cells:
            raise DataError(f"{where} holds no samples in its parquet files; fetch some parts")
        self._found = [{name: rows[name][cell] for name in self._used if cell in rows[name]} for cell in cells]
        self.present = {name: np.array([name in found for found in self._found]) for name in self._used}
        firsts = [next(iter(found.values())) for found in self._found]
        lon, lat = (np.array([float(row[f"centre_{axis}"]) for row in firsts]) for axis in ("lon", "lat"))
        cloud = [next((_clouds(row) for name, row in f.items() if name.startswith("S2")), np.inf) for f in self._found]
        further = {"cloud": np.where(np.isfinite(cloud), cloud, np.nan), **self.present}
        self.index = Index.at(cells, lon, lat, further=further)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the file and row that is truncated, corrupt or not of its modality.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        with reading(f"cell {self.index.keys[i]} of {self._storage.name(self._storage.root)}"):
            return self._sample(i % len(self))

    def _sample(self, i: int) -> Sample:
        rasters: dict[str, Raster] = {}
        reference: Picture | None = None
        described: dict[str, Any] = {}
        for name, row in self._found[i].items():
            pictures, where = self._pictures(name, row)
            first = next(iter(pictures.values()))
            table = modality(name)
            fine = next((p for band, p in pictures.items() if table.bands[table.band_index(band)].gsd == 10), first)
            if reference is None and name != "DEM":
                reference = fine
            base = reference or fine
            for picture in pictures.values():
                _check_place(picture, base, where)
            rasters[name] = self._raster(name, pictures, base.array.shape[-2:], row, where)
            described = {**_described(row), **described}
        reference = reference or fine
        if reference.epsg is None:
            raise DataError(f"{where} has no coordinate system with an EPSG code; fetch it again")
        a, _, c, _, e, f = reference.transform
        if abs(a - 10) > 0.1 or abs(e + 10) > 0.1:
            raise DataError(f"{where} has pixels of {a:g} x {e:g}; expected a north-up grid of 10 m")
        shape = reference.array.shape[-2:]
        if self._tile is not None and min(shape) < self._tile:
            raise DataError(f"{where} is {shape[1]} x {shape[0]} pixels, smaller than tile={self._tile}")
        missing = ",".join(name for name in self._used if name not in rasters)
        return Sample(
            key=str(self.index.keys[i]),
            rasters=rasters,
            lon=float(self.index.lon[i]),
            lat=float(self.index.lat[i]),
            epsg=reference.epsg,
            transform=(10.0, 0.0, c, 0.0, -10.0, f),
            source=self.name,
            attributes={**described, **scene_of(rasters), **({"missing": missing} if missing else {})},
        )

    def _pictures(self, name: str, row: Mapping[str, Any]) -> tuple[dict[str, Picture], str]:
        """Band -> decoded GeoTIFF, in the table's order, and what messages call the row."""
        path, number = row["path"], row["row"]
        where = f"{self._storage.name(path)} row {number}"
        columns = _band_columns(name, self._parquet.columns(path), where)
        held = self._parquet.row(path, number, tuple(columns.values()))
        pictures = {}
        for band, column in columns.items():
            if not isinstance(held[column], bytes):
                raise DataError(f"{where} column {column} holds no GeoTIFF; fetch it again")
            pictures[band] = decode_geotiff(held[column], f"{where} column {column}")
            if len(pictures[band].array) != 1:
                raise DataError(f"{where} column {column} has {len(pictures[band].array)} bands, expected 1")
        return pictures, where

    def _raster(
        self, name: str, pictures: Mapping[str, Picture], shape: tuple[int, int], row: Mapping[str, Any], where: str
    ) -> Raster:
        table, time = modality(name), _parse_time(row.get("timestamp"), where)
        unit = UNITS.get(name, table.unit)
        arrays = {band: _without_nodata(picture) for band, picture in pictures.items()}
        if len(table.grids) == 1:
            array = np.concatenate([_at_10m(array, shape, where) for array in arrays.values()])
            return to_raster(name, array, where, unit=unit, time=time, keep_nodata=self._keep_nodata)
        grids = {}
        for gsd, bands in table.grids.items():
            expected = tuple(-(-side * 10 // gsd) for side in shape)
            images = [arrays[table.bands[i].name] for i in bands]
            if any(image.shape[-2:] != expected for image in images):
                held = ", ".join(str(image.shape[-2:]) for image in images)
                raise DataError(f"{where}: {name} has {held} pixels at {gsd} m, expected {expected}; fetch it again")
            array = converted(name, np.concatenate(images), where, unit)
            check_complete(name, array, where, self._keep_nodata)
            grids[gsd] = stored(name, array, where)
        return Raster(grids, table.unit, time)

    def _rows(self, parts: Sequence[str], table: str | None) -> dict[str, dict[str, Any]]:
        """Cell -> where its data is and what is said of it."""
        found: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            listed = [self._from_table(table, parts)] if table else list(pool.map(self._from_part, parts))
        for row in (row for rows in listed for row in rows):
            cell = str(row["grid_cell"])
            if cell not in found or _clouds(row) < _clouds(found[cell]):
                found[cell] = row
        return found

    def _from_table(self, table: str, parts: Sequence[str]) -> list[dict[str, Any]]:
        held = {path.rpartition("/")[2]: path for path in parts}
        wanted = ("parquet_url", "parquet_row", *_DESCRIPTION)
        rows = []
        for row in self._parquet.rows(table, wanted, required=(*wanted[:2], *_REQUIRED)):
            path = held.get(str(row.pop("parquet_url")).rpartition("/")[2])
            if path is not None:
                rows.append({**row, "path": path, "row": int(row.pop("parquet_row"))})
        return rows

    def _from_part(self, path: str) -> list[dict[str, Any]]:
        rows = self._parquet.rows(path, _DESCRIPTION, required=_REQUIRED)
        return [{**row, "path": path, "row": n} for n, row in enumerate(rows)]


_REQUIRED = ("grid_cell", "centre_lat", "centre_lon")


class _ParquetFiles:
    """Parquet files by path: each thread has its own handles, as pyarrow's must not be shared by threads."""

    def __init__(self, storage: Storage):
        self._storage = storage
        self._threads = threading.local()
        self._footers: dict[str, pq.FileMetaData] = {}
        self._ends: dict[str, np.ndarray] = {}  # of the row groups

    def columns(self, path: str) -> tuple[str, ...]:
        """Names of a file's columns."""
        with self._named(path):
            return tuple(self._file(path).schema_arrow.names)

    def rows(self, path: str, columns: Iterable[str], required: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows, with those of the columns that there are."""
        present = self.columns(path)
        for name in required:
            if name not in present:
                raise DataError(f"{self._storage.name(path)} has no column {name!r}; fetch it again")
        with self._named(path):
            yield from self._file(path).read([n for n in columns if n in present], use_threads=False).to_pylist()

    def row(self, path: str, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Some columns of one row."""
        with self._named(path):
            file = self._file(path)
            ends = self._ends[path]
            group = int(np.searchsorted(ends, number, side="right"))
            if not 0 <= number < ends[-1]:
                raise DataError(f"{self._storage.name(path)} has {ends[-1]} rows, no row {number}; fetch it again")
            first = int(ends[group - 1]) if group else 0
            return file.read_row_group(group, list(columns), use_threads=False).slice(number - first, 1).to_pylist()[0]

    def _file(self, path: str) -> pq.ParquetFile:
        held: OrderedDict[str, pq.ParquetFile] = self._threads.__dict__.setdefault("files", OrderedDict())
        if path not in held:
            held[path] = pq.ParquetFile(self._storage.open(path), metadata=self._footers.get(path))
            footer = self._footers.setdefault(path, held[path].metadata)
            groups = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
            self._ends.setdefault(path, np.cumsum(groups or [0]))
            if len(held) > _OPEN:
                held.popitem(last=False)[1].close(force=True)
        held.move_to_end(path)
        return held[path]

    @contextmanager
    def _named(self, path: str) -> Iterator[None]:
        """Whatever pyarrow raises, as one line that names the file."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0].partition(". Detail")[0]
            raise DataError(f"{self._storage.name(path)} cannot be read ({reason}); fetch it again") from error


def _find(files: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Modality -> parts, and modality -> table of metadata."""
    parts: dict[str, list[str]] = {}
    tables: dict[str, str] = {}
    for path in files:
        *folders, base = path.split("/")
        names = [match[1] for folder in folders[-3:] if (match := _FOLDER.fullmatch(folder)) and match[1] in MODALITIES]
        if not names or not base.endswith(".parquet"):
            continue
        if base == _METADATA:
            tables[names[-1]] = path
        else:
            parts.setdefault(names[-1], []).append(path)
    return parts, tables


def _band_columns(name: str, columns: Sequence[str], where: str) -> dict[str, str]:
    """Band -> column, in the table's order."""
    known = {column.lower(): column for column in columns}
    aliases = _ELEVATION if name == "DEM" else ()
    found = {}
    for band in modality(name).band_names:
        column = next((known[alias.lower()] for alias in (band, *aliases) if alias.lower() in known), None)
        if column is None:
            raise DataError(f"{where} has no column for band {band} of {name}; it has {', '.join(columns)}")
        found[band] = column
    return found


def _check_place(picture: Picture, reference: Picture, where: str) -> None:
    if picture.epsg != reference.epsg:
        raise DataError(f"{where} is in EPSG:{picture.epsg}, its cell in EPSG:{reference.epsg}; reproject one of them")
    shift = max(abs(picture.transform[k] - reference.transform[k]) for k in (2, 5))
    if shift >= 10:
        raise DataError(f"{where} lies {shift:.0f} m off the cell's other images; leave it out")


def _without_nodata(picture: Picture) -> np.ndarray:
    """Floating-point pixels with NaN where the file says that there is no data."""
    array = picture.array
    if array.dtype.kind != "f" or picture.nodata is None or np.isnan(picture.nodata):
        return array
    return np.where(array == array.dtype.type(picture.nodata), array.dtype.type(np.nan), array)


def _at_10m(array: np.ndarray, shape: tuple[int, int], where: str) -> np.ndarray:
    """An image whose pixels are a whole number of 10 m wide, repeated to 10 m."""
    step = -(-shape[0] // array.shape[-2])
    if any(-(-side // step) != held for side, held in zip(shape, array.shape[-2:], strict=True)):
        raise DataError(f"{where} is {array.shape[-2:]} pixels, which do not fit the {shape} of its cell; leave it out")
    return array.repeat(step, -2).repeat(step, -1)[..., : shape[0], : shape[1]] if step > 1 else array


def _clouds(row: Mapping[str, Any]) -> float:
    value = row.get("cloud_cover")
    return float(value) if value is not None else np.inf


def _described(row: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: row[name] for name in ("product_id", "nodata") if row.get(name) is not None}
    return kept | ({"cloud_fraction": float(row["cloud_cover"]) / 100} if row.get("cloud_cover") is not None else {})


def _parse_time(value: Any, where: str) -> np.datetime64 | None:
    if value is None:
        return None
    text = str(value)
    if re.fullmatch(r"\d{8}T\d{6}", text):  # as in product names
        text = f"{text[:4]}-{text[4:6]}-{text[6:8]}T{text[9:11]}:{text[11:13]}:{text[13:]}"
    try:
        return np.datetime64(text.removesuffix("Z").partition("+")[0].replace(" ", "T")).astype("datetime64[s]")
    except ValueError as error:
        raise DataError(f"{where} has the timestamp {text!r}; expected one like 20200131T120000") from error
