"""Samples from TerraMesh as it is released: tars of zipped zarr groups, one tar a modality and shard.

    <path>/[train/ or val/]<MODALITY>/*.tar      members <key>.zarr.zip
    <path>/*metadata.parquet                     optional: key or zarr, center_lat, center_lon (saves reading members)

SSL4EO-S12's own tars have the same layout with four dates a member, and are read too.

Source: Blumenstiel et al., TerraMesh: A Planetary Mosaic of Multimodal Earth Observation Data, 2025.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.errors import DataError
from data_pipelines.modalities import ALIASES, MODALITIES
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.assembly import (
    centred_transform,
    decode_times,
    epsg_of,
    reading,
    scene_of,
    to_raster,
    transform_of_axes,
    utm_epsg,
    wanted_modalities,
)
from data_pipelines.storage import Storage
from data_pipelines.tar_index import TarIndex, index_tars
from data_pipelines.zarr_zip import ZarrZip

_SUFFIX = ".zarr.zip"
_MEMBER_BYTES = 1 << 28  # that a member may hold or decode to
_THREADS = 8
_NO_TIME = np.datetime64("1970-01-02", "s")  # elevation has a time of zero


class TerraMeshSource:
    """Random access to TerraMesh's tars, in place.

    Opening walks the tars' headers and joins modalities by key. Samples that lack a modality stay in: what is absent
    is told by `present`, and by the attribute "missing" of the sample. Shards have either flavour of Sentinel-1.

    Args:
        path: folder or fsspec URL of the corpus, one of its splits, or one tar's modality folder's parent.
        modalities: read these; None reads what there is.
        tile: least side of the samples in 10 m pixels, checked as they are read.
        samples: take only the first so many.
        cache: folder that keeps the tars' indices between runs; None walks them each time.
        keep_nodata: yield samples with NaN instead of refusing them.

    Attributes:
        present: modality -> (samples,) bool.
        problems: tar -> why it could not be followed to its end.

    Raises:
        DataError: naming the file or folder at fault and the cure.
    """

    name = "terramesh"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
        cache: str | Path | None = None,
        keep_nodata: bool = False,
    ):
        self._storage = Storage(path)
        files = self._storage.files(depth=3)
        tars = _tars_by_modality(files)
        where = self._storage.name(self._storage.root)
        if not tars:
            raise DataError(f"{where} holds no <MODALITY>/*.tar; give TerraMesh's folder or one of its splits")
        self._used = wanted_modalities(modalities, tuple(tars), where)
        self._tile, self._keep_nodata = tile, keep_nodata
        self._tars = [path for name in self._used for path in tars[name]]
        indices = index_tars(self._storage, [(path, *files[path]) for path in self._tars], cache)
        self.problems = {
            self._storage.name(path): index.problem
            for path, index in zip(self._tars, indices, strict=True)
            if index.problem
        }
        self._join(tars, indices, samples)
        if not len(self._keys):
            why = next(iter(self.problems.values()), f"its tars have no members <key>{_SUFFIX}")
            raise DataError(f"{where} holds no samples: {why}")
        self.present = {name: self._members[name][:, 0] >= 0 for name in self._used}
        known = _read_metadata(self._storage, files)
        lon, lat = self._places(known)
        self._attributes = [known[key][2] if key in known else {} for key in self._keys]
        cloud = np.array([float(known.get("cloud_cover", np.nan)) for known in self._attributes])
        self.index = Index.at(self._keys, lon, lat, further={"cloud": cloud, **self.present})

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the tar and the member that is truncated, corrupt or not of its modality.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        with reading(f"sample {self._keys[i]} of {self._storage.name(self._storage.root)}"):
            return self._sample(i % len(self))

    def _sample(self, i: int) -> Sample:
        rasters: dict[str, Raster] = {}
        group = None
        for name in self._used:
            if self._members[name][i, 0] >= 0:
                member = self._member(name, i)
                rasters[name] = self._raster(name, member)
                group = group or member
        assert group is not None  # a key is known from one of its members
        lon, lat = float(self.index.lon[i]), float(self.index.lat[i])
        shape = next(iter(rasters.values())).grids[10].shape[-2:]
        if self._tile is not None and min(shape) < self._tile:
            raise DataError(f"{group.name} is {shape[1]} x {shape[0]} pixels, smaller than tile={self._tile}")
        for name, raster in rasters.items():
            if raster.grids[10].shape[-2:] != shape:
                raise DataError(f"{group.name}: its {name} is {raster.grids[10].shape[-2:]} pixels, others {shape}")
        epsg, transform = _georeference(group, lon, lat, shape)
        missing = ",".join(name for name in self._used if name not in rasters)
        return Sample(
            key=self._keys[i],
            rasters=rasters,
            lon=lon,
            lat=lat,
            epsg=epsg,
            transform=transform,
            source=self.name,
            attributes={
                **self._attributes[i],
                **scene_of(rasters),
                **({"missing": missing} if missing else {}),
            },
        )

    def _member(self, name: str, i: int) -> ZarrZip:
        tar, offset, size = (int(value) for value in self._members[name][i])
        path = self._tars[tar]
        where = f"{self._storage.name(path)} member {self._keys[i]}{_SUFFIX}"
        if size > _MEMBER_BYTES:
            raise DataError(f"{where} declares {size} bytes, more than {_MEMBER_BYTES}; refused")
        return ZarrZip.of(self._storage.read(path, offset, size), where, _MEMBER_BYTES)

    def _raster(self, name: str, member: ZarrZip) -> Raster:
        array, bands = read_bands(member)
        series = array.shape[0] > 1
        time = member_times(member, array.shape[0])
        return to_raster(
            name,
            array if series else array[0],
            member.name,
            bands=bands,
            time=time if series or time is None else time[0],
            keep_nodata=self._keep_nodata,
        )

    def _join(self, tars: dict[str, list[str]], indices: Sequence[TarIndex], samples: int | None) -> None:
        """Keys in the order of the tars, and where each modality's member of a key lies: (tar, offset, size)."""
        number = {path: k for k, path in enumerate(self._tars)}
        row: dict[str, int] = {}
        places: dict[str, dict[int, tuple[int, int, int]]] = {name: {} for name in self._used}
        # Shard by shard, so that the order of samples does not hang on a tar that is missing or cut off.
        pairs = [(name, path) for name in self._used for path in tars[name]]
        for name, path in sorted(pairs, key=lambda pair: _shard(pair[1])):
            index = indices[number[path]]
            for member, offset, size in zip(index.names, index.offsets.tolist(), index.sizes.tolist(), strict=True):
                base = member.rpartition("/")[2]
                key = base.partition(".")[0]
                if base != key + _SUFFIX:
                    continue
                i = row.setdefault(key, len(row))
                if i in places[name]:
                    self.problems[self._storage.name(path)] = f"key {key} occurs twice; the first is read"
                else:
                    places[name][i] = (number[path], offset, size)
        self._keys = list(row)[:samples]
        self._members: dict[str, np.ndarray] = {}
        for name, members in places.items():
            table = np.full((len(row), 3), -1, np.int64)
            if members:
                table[list(members)] = list(members.values())
            self._members[name] = table[:samples]

    def _places(self, known: dict[str, tuple[float, float, dict[str, Any]]]) -> tuple[np.ndarray, np.ndarray]:
        """Longitudes and latitudes: from the metadata, else from each key's smallest member; NaN if that is broken."""
        places = np.full((len(self._keys), 2), np.nan)
        unknown = []
        for i, key in enumerate(self._keys):
            if key in known:
                places[i] = known[key][:2]
            else:
                unknown.append(i)

        def locate(i: int) -> tuple[float, float]:
            held = [name for name in self._used if self._members[name][i, 0] >= 0]
            name = min(held, key=lambda name: int(self._members[name][i, 2]))
            try:
                member = self._member(name, i)
                return tuple(float(member.read(f"center_{axis}").reshape(-1)[0]) for axis in ("lon", "lat"))  # type: ignore[return-value]
            except (DataError, IndexError, ValueError):
                return np.nan, np.nan  # told when the sample is read

        with ThreadPoolExecutor(_THREADS) as pool:
            places[unknown] = list(pool.map(locate, unknown)) or np.empty((0, 2))
        return places[:, 0].copy(), places[:, 1].copy()


def read_bands(group: ZarrZip, *at: int) -> tuple[np.ndarray, list[str] | None]:
    """The array `bands` as (time, band, y, x), and the bands' names; `at` fixes its first dimensions."""
    array = group.read("bands", *at)
    dims = group.attributes("bands").get("_ARRAY_DIMENSIONS", ["time", "band", "y", "x"][-array.ndim :])
    dims = list(dims)[len(at) :]
    if len(dims) != array.ndim or set(dims) | {"time"} != {"time", "band", "y", "x"}:
        raise DataError(f"{group.name}: bands has the dimensions {dims}, expected time, band, y and x")
    wanted = [dim for dim in ("time", "band", "y", "x") if dim in dims]
    array = array.transpose([dims.index(dim) for dim in wanted])
    names = [str(band) for band in group.read("band").reshape(-1)] if "band" in group else None
    return (array if len(wanted) == 4 else array[None]), names


def member_times(group: ZarrZip, frames: int) -> np.ndarray | None:
    """Acquisition times of a group; None where it has none (elevation says zero)."""
    if "time" not in group:
        return None
    times = decode_times(group.read("time").reshape(-1), group.attributes("time"), f"{group.name}: time")
    if len(times) != frames:
        raise DataError(f"{group.name} has {len(times)} times for {frames} images")
    return None if (times < _NO_TIME).any() or np.isnat(times).any() else times


def _georeference(
    group: ZarrZip, lon: float, lat: float, shape: tuple[int, int]
) -> tuple[int, tuple[float, float, float, float, float, float]]:
    """EPSG code and affine of a member; those of its centre's UTM zone where it has no coordinate system of its own."""
    epsg = None
    if "crs" in group:
        epsg = int(group.read("crs").reshape(-1)[0])
    elif "spatial_ref" in group:
        attributes = group.attributes("spatial_ref")
        epsg = epsg_of(str(attributes.get("crs_wkt", attributes.get("spatial_ref", ""))))
    if epsg is not None and "x" in group and "y" in group:
        x, y = group.read("x").reshape(-1), group.read("y").reshape(-1)
        if (len(y), len(x)) != shape:
            raise DataError(f"{group.name} has {len(y)} x {len(x)} coordinates for {shape} pixels")
        return epsg, transform_of_axes(x, y, group.name)
    if not (abs(lat) <= 90 and abs(lon) <= 180):
        raise DataError(f"{group.name} says neither where its pixels lie nor where its centre is; fetch it again")
    epsg = epsg or utm_epsg(lon, lat)
    return epsg, centred_transform(lon, lat, epsg, shape)


def _tars_by_modality(files: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in files:
        folder = path.rpartition("/")[0].rpartition("/")[2]
        name = ALIASES.get(folder, folder)
        if path.endswith(".tar") and name in MODALITIES:
            found.setdefault(name, []).append(path)
    return {name: found[name] for name in MODALITIES if name in found}


def _shard(path: str) -> tuple[str, str]:
    """Split and name of a tar: the same in every modality."""
    folder, _, base = path.rpartition("/")
    return folder.rpartition("/")[0], base


def _read_metadata(storage: Storage, files: Iterable[str]) -> dict[str, tuple[float, float, dict[str, Any]]]:
    """Key -> (lon, lat, further attributes) of the released tables."""
    known: dict[str, tuple[float, float, dict[str, Any]]] = {}
    for path in files:
        if not path.endswith("metadata.parquet"):
            continue
        try:
            with storage.open(path) as file:
                table = pq.ParquetFile(file)
                names = set(table.schema_arrow.names)
                key = next((name for name in ("zarr", "key") if name in names), None)
                if key is None or not {"center_lon", "center_lat"} <= names:
                    continue
                extra = [name for name in ("cloud_cover", "product_id", "grid_cell") if name in names]
                columns = table.read([key, "center_lon", "center_lat", *extra], use_threads=False).to_pydict()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{storage.name(path)} cannot be read as a table; fetch it again or remove it") from error
        for n, name in enumerate(columns[key]):
            lon, lat = columns["center_lon"][n], columns["center_lat"][n]
            if name is None or lon is None or lat is None:
                continue
            attributes = {k: columns[k][n] for k in extra if isinstance(columns[k][n], (int, float, str))}
            known[str(name).rpartition("/")[2].partition(".")[0]] = (float(lon), float(lat), attributes)
    return known
