"""Labelled samples from tortilla files, as GEO-Bench-2 is released: GeoTIFFs in files in one file.

A tortilla is a header (mark, place of the footer), blobs, and a parquet footer that lists them; a sample is itself a
tortilla of one GeoTIFF an instrument. The georeference is the sample's own: the instruments' can be wrong (BENv2 says
60 m pixels of its Sentinel-2 images, which are all at 10 m).

Source: the files themselves; Simumba et al., GEO-Bench-2, 2025.
"""

import functools
import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.assembly import epsg_of, reading, to_raster, wanted_modalities
from data_pipelines.sources.geotiff_bytes import decode_geotiff
from data_pipelines.storage import Read, Storage, read_parquet

_HEADER = struct.Struct("<2s3Q")
_MARKS = (b"#y", b"WX")  # of a whole file, and of one part of several
_SUFFIX = ".tortilla"
_FOOTER_BYTES = 1 << 28
_FOOTERS = 4096  # of samples, that stay in memory
_TESTED = 16  # every so many-th pixel is compared between polarisations


@dataclass(frozen=True)
class Instrument:
    """What the images under one name in a sample are: the modality, and its bands as they lie in the file."""

    modality: str
    bands: tuple[str, ...]


INSTRUMENTS = {
    # The published loader calls the first band VV; on every sample that was looked at it is the weaker one.
    "s1": Instrument("S1GRD", ("VH", "VV")),
    "s2": Instrument("S2L2A", modality("S2L2A").band_names),
}
"""Name of an image in a sample -> what it is."""


class TortillaSource:
    """Random access to a tortilla file, or to the parts of one in a folder.

    Samples have the attributes "split" (the benchmark's own), "labels" (a JSON list, where there are any) and those
    of the footer that are plain values.

    Args:
        path: file or folder, or its fsspec URL.
        modalities: read these; None reads what the first sample has.
        tile: least side of the samples in 10 m pixels, checked as they are read.
        samples: take only the first so many.
        keep_nodata: yield samples with NaN instead of refusing them.
        instruments: what the images are; another benchmark's names and band orders go here.

    Raises:
        DataError: naming the file at fault and the cure.
    """

    name = "tortilla"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
        keep_nodata: bool = False,
        instruments: Mapping[str, Instrument] = INSTRUMENTS,
    ):
        self._storage = Storage(path)
        where = self._storage.name(self._storage.root)
        files = {f: size for f, (size, _) in self._storage.files(depth=2).items() if f.endswith(_SUFFIX)}
        if not files:
            raise DataError(f"{where} holds no *{_SUFFIX} file; give the benchmark's file or its folder")
        self._instruments, self._tile, self._keep_nodata = instruments, tile, keep_nodata
        self._rows = [row for file, size in files.items() for row in self._samples_of(file, size)][:samples]
        if not self._rows:
            raise DataError(f"{where} lists no samples; fetch it again")
        self._images = functools.lru_cache(maxsize=_FOOTERS)(self._read_images)
        held = [row["tortilla:id"] for row in self._images(0)]
        known = [instruments[name].modality for name in held if name in instruments]
        if not known:
            raise DataError(f"{where} holds images {', '.join(held)}; those that are read are {', '.join(instruments)}")
        self._used = wanted_modalities(modalities, known, where)
        keys = [str(row["tortilla:id"]) for row in self._rows]
        if len(set(keys)) != len(keys):
            keys = [f"{Path(row['file']).stem}/{key}" for row, key in zip(self._rows, keys, strict=True)]
        places = np.array([_place(row) for row in self._rows], np.float64).reshape(-1, 2)
        self.index = Index.at(keys, places[:, 0], places[:, 1], further=_columns(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the file and the image that is truncated, corrupt or not of its modality.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        with reading(f"sample {self.index.keys[i]} of {self._storage.name(self._storage.root)}"):
            return self._sample(i % len(self))

    def _sample(self, i: int) -> Sample:
        row = self._rows[i]
        where = f"{self._storage.name(row['file'])} sample {row['tortilla:id']}"
        rasters = {}
        for image in self._images(i):
            instrument = self._instruments.get(image["tortilla:id"])
            if instrument is not None and instrument.modality in self._used:
                rasters[instrument.modality] = self._raster(row, image, instrument, where)
        if not rasters:
            raise DataError(f"{where} has none of {', '.join(self._used)}; leave it out")
        shape = next(iter(rasters.values())).grids[10].shape[-2:]
        if self._tile is not None and min(shape) < self._tile:
            raise DataError(f"{where} is {shape[1]} x {shape[0]} pixels, smaller than tile={self._tile}")
        epsg = epsg_of(str(row.get("stac:crs")))
        transform = row.get("stac:geotransform")
        if epsg is None or not transform or len(transform) != 6:
            raise DataError(f"{where} has no georeference (stac:crs, stac:geotransform); fetch it again")
        c, a, b, f, d, e = (float(value) for value in transform)
        missing = ",".join(name for name in self._used if name not in rasters)
        return Sample(
            key=str(self.index.keys[i]),
            rasters={name: rasters[name] for name in self._used if name in rasters},
            lon=float(self.index.lon[i]),
            lat=float(self.index.lat[i]),
            epsg=epsg,
            transform=(a, b, c, d, e, f),
            source=self.name,
            attributes={**_attributes(row), **({"missing": missing} if missing else {})},
        )

    def _raster(self, row: Mapping[str, Any], image: Mapping[str, Any], instrument: Instrument, where: str) -> Raster:
        where = f"{where} image {image['tortilla:id']}"
        if image.get("tortilla:file_format") != "GTiff":
            raise DataError(f"{where} is a {image.get('tortilla:file_format')}, not a GTiff; convert it")
        data = self._storage.read(row["file"], row["start"] + image["tortilla:offset"], image["tortilla:length"])
        picture = decode_geotiff(data, where)
        raster = to_raster(
            instrument.modality,
            picture.array,
            where,
            bands=instrument.bands,
            time=_time(image),
            keep_nodata=self._keep_nodata,
        )
        if instrument.modality.startswith("S1"):
            _check_polarisations(raster, where)
        return raster

    def _samples_of(self, file: str, size: int) -> Iterator[dict[str, Any]]:
        """Rows of a file's footer, with where their bytes lie."""
        name = self._storage.name(file)
        with self._storage.reader(file) as read:
            for row in _footer(read, size, name):
                yield {**row, "file": file, "start": row["tortilla:offset"], "size": row["tortilla:length"]}

    def _read_images(self, i: int) -> list[dict[str, Any]]:
        row = self._rows[i]
        where = f"{self._storage.name(row['file'])} sample {row['tortilla:id']}"

        def read(start: int, length: int) -> bytes:
            return self._storage.read(row["file"], row["start"] + start, length)

        return _footer(read, row["size"], where)


def _footer(read: Read, size: int, name: str) -> list[dict[str, Any]]:
    """Rows that a tortilla lists, each within its bounds."""
    header = bytes(read(0, _HEADER.size)) if size >= _HEADER.size else b""
    if len(header) < _HEADER.size or header[:2] not in _MARKS:
        raise DataError(f"{name} is no tortilla file (or truncated at its start); fetch it again")
    _, offset, length, _ = _HEADER.unpack(header)
    if offset + length > size or length > _FOOTER_BYTES:
        raise DataError(f"{name} is truncated: its footer ends at byte {offset + length} of {size}; fetch it again")
    try:
        rows = read_parquet(io.BytesIO(read(offset, length))).to_pylist()
        for row in rows:
            start, held = int(row["tortilla:offset"]), int(row["tortilla:length"])
            if not (min(start, held) >= 0 and start + held <= size and isinstance(row["tortilla:id"], str)):
                raise ValueError
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{name} has a damaged footer; fetch it again") from error
    return rows


def _check_polarisations(raster: Raster, where: str) -> None:
    """Refuse images whose bands are evidently swapped: what comes back in the sent polarisation is the stronger."""
    vv, vh = (np.nanmean(raster.grids[10][..., band, ::_TESTED, ::_TESTED].astype(np.float32)) for band in (0, 1))
    if vv < vh:
        raise DataError(f"{where} has VV at {vv:.1f} dB below VH at {vh:.1f} dB: its bands are in another order")


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    lon, lat = row.get("lon"), row.get("lat")
    if lon is None or lat is None:
        text = str(row.get("stac:centroid") or "").removeprefix("POINT").strip(" ()").split()
        lon, lat = (float(value) for value in text) if len(text) == 2 else (np.nan, np.nan)
    return float(lon), float(lat)


def _time(row: Mapping[str, Any]) -> np.datetime64 | None:
    start = row.get("stac:time_start")
    return None if start is None or not np.isfinite(start) else np.datetime64(int(start), "s")


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The plain values that all samples have, by name; the benchmark's own split as "data_split"."""
    described = [_attributes(row) for row in rows]
    shared = [
        name
        for name in described[0]
        if all(name in one and type(one[name]) is type(described[0][name]) for one in described)
    ]
    columns = {name: np.array([one[name] for one in described]) for name in shared}
    return {"data_split" if name == "split" else name: column for name, column in columns.items()}


def _attributes(row: Mapping[str, Any]) -> dict[str, float | int | str | bool]:
    kept = {
        name: value
        for name, value in row.items()
        if ":" not in name and not name.startswith("__") and isinstance(value, (bool, int, float, str))
        if name not in ("lon", "lat", "file", "start", "size")
    }
    split = row.get("tortilla:data_split")
    labels = row.get("labels")
    return {
        **kept,
        **({"split": str(split)} if split else {}),
        **({"labels": json.dumps(labels)} if isinstance(labels, list) else {}),
    }
