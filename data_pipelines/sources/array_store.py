"""Samples from zarr stores and NetCDF files, read through xarray.

    <path>/*.zarr  *.zarr.zip  *.nc       one sample a store

A store is what `sample.to_dataset` gives (read back exactly, native grids included), or a plain dataset: a variable a
modality, named like it, with dimensions (band, y, x) after an optional time, projected coordinates x and y, and a
coordinate system that rioxarray would find (`spatial_ref` or `crs`, as well-known text, or an attribute "epsg").
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import ALIASES, MODALITIES, Unit
from data_pipelines.replication import native_or_fine
from data_pipelines.sample import Raster, Sample, from_dataset
from data_pipelines.sources import Index
from data_pipelines.sources.assembly import epsg_of, reading, scene_of, to_raster, transform_of_axes, wanted_modalities
from data_pipelines.storage import Storage

if TYPE_CHECKING:
    import xarray

_FOLDERS = ".zarr"
_FILES = (".nc", ".nc4", ".zarr.zip")
_THREADS = 8
_UNIT_NAMES = {"db": Unit.DB, "1e-4": Unit.DN10000, "m": Unit.METRE, "reflectance": Unit.REFLECTANCE}
_CLASSIC = b"CDF"  # how files of NetCDF's classic format begin


class ArrayStoreSource:
    """Random access to zarr stores and NetCDF files, one sample a store, keyed by its name.

    zarr needs the package of that name, NetCDF 4 needs h5netcdf (`pip install "terra_jax[xarray]"`); NetCDF's classic
    format is read without either. Reading is lazy: of a store only the modalities that are asked for.

    Args:
        path: folder or one store, or its fsspec URL.
        modalities: read these; None reads what the first store has.
        tile: least side of the samples in 10 m pixels, checked as they are read.
        samples: take only the first so many.
        keep_nodata: yield samples with NaN instead of refusing them.

    Raises:
        DataError: naming the store at fault and the cure.
    """

    name = "xarray"

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
        self._stores = _stores(self._storage)[:samples]
        if not self._stores:
            raise DataError(f"{where} holds no *.zarr, *.zarr.zip or *.nc; give the folder of the stores, or one")
        self._tile, self._keep_nodata = tile, keep_nodata
        with closing(self._opened(self._stores[0])) as first:
            self._used = wanted_modalities(modalities, _modalities(first.dataset), where)
        with ThreadPoolExecutor(_THREADS) as pool:
            places = list(pool.map(self._locate, self._stores))
        keys = [_key(store) for store in self._stores]
        if len(set(keys)) != len(keys):
            raise DataError(f"{where} holds stores that differ in their suffix alone; rename one")
        self.index = Index.at(keys, np.array([lon for lon, _ in places]), np.array([lat for _, lat in places]))

    def __len__(self) -> int:
        return len(self._stores)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the store that is damaged or not of that layout.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        i %= len(self)
        store = self._stores[i]
        where = self._storage.name(store)
        with reading(where), closing(self._opened(store)) as opened:
            try:
                sample = self._sample(opened.dataset, where, i)
            except DataError as error:
                raise DataError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from error
        if self._tile is not None and min(sample.shape) < self._tile:
            raise DataError(f"{where} is {sample.shape} pixels, smaller than tile={self._tile}")
        return sample

    def _sample(self, dataset: "xarray.Dataset", where: str, i: int) -> Sample:
        if "rasters" in dataset.attrs and "GeoTransform" in dataset.attrs:
            held = [name for name in self._used if name in dataset.attrs["rasters"].split()]
            whole = from_dataset(_only(dataset, held).load())
            # Stores list their variables in any order; samples have the finest grid first.
            rasters = {
                name: replace(raster, grids=dict(sorted(raster.grids.items())))
                for name, raster in whole.rasters.items()
            }
            epsg, transform, attributes = whole.epsg, whole.transform, dict(whole.attributes)
        else:
            rasters, epsg, transform = self._plain(dataset, where)
            attributes = {k: v for k, v in dataset.attrs.items() if isinstance(v, (bool, int, float, str))}
        if not rasters:
            raise DataError(f"it has none of {', '.join(self._used)}")
        missing = ",".join(name for name in self._used if name not in rasters)
        return Sample(
            key=str(self.index.keys[i]),
            rasters=rasters,
            lon=float(self.index.lon[i]),
            lat=float(self.index.lat[i]),
            epsg=epsg,
            transform=transform,
            source=self.name,
            attributes={**scene_of(rasters), **attributes, **({"missing": missing} if missing else {})},
        )

    def _plain(
        self, dataset: "xarray.Dataset", where: str
    ) -> tuple[dict[str, Raster], int, tuple[float, float, float, float, float, float]]:
        variables = _variables(dataset)
        rasters = {}
        for name in self._used:
            if name in variables:
                variable = dataset[variables[name]]
                array, bands = _image(variable, name)
                unit = _UNIT_NAMES.get(str(variable.attrs.get("units", "")).lower())
                unit = Unit(variable.attrs["radiometric_unit"]) if "radiometric_unit" in variable.attrs else unit
                rasters[name] = native_or_fine(
                    name,
                    to_raster(
                        name,
                        array,
                        f"{where}: {variables[name]}",
                        bands=bands,
                        unit=unit,
                        time=_times(variable),
                        keep_nodata=self._keep_nodata,
                    ),
                )
        epsg = _epsg(dataset)
        if epsg is None:
            raise DataError("it has no coordinate system with an EPSG code; write one with rioxarray's write_crs")
        transform = transform_of_axes(dataset["x"].values, dataset["y"].values, "it")
        return rasters, epsg, transform

    def _locate(self, store: str) -> tuple[float, float]:
        """Centre of a store, degrees; NaN where it cannot be opened, which is told when it is read."""
        from rasterio.warp import transform

        try:
            with closing(self._opened(store)) as opened:
                dataset = opened.dataset
                if {"lon", "lat"} <= set(dataset.attrs):
                    return float(dataset.attrs["lon"]), float(dataset.attrs["lat"])
                epsg = _epsg(dataset)
                x, y = (float(np.mean(dataset[axis].values[[0, -1]])) for axis in ("x", "y"))
        except (DataError, OSError, KeyError, ValueError, TypeError):
            return np.nan, np.nan
        if epsg is None:
            return np.nan, np.nan
        lon, lat = transform(f"EPSG:{epsg}", "EPSG:4326", [x], [y])
        return float(lon[0]), float(lat[0])

    def _opened(self, store: str) -> "_Opened":
        return _Opened(self._storage, store)


class _Opened:
    """A dataset with the file that it reads from."""

    def __init__(self, storage: Storage, store: str):
        import xarray

        name = storage.name(store)
        file: BinaryIO | None = None
        try:
            if store.endswith((".nc", ".nc4")):
                file = storage.open(store)
                classic = file.read(len(_CLASSIC)) == _CLASSIC
                file.seek(0)
                engine: str = "scipy" if classic else "h5netcdf"
                self.dataset = xarray.open_dataset(file, engine=engine, mask_and_scale=False, cache=False)
            else:
                self.dataset = xarray.open_dataset(
                    _zarr_store(storage, store),
                    engine="zarr",
                    mask_and_scale=False,
                    cache=False,
                    chunks=None,
                    consolidated=_is_consolidated(storage, store),
                )
        except ImportError as error:
            raise DataError(f'{name} needs another package ({error}): pip install "terra_jax[xarray]"') from error
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError) as error:
            if file is not None:
                file.close()
            if isinstance(error, DataError):
                raise
            hint = ' (zarr and NetCDF 4 need: pip install "terra_jax[xarray]")' if "engine" in str(error) else ""
            raise DataError(f"{name} cannot be opened ({_reason(error)}); write it again{hint}") from error
        self._file = file

    def close(self) -> None:
        """Close both."""
        self.dataset.close()
        if self._file is not None:
            self._file.close()


def _zarr_store(storage: Storage, store: str) -> Any:
    import zarr.storage

    name = storage.name(store)
    if store.endswith(".zip"):
        if "://" in name:
            raise DataError(f"{name}: zipped stores are read from local paths; fetch it, or unpack it there")
        return zarr.storage.ZipStore(name, mode="r", read_only=True)
    return name


def _is_consolidated(storage: Storage, store: str) -> bool:
    """Whether all metadata of a store lie in one file; asked, because a wrong guess costs a warning or an error."""
    if store.endswith(".zip"):
        return False
    if storage.is_file(f"{store}/.zmetadata"):
        return True
    group = f"{store}/zarr.json"
    return storage.is_file(group) and b'"consolidated_metadata"' in storage.read(group)


def _stores(storage: Storage) -> list[str]:
    root = storage.root.rstrip("/")
    if root.endswith((_FOLDERS, *_FILES)):
        return [root]
    files = [path for path in storage.files(depth=1) if path.endswith(_FILES)]
    return sorted([*files, *storage.folders(_FOLDERS)], key=_key)


def _key(store: str) -> str:
    base = store.rpartition("/")[2]
    return next(base.removesuffix(suffix) for suffix in (*_FILES, _FOLDERS) if base.endswith(suffix))


def _variables(dataset: "xarray.Dataset") -> dict[str, str]:
    """Modality -> variable of a plain dataset."""
    known = ((ALIASES.get(str(name), str(name)), str(name)) for name in dataset.data_vars)
    return {name: variable for name, variable in known if name in MODALITIES}


def _modalities(dataset: "xarray.Dataset") -> tuple[str, ...]:
    if "rasters" in dataset.attrs:
        return tuple(name for name in dataset.attrs["rasters"].split() if name in MODALITIES)
    return tuple(_variables(dataset))


def _only(dataset: "xarray.Dataset", names: Sequence[str]) -> "xarray.Dataset":
    """A dataset of `to_dataset` with some of its rasters."""
    variables = [name for name, variable in dataset.data_vars.items() if variable.attrs.get("modality") in names]
    return dataset[variables].assign_attrs(rasters=" ".join(names))


def _image(variable: "xarray.DataArray", name: str) -> tuple[np.ndarray, list[str] | None]:
    """(band, y, x) or (time, band, y, x), and the bands' names where the dataset has them."""
    band = next((dim for dim in variable.dims if str(dim).startswith("band")), None)
    if band is None:
        variable = variable.expand_dims("band", -3 if variable.ndim > 2 else 0)
        band = "band"
    wanted = [dim for dim in ("time", band, "y", "x") if dim in variable.dims]
    if set(wanted) != set(variable.dims):
        raise DataError(f"{name} has the dimensions {', '.join(map(str, variable.dims))}, expected time, band, y, x")
    variable = variable.transpose(*wanted)
    labels = variable.coords[band].values if band in variable.coords else None
    named = labels is not None and labels.dtype.kind in "UOT"
    return variable.values, [str(label) for label in labels] if named else None  # type: ignore[union-attr]


def _times(variable: "xarray.DataArray") -> np.datetime64 | np.ndarray | None:
    if "time" not in variable.coords:
        return None
    values = variable.coords["time"].values
    return values.astype("datetime64[s]")[()] if values.dtype.kind == "M" else None


def _epsg(dataset: "xarray.Dataset") -> int | None:
    if "epsg" in dataset.attrs:
        return int(dataset.attrs["epsg"])
    for name in ("spatial_ref", "crs"):
        if name in dataset.variables:
            attrs = dataset[name].attrs
            text = attrs.get("crs_wkt") or attrs.get("spatial_ref") or attrs.get("epsg_code")
            if text is not None:
                return epsg_of(str(text))
            if dataset[name].dtype.kind in "iu" and int(dataset[name].values) > 1024:
                return int(dataset[name].values)
        if name in dataset.attrs:
            return epsg_of(str(dataset.attrs[name]))
    return None


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
