"""Corpora as they are released, fabricated from samples: each writer names the line of the data notes it follows."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from data_pipelines import radiometry
from data_pipelines.modalities import modality
from data_pipelines.sample import Sample

NS = np.dtype("datetime64[ns]")


def zarr_zip(
    arrays: Mapping[str, tuple[np.ndarray, Sequence[str]]],
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    chunks: Mapping[str, Sequence[int]] | None = None,
    compressor: Any = "blosc",
    group: Mapping[str, Any] | None = None,
    deflate: bool = False,
    separator: str = ".",
    order: str = "C",
) -> bytes:
    """A zarr v2 group with consolidated metadata, written by hand (notes 1.8: zipfile + json + numcodecs).

    Args:
        arrays: name -> (values, dimensions).
        attributes: further attributes of an array.
        chunks: of an array; all of it in one where none are given.
        compressor: a numcodecs codec, None, or "blosc" for zarr's default (lz4, shuffle).
        group: attributes of the group.
        deflate: also deflate what the zip holds.
        separator: between the numbers of a chunk.
        order: of a chunk's elements.
    """
    codec = numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE) if compressor == "blosc" else compressor
    metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": dict(group or {})}
    held: dict[str, bytes] = {}
    for name, (array, dims) in arrays.items():
        size = tuple(max(n, 1) for n in (chunks or {}).get(name, array.shape))
        metadata[f"{name}/.zarray"] = {
            "chunks": list(size), "compressor": codec.get_config() if codec else None, "dtype": array.dtype.str,
            "fill_value": "" if array.dtype.kind == "U" else 0, "filters": None, "order": order,
            "shape": list(array.shape), "zarr_format": 2, "dimension_separator": separator,
        }  # fmt: skip
        metadata[f"{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": list(dims), **(attributes or {}).get(name, {})}
        for number in np.ndindex(*(-(-n // c) for n, c in zip(array.shape, size, strict=True))):
            part = array[tuple(slice(k * c, (k + 1) * c) for k, c in zip(number, size, strict=True))]
            whole = np.zeros(size, array.dtype)  # zarr writes chunks at the edge in full
            whole[tuple(slice(n) for n in part.shape)] = part
            path = f"{name}/{separator.join(map(str, number)) or '0'}"
            # Fortran order: the bytes in that order, which codecs see as a plain buffer.
            raw = np.frombuffer(whole.tobytes(order), f"V{array.dtype.itemsize}").view(_plain(array.dtype))
            held[path] = bytes(codec.encode(raw)) if codec else raw.tobytes()
    texts = {path: json.dumps(value).encode() for path, value in metadata.items()}
    texts[".zmetadata"] = json.dumps({"metadata": metadata, "zarr_consolidated_format": 1}).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED) as file:
        for path, data in {**texts, **held}.items():
            file.writestr(path, data)
    return buffer.getvalue()


def _plain(dtype: np.dtype) -> np.dtype:
    """A dtype of the same size that codecs take: text as its code points."""
    return np.dtype("<u4") if dtype.kind == "U" else dtype


def at_10m(sample: Sample, name: str) -> np.ndarray:
    """(band, y, x), coarse bands copied (notes 0.2: 20 and 60 m bands are nearest-neighbour copies)."""
    raster = radiometry.to_10m(name, sample.rasters[name])
    return raster.grids[10]


def band_labels(name: str) -> np.ndarray:
    """Names of the bands as the corpora write them (notes 1.1: S1 in lower case)."""
    names = modality(name).band_names
    return np.asarray([n.lower() for n in names] if name.startswith("S1") else names)


def terramesh_member(sample: Sample, name: str, *, array: np.ndarray | None = None, **options: Any) -> bytes:
    """`KEY.zarr.zip` of one modality.

    Notes 1.1, "Sample = member": zarr v2, consolidated; bands (time=1, band, y, x), band, center_lat, center_lon,
    time (ns int64; none for elevation), cloud_mask (optical only, no channel axis, uint8), x, y, spatial_ref, sample.
    """
    from rasterio.crs import CRS

    bands = at_10m(sample, name)[None] if array is None else array
    time = sample.rasters[name].time
    stamps = np.zeros(len(bands), np.int64) if time is None else np.atleast_1d(time).astype(NS).astype(np.int64)
    height, width = bands.shape[-2:]
    x = sample.transform[2] + 10 * (np.arange(width) + 0.5)
    y = sample.transform[5] - 10 * (np.arange(height) + 0.5)
    arrays: dict[str, tuple[np.ndarray, Sequence[str]]] = {
        "bands": (bands, ("time", "band", "y", "x")),
        "band": (band_labels(name), ("band",)),
        "center_lat": (np.asarray(sample.lat), ()),
        "center_lon": (np.asarray(sample.lon), ()),
        "time": (stamps, ("time",)),
        "x": (x, ("x",)),
        "y": (y, ("y",)),
        "sample": (np.asarray(sample.key), ()),
        "spatial_ref": (np.asarray(0), ()),
    }
    if name.startswith("S2"):
        arrays["cloud_mask"] = (np.zeros((len(bands), height, width), np.uint8), ("time", "y", "x"))
    attributes = {"spatial_ref": {"crs_wkt": CRS.from_epsg(sample.epsg).to_wkt()}}
    if name != "DEM":
        attributes["time"] = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    return zarr_zip(arrays, attributes, **options)


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A tar as webdataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def write_terramesh(
    root: Path, samples: Sequence[Sample], shard: str = "majortom_shard_000001", split: str = "train"
) -> Path:
    """One shard: a tar a modality, the same order of samples in each (notes 1.1, "Layout")."""
    for name in samples[0].rasters:
        members = [(f"{s.key}.zarr.zip", terramesh_member(s, name)) for s in samples if name in s.rasters]
        write_tar(root / split / name / f"{shard}.tar", members)
    return root


def write_ssl4eo(root: Path, places: Sequence[Sequence[Sample]], number: int = 1, *, chunked: bool = True) -> Path:
    """One batch: a file a modality, (place, date) samples.

    Notes 1.3: zarr v2; bands (sample, time, band, y, x); center_lat/lon (sample), cloud_mask (sample, time, y, x),
    crs int (sample), file_id and sample_id (sample, time), time_ (sample, time), x_ and y_ vectors; time chunked
    separately. `chunked=False` puts all places of a date into one chunk.
    """
    first, dates = [place[0] for place in places], len(places[0])
    names = [s.key for s in first]
    height, width = at_10m(first[0], next(iter(first[0].rasters))).shape[-2:]
    axes = {
        "x_": np.stack([s.transform[2] + 10 * (np.arange(width) + 0.5) for s in first]),
        "y_": np.stack([s.transform[5] - 10 * (np.arange(height) + 0.5) for s in first]),
    }
    for name in first[0].rasters:
        bands = np.stack([[at_10m(s, name) for s in place] for place in places])
        times = np.asarray([[s.rasters[name].time for s in place] for place in places]).astype(NS)
        arrays: dict[str, tuple[np.ndarray, Sequence[str]]] = {
            "bands": (bands, ("sample", "time", "band", "y", "x")),
            "band": (band_labels(name), ("band",)),
            "sample": (np.asarray(names), ("sample",)),
            "sample_id": (np.asarray([[f"{n}_{t}" for t in range(dates)] for n in names]), ("sample", "time")),
            "center_lat": (np.asarray([s.lat for s in first]), ("sample",)),
            "center_lon": (np.asarray([s.lon for s in first]), ("sample",)),
            "crs": (np.asarray([s.epsg for s in first]), ("sample",)),
            "time": (np.arange(dates), ("time",)),
            "time_": (times.astype(np.int64), ("sample", "time")),
            "x_": (axes["x_"], ("sample", "x")),
            "y_": (axes["y_"], ("sample", "y")),
        }
        chunks = {"bands": (1 if chunked else len(places), 1, *bands.shape[2:])}
        if name.startswith("S2"):
            arrays["cloud_mask"] = (np.zeros((*bands.shape[:2], height, width), np.uint8), ("sample", "time", "y", "x"))
        data = zarr_zip(arrays, {"time_": {"units": "nanoseconds since 1970-01-01"}}, chunks=chunks)
        path = root / "train" / name / f"ssl4eos12_train_seasonal_data_{number:06d}.zarr.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def geotiff(array: np.ndarray, sample: Sample, gsd: int = 10, nodata: float | None = None, **options: Any) -> bytes:
    """(band, y, x) as a GeoTIFF in memory, at the sample's place."""
    import rasterio

    profile = {
        "driver": "GTiff", "count": array.shape[0], "height": array.shape[1], "width": array.shape[2],
        "dtype": array.dtype, "crs": f"EPSG:{sample.epsg}", "nodata": nodata,
        "transform": rasterio.Affine(gsd, 0, sample.transform[2], 0, -gsd, sample.transform[5]), **options,
    }  # fmt: skip
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as file:
            file.write(array)
        return bytes(memory.read())


def write_majortom(root: Path, samples: Sequence[Sample], *, metadata: bool = True, name: str = "part_00001") -> Path:
    """Parquet parts and their tables of metadata.

    Notes 1.2: row group = 1 sample; each band column a complete one-band GeoTIFF as bytes, at native 10/20/60 m;
    thumbnail, product_id, grid_cell, timestamp, cloud_cover, nodata, centre_lat/lon, grid_row_u/grid_col_r;
    metadata.parquet maps a sample to parquet_url and parquet_row. S1RTC is linear. Digital numbers are uint16.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for modality_name in {name: None for s in samples for name in s.rasters}:
        table, rows = modality(modality_name), []
        for s in (s for s in samples if modality_name in s.rasters):
            raster = s.rasters[modality_name]
            row: dict[str, Any] = {
                "grid_cell": s.key, "nodata": 0.0, "centre_lat": s.lat, "centre_lon": s.lon,
                "grid_row_u": -110, "grid_col_r": -457, "thumbnail": b"\x89PNG",
            }  # fmt: skip
            if raster.time is not None:  # elevation has none, and no product
                time = str(raster.time).replace("-", "").replace(":", "")
                row |= {"timestamp": time, "product_id": f"{modality_name}_{time}_N0509_R138_T24LTQ_{time}"}
            if modality_name.startswith("S2"):
                row["cloud_cover"] = 12.5
            for gsd, bands in table.grids.items():
                for i, band in enumerate(bands):
                    image = raster.grids[gsd][i : i + 1]
                    if modality_name == "S1RTC":
                        row[table.bands[band].name.lower()] = geotiff(_power(image), s, nodata=-32768.0)
                    elif modality_name == "DEM":
                        row["DEM"] = geotiff(image[:, ::3, ::3].astype(np.float32), s, 30)
                    else:
                        row[table.bands[band].name] = geotiff(image.astype(np.uint16), s, gsd, compress="deflate")
            rows.append(row)
        folder = root / f"Core-{modality_name}"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "images" / f"{name}.parquet", row_group_size=1)
        if metadata:
            url = f"https://huggingface.co/datasets/Major-TOM/Core-{modality_name}/resolve/main/images/{name}.parquet"
            light = [{k: v for k, v in row.items() if not isinstance(v, bytes)} for row in rows]
            listed = [row | {"parquet_url": url, "parquet_row": n} for n, row in enumerate(light)]
            pq.write_table(pa.Table.from_pylist(listed), folder / "metadata.parquet")
    return root


def _power(decibels: np.ndarray) -> np.ndarray:
    power = np.power(np.float32(10), decibels.astype(np.float32) / np.float32(10))
    return np.where(np.isnan(power), np.float32(-32768), power)


def tortilla(rows: Sequence[tuple[Mapping[str, Any], bytes]]) -> bytes:
    """Blobs and the table that lists them.

    Notes 6.4: '#y', uint64 footer offset, uint64 footer length, uint64 partitions, 200-byte header; footer = parquet
    (tortilla:id, file_format, data_split, offset, length, STAC fields, labels, lon, lat).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    place, listed = 200, []
    for row, blob in rows:
        listed.append({**row, "tortilla:offset": place, "tortilla:length": len(blob)})
        place += len(blob)
    footer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(listed), footer)
    header = struct.pack("<2s3Q", b"#y", place, len(footer.getvalue()), 1).ljust(200, b"\0")
    return b"".join((header, *(blob for _, blob in rows), footer.getvalue()))


def benv2(samples: Sequence[Sample], labels: Sequence[str] = ("Pastures",)) -> bytes:
    """A tortilla of tortillas (notes 6.4: S1 stored VH, VV; both images tiled GTiff with zstd)."""
    outer = []
    for s in samples:
        row = {
            "tortilla:file_format": "GTiff", "tortilla:data_split": "train", "stac:crs": f"EPSG:{s.epsg}",
            "stac:geotransform": [s.transform[2], 10.0, 0.0, s.transform[5], 0.0, -10.0],
            "stac:time_start": 1527552000.0, "lon": s.lon, "lat": s.lat, "labels": list(labels), "country": "Ireland",
        }  # fmt: skip
        s1 = at_10m(s, "S1GRD")[::-1].astype(np.float32)
        s2 = at_10m(s, "S2L2A").astype(np.uint16)
        options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "zstd", "interleave": "pixel"}
        inner = [
            ({**row, "tortilla:id": "s1"}, geotiff(s1, s, **options)),
            ({**row, "tortilla:id": "s2"}, geotiff(s2, s, 60, **options)),
        ]
        outer.append(({**row, "tortilla:id": s.key, "tortilla:file_format": "TORTILLA"}, tortilla(inner)))
    return tortilla(outer)
