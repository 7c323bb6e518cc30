"""The record format: samples in ArrayRecord shards that are read at random, checked and decoded fast.

A dataset is a folder:

    shard-00000.arrayrecord   records, uncompressed by ArrayRecord itself, group_size 1
    shard-00000.parquet       one row a record (`record_index`); the dataset's metadata in the schema
    manifest.json             the dataset's metadata and the list of shards; written last, so that a folder with a
                              manifest is whole

A record is, little-endian, a prelude (magic, version, length of the header, CRC-32 of all but itself), a JSON header
and blobs: named arrays, each compressed by Blosc on its own, so that modalities that are not asked for cost nothing.
Wider floating-point arrays whose every number is one of float16 are held as such, and widened again when read.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numcodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.codecs import decode_blosc, decode_raw
from data_pipelines.errors import DataError
from data_pipelines.jobs import MANIFEST, sha256_of
from data_pipelines.modalities import Unit, modality
from data_pipelines.record_index import FORMAT, VERSION, dataset_metadata, index_row, index_schema
from data_pipelines.replication import native_or_fine
from data_pipelines.sample import Raster, Sample
from data_pipelines.storage import read_parquet

_MAGIC = b"TJEO"
_PRELUDE = struct.Struct("<4sHII")
_NATIVE_ORDER = {"<", "|", "="}
_ARRAY_BYTES = 1 << 30  # that one array may decode to
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


# ---- one record ---------------------------------------------------------------------------------------------------


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], compression: str = "lz4") -> bytes:
    """Serialise named arrays and a JSON-able header into one record.

    Args:
        header: anything but the key "arrays".
        arrays: name -> array of a plain numeric or boolean dtype.
        compression: Blosc's inner codec, "lz4" (fast) or "zstd" (small).
    """
    table, blobs, offset = [], [], 0
    for name, array in arrays.items():
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype.kind not in "biuf" or array.dtype.byteorder not in _NATIVE_ORDER:
            raise DataError(f"array {name!r} has dtype {array.dtype}; records hold little-endian numbers")
        entry = {"name": name, "dtype": array.dtype.name, "shape": array.shape}
        held = _narrowed(array)
        if held is not array:
            entry |= {"dtype": held.dtype.name, "widen": array.dtype.name}
        blob, entry["codec"] = _compress(held, compression)
        table.append(entry | {"offset": offset, "length": len(blob)})
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps({**header, "arrays": table}, separators=(",", ":")).encode()
    body = b"".join((text, *blobs))
    return _PRELUDE.pack(_MAGIC, VERSION, len(text), _checksum(VERSION, len(text), body)) + body


def unpack(record: bytes, names: Collection[str] | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a record.

    Args:
        record: bytes of `pack`.
        names: decode only arrays whose name, up to the first "/", is among these; None decodes all.

    Raises:
        DataError: if the record is foreign, of a newer version or corrupt.
    """
    if len(record) < _PRELUDE.size or record[:4] != _MAGIC:
        raise DataError(f"it is no {FORMAT} record; write the dataset with data_pipelines.records")
    _, version, length, checksum = _PRELUDE.unpack_from(record)
    if version > VERSION:
        raise DataError(f"it has format version {version}, this release reads up to {VERSION}; upgrade terra_jax")
    body = memoryview(record)[_PRELUDE.size :]
    if _checksum(version, length, body) != checksum:
        raise DataError("its checksum does not match: it is corrupt; restore the file from its source")
    try:
        header = json.loads(bytes(body[:length]))
        blobs = body[length:]
        arrays = {
            entry["name"]: _decompress(blobs[entry["offset"] : entry["offset"] + entry["length"]], entry)
            for entry in header.pop("arrays")
            if names is None or entry["name"].partition("/")[0] in names
        }
    except _MALFORMED as error:
        raise DataError("its header does not fit what it holds; restore the file from its source") from error
    return header, arrays


def encode_sample(sample: Sample, compression: str = "lz4") -> bytes:
    """One sample as a record; `decode_sample` returns it exactly."""
    header = {
        "key": sample.key,
        "lon": float(sample.lon),
        "lat": float(sample.lat),
        "epsg": int(sample.epsg),
        "transform": [float(value) for value in sample.transform],
        "source": sample.source,
        "attributes": {name: _plain(value) for name, value in sample.attributes.items()},
        "rasters": {
            name: {"unit": raster.unit.value, "time": _encode_time(raster.time)}
            | ({"frames": {f: (str(v.dtype), v.tolist()) for f, v in raster.frames.items()}} if raster.frames else {})
            for name, raster in sample.rasters.items()
        },
    }
    arrays = {f"{name}/{gsd}": grid for name, raster in sample.rasters.items() for gsd, grid in raster.grids.items()}
    return pack(header, arrays, compression)


def decode_sample(record: bytes, modalities: Collection[str] | None = None) -> Sample:
    """Sample of a record, with only the named modalities (None: all that it holds).

    Raises:
        DataError: if the record is foreign, of a newer version or corrupt.
    """
    header, arrays = unpack(record, modalities)
    try:
        rasters = {}
        for name, raster in header["rasters"].items():
            if modalities is None or name in modalities:
                grids = {int(path.partition("/")[2]): a for path, a in arrays.items() if path.partition("/")[0] == name}
                facts = {fact: np.array(values, dtype) for fact, (dtype, values) in raster.get("frames", {}).items()}
                rasters[name] = Raster(grids, Unit(raster["unit"]), _decode_time(raster["time"]), facts)
        a, b, c, d, e, f = header["transform"]
        plain = {name: header[name] for name in ("key", "lon", "lat", "epsg", "source", "attributes")}
        return Sample(rasters=rasters, transform=(a, b, c, d, e, f), **plain)
    except _MALFORMED as error:
        raise DataError("its header is not that of a sample; restore the file from its source") from error


def _checksum(version: int, length: int, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(_PRELUDE.pack(_MAGIC, version, length, 0)))


def _compress(array: np.ndarray, compression: str) -> tuple[bytes, str]:
    raw = array.tobytes()
    if not raw:
        return raw, "raw"
    packed = numcodecs.Blosc(cname=compression, clevel=5, shuffle=numcodecs.Blosc.SHUFFLE).encode(array)
    return (packed, "blosc") if len(packed) < len(raw) else (raw, "raw")


def _narrowed(array: np.ndarray) -> np.ndarray:
    """float32 and float64 as float16, where that loses no bit."""
    if array.dtype.kind != "f" or array.itemsize < 4:
        return array
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float16)
    return narrow if narrow.astype(array.dtype).tobytes() == array.tobytes() else array


def _decompress(blob: memoryview, entry: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(entry["dtype"])
    if dtype.kind not in "biuf" or math.prod(entry["shape"]) * dtype.itemsize > _ARRAY_BYTES:
        raise ValueError("no array that was written here")
    array = np.empty(entry["shape"], dtype)
    (decode_blosc if entry["codec"] == "blosc" else decode_raw)(blob, array.reshape(-1).view(np.uint8))
    return array.astype(np.dtype(entry["widen"])) if "widen" in entry else array


def _encode_time(time: np.datetime64 | np.ndarray | None) -> dict[str, Any] | None:
    if time is None:
        return None
    times = np.asarray(time)
    return {"unit": np.datetime_data(times.dtype)[0], "value": times.astype(np.int64).tolist()}


def _decode_time(time: Mapping[str, Any] | None) -> np.datetime64 | np.ndarray | None:
    if time is None:
        return None
    return np.asarray(time["value"], np.int64).astype(f"datetime64[{time['unit']}]")[()]


def _plain(value: Any) -> float | int | str | bool:
    return value.item() if isinstance(value, np.generic) else value


# ---- a dataset ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    """A committed shard, as the manifest lists it."""

    file: str
    index: str
    samples: int
    bytes: int
    sha256: str = ""


class RecordWriter:
    """Writes a dataset shard by shard; each appears whole or not at all, and the manifest last.

        with RecordWriter(path, licence="CC-BY-SA-4.0") as writer:
            for sample in samples:
                writer.write(sample)

    Left by an exception, it commits no further shard and no manifest; a later writer starts over.

    Args:
        path: folder, made if need be.
        shard_size: samples a shard.
        licence: of the data written.
        compression: "lz4" (fast) or "zstd" (small).

    Raises:
        DataError: if the folder holds a dataset already.
    """

    def __init__(self, path: str | Path, *, shard_size: int = 1024, licence: str = "", compression: str = "lz4"):
        self._root = Path(path)
        if (self._root / MANIFEST).exists():
            raise DataError(f"{self._root} holds a dataset already; choose another folder or remove it")
        if shard_size < 1:
            raise DataError(f"shard_size is {shard_size}; it must be at least 1")
        self._root.mkdir(parents=True, exist_ok=True)
        self._shard_size, self._licence, self._compression = shard_size, licence, compression
        self._units: dict[str, Unit] = {}
        self._keys: set[str] = set()
        self._shards: list[_Shard] = []
        self._rows: list[dict[str, Any]] = []
        self._writer: ArrayRecordWriter | None = None

    def write(self, sample: Sample, *, split: str = "", scene: int | None = None) -> None:
        """Append a sample; bands that are exact copies of coarser pixels are written on their native grid.

        Args:
            sample: with a key that is new to the dataset, in the units of the samples before.
            split: "train", "val" or "test"; "" takes `grid.split_of` its region.
            scene: index into `modalities.SCENE_CLASSES`; None takes the sample's attribute "scene", or -1.

        Raises:
            DataError: if the key occurs twice or a modality's unit changes.
        """
        if sample.key in self._keys:
            raise DataError(f"sample {sample.key!r} is written twice; keys must be unique")
        for name, raster in sample.rasters.items():
            unit = self._units.setdefault(modality(name).name, raster.unit)
            if unit is not raster.unit:
                raise DataError(
                    f"sample {sample.key!r} has {name} in {raster.unit.value}, those before in {unit.value}; convert it"
                )
        record, row = record_and_row(sample, split=split, scene=scene, compression=self._compression)
        if self._writer is None:
            self._writer = ArrayRecordWriter(str(self._aside("arrayrecord")), "group_size:1,uncompressed")
        self._writer.write(record)
        self._keys.add(sample.key)
        self._rows.append(row)
        if len(self._rows) == self._shard_size:
            self._commit()

    def close(self) -> None:
        """Commit the last shard and the manifest."""
        self._commit()
        manifest = dataset_metadata(self._units, self._licence) | {"shards": [vars(shard) for shard in self._shards]}
        aside = self._root / f".{MANIFEST}.part"
        aside.write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(aside, self._root / MANIFEST)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._writer is not None:
            self._writer.close()
            self._aside("arrayrecord").unlink(missing_ok=True)

    def _name(self, suffix: str) -> str:
        return f"shard-{len(self._shards):05d}.{suffix}"

    def _aside(self, suffix: str) -> Path:
        return self._root / f".{self._name(suffix)}.part"

    def _commit(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        table = pa.Table.from_pylist(self._rows, schema=index_schema(dataset_metadata(self._units, self._licence)))
        pq.write_table(table, self._aside("parquet"))
        size, checksum = self._aside("arrayrecord").stat().st_size, sha256_of(self._aside("arrayrecord"))
        for suffix in ("arrayrecord", "parquet"):
            os.replace(self._aside(suffix), self._root / self._name(suffix))
        self._shards.append(_Shard(self._name("arrayrecord"), self._name("parquet"), len(self._rows), size, checksum))
        self._rows = []


def record_and_row(
    sample: Sample, *, split: str = "", scene: int | None = None, compression: str = "lz4"
) -> tuple[bytes, dict[str, Any]]:
    """A sample's record, with bands that are exact copies of coarser pixels on their native grid, and its index row.

    Args:
        sample: as it was read.
        split, scene: see `RecordWriter.write`.
        compression: "lz4" (fast) or "zstd" (small).
    """
    native = {name: native_or_fine(name, raster) for name, raster in sample.rasters.items()}
    sample = replace(sample, rasters=native)
    return encode_sample(sample, compression), index_row(sample, split, scene)


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Metadata and shards of a dataset, checked against the files.

    Raises:
        DataError: if the folder is no dataset, unfinished, of a newer version, or a shard is missing or truncated.
    """
    root, file = Path(path), Path(path) / MANIFEST
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give one that data_pipelines.records wrote")
    if not file.exists():
        state = "unfinished; write it again" if any(root.glob("*.arrayrecord")) else "no dataset of records"
        raise DataError(f"{root} is {state}: {MANIFEST} is missing")
    try:
        manifest = json.loads(file.read_text())
        known = manifest["format"] == FORMAT
        version, shards = int(manifest["version"]), [_Shard(**shard) for shard in manifest["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is not a manifest of {FORMAT}; restore it or write the dataset again") from error
    if not known:
        raise DataError(f"{file} is of format {manifest['format']!r}, expected {FORMAT!r}; open another folder")
    if version > VERSION:
        raise DataError(f"{file} has format version {version}, this release reads up to {VERSION}; upgrade terra_jax")
    for shard in shards:
        _check_shard(root, shard)
    return manifest


def read_index(path: str | Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Columns of all shards' indices, in the order of the records.

    Raises:
        DataError: if an index cannot be read or does not fit its shard.
    """
    tables = []
    for shard in manifest["shards"]:
        file = Path(path) / shard["index"]
        try:
            tables.append(read_parquet(file, schema=index_schema({})))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file} cannot be read as an index; restore it or write the dataset again") from error
        if len(tables[-1]) != shard["samples"]:
            raise DataError(f"{file} has {len(tables[-1])} rows, its shard {shard['samples']} records; restore it")
    table = pa.concat_tables(tables) if tables else index_schema({}).empty_table()
    return {name: table[name].to_numpy() for name in table.column_names}


def _check_shard(root: Path, shard: _Shard) -> None:
    file = root / shard.file
    if not file.exists():
        raise DataError(f"{file} is missing; restore it or write the dataset again")
    size = file.stat().st_size
    if size != shard.bytes:
        raise DataError(f"{file} has {size} of {shard.bytes} bytes: it is truncated or changed; restore it")
