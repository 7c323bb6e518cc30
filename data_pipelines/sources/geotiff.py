"""Samples from folders of GeoTIFFs: <path>/<MODALITY>/<key>.tif, one file a modality, all bands at 10 m."""

import contextlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform as warp

from data_pipelines import radiometry
from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, MODALITIES, OCEAN, SCENE_CLASSES, modality
from data_pipelines.replication import native_or_fine
from data_pipelines.sample import Raster, Sample, grid_transform
from data_pipelines.sources import Index

_SUFFIXES = (".tif", ".tiff")
_OVERPASS = ("S2L2A", "S2L1C", "S2RGB", "NDVI")  # products of one Sentinel-2 image share its time
_OCEAN_WATER = 0.95  # share of water from which a tile at sea level is open sea
_THREADS = 8  # opening files waits for the disk


@dataclass(frozen=True)
class Header:
    """What a file says of itself before its pixels; `tags` are its own words, GDAL's metadata."""

    path: Path
    bands: int
    shape: tuple[int, int]
    epsg: int | None
    transform: tuple[float, float, float, float, float, float]
    time: np.datetime64 | None
    tags: Mapping[str, str]


class GeoTiffSource:
    """Random access to a folder of GeoTIFFs, on native grids and in the modality table's units and dtypes.

    Opening reads headers, and the pixels of LULC and DEM for the index; a sample's pixels are read on access.
    What the headers show to be wrong (bands, size, coordinates) is refused on opening; what only reading shows
    (a truncated file, NaN, other units) is refused on access.

    Args:
        path: folder with one sub-folder a modality.
        modalities: read these of each sample and require them; None reads what there is.
        tile: least side of the tiles in pixels; in any case they must all be of one size.
        samples: take only the first so many, by key.
        check: refuse a folder with a wrong header; False leaves it to `unchecked`, which tells of each file.

    Raises:
        DataError: naming the folder or file at fault and the cure.
    """

    name = "geotiff"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
        check: bool = True,
    ):
        self._root = Path(path)
        folders = modality_folders(self._root)
        self._used = required_modalities(self._root, folders, modalities)
        files = {name: tiffs(folder) for name, folder in folders.items()}
        keys = sorted(set().union(*(files[name] for name in self._used)))[:samples]
        if not keys:
            raise DataError(f"{self._root} holds no .tif files; expected {self._root}/<MODALITY>/<key>.tif")
        if modalities is not None:
            _check_present(keys, self._used, files, folders)
        with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # refused by name below
            self._files = [{name: paths[key] for name, paths in files.items() if key in paths} for key in keys]
            self._headers = list(pool.map(_read_headers, self._files))
            self._check_headers(tile, check)
            scenes = np.asarray(list(pool.map(scene_of, self._files)), np.int8)
        references = [self._reference(i) for i in range(len(keys))]
        lon, lat = centres_of([found[1] if found else None for found in references])
        self.index = Index.at(keys, lon, lat, scenes)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`.

        Raises:
            DataError: naming the file that cannot be read, holds NaN or contradicts its unit.
        """
        headers, files = self._headers[i], self._files[i]
        rasters = {name: _read_raster(name, files[name], headers) for name in self._used if name in files}
        sample = self._sample(i, rasters)
        if sample is None:
            raise DataError(f"{next(iter(files.values()))} could not be read on opening; open the folder again")
        return sample

    def unchecked(self, i: int) -> tuple[Sample, dict[str, list[str]]]:
        """Sample `i` with all that can be read at all, for an audit, and what is wrong with its files.

        Numbers are as they are: NaN, other units and bands out of order stay. Integers and decibels have the modality
        table's dtype where it holds them, and native grids where the bands are copies.

        Returns:
            The sample and, by modality, flags as of `fingerprints`.

        Raises:
            DataError: if none of its files can be read.
        """
        headers, files = self._headers[i], self._files[i]
        rasters, flags = {}, {}
        reference = self._reference(i)
        for name in (name for name in self._used if name in files):
            try:
                if name in headers and reference is not None:
                    check_header(name, headers[name], reference)
            except DataError as error:
                flags[name] = [f"header: {error}"]
                continue
            try:
                rasters[name], flags[name] = _read_unchecked(name, files[name], headers)
            except DataError as error:
                flags[name] = [f"unreadable: {error}"]
        sample = self._sample(i, rasters)
        if not rasters or sample is None:
            raise DataError(next(flag for found in flags.values() for flag in found).partition(": ")[2])
        return sample, flags

    def _sample(self, i: int, rasters: Mapping[str, Raster]) -> Sample | None:
        """Rasters with their place; None where no file could be opened, or none says where it is."""
        reference = self._reference(i)
        if reference is None or reference[1].epsg is None:
            return None
        return Sample(
            key=str(self.index.keys[i]),
            rasters=rasters,
            lon=float(self.index.lon[i]),
            lat=float(self.index.lat[i]),
            epsg=reference[1].epsg,
            transform=ground_transform(*reference),
            source=self.name,
            attributes={"scene": int(self.index.scene[i])},
        )

    def _reference(self, i: int) -> tuple[str, Header] | None:
        """Modality and header whose grid is the sample's: the first, in table order, that could be opened."""
        return next(((name, self._headers[i][name]) for name in self._used if name in self._headers[i]), None)

    def _check_headers(self, tile: int | None, check: bool) -> None:
        used = [(name, header[name]) for header in self._headers for name in self._used if name in header]
        if not used:
            first = next(iter(self._files[0].values()))
            raise DataError(f"none of the files in {self._root} can be read ({first} the first); copy them again")
        if not check:
            return
        for headers in self._headers:
            present = {name: headers[name] for name in self._used if name in headers}
            for name, header in present.items():
                check_header(name, header, next(iter(present.items())))
        height, width = Counter(ground_shape(name, header) for name, header in used).most_common(1)[0][0]
        for name, header in used:
            detail = modality(name).detail
            if header.shape != (detail * height, detail * width):
                usual = _size((detail * height, detail * width))
                raise DataError(
                    f"{header.path} is {_size(header.shape)} pixels, most others {usual}; "
                    "cut it to that size or remove it"
                )
        if tile is not None and min(height, width) < tile:
            raise DataError(
                f"{used[0][1].path} is {_size((height, width))} pixels, smaller than tile={tile}; choose a smaller tile"
            )


def scene_class(land_cover: np.ndarray, elevation: np.ndarray | None) -> int:
    """Dominant land cover of a tile, with open sea as a class of its own.

    Args:
        land_cover: class ids, any shape.
        elevation: metres, any shape; None where unknown (then no tile is open sea).

    Returns:
        Index into `modalities.SCENE_CLASSES`; -1 where all is no-data.
    """
    # Several times faster than bincount, which widens every pixel first.
    counts = np.array([np.count_nonzero(land_cover == number) for number in range(len(LAND_COVER))])
    counts[LAND_COVER.index("nodata")] = 0
    if not counts.any():
        return -1
    water = counts[LAND_COVER.index("water")] / counts.sum()
    if elevation is not None and water >= _OCEAN_WATER and elevation.max() <= 0:
        return SCENE_CLASSES.index(OCEAN)
    return int(counts.argmax())


def modality_folders(root: Path) -> dict[str, Path]:
    """Folders of a data folder by modality, in table order.

    Raises:
        DataError: if there are none, or one is of no modality.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; give the one that holds <MODALITY>/<key>.tif")
    folders: dict[str, Path] = {}
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        try:
            name = modality(folder.name).name
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error
        if name in folders:
            raise DataError(f"{folder} and {folders[name]} are the same modality; merge them")
        folders[name] = folder
    if not folders:
        raise DataError(
            f"{root} is empty; expected {root}/<MODALITY>/<key>.tif with modalities {', '.join(MODALITIES)}"
        )
    return {name: folders[name] for name in MODALITIES if name in folders}


def required_modalities(root: Path, folders: dict[str, Path], modalities: Sequence[str] | None) -> tuple[str, ...]:
    """Modalities to read, in table order.

    Raises:
        DataError: if one that is asked for has no folder.
    """
    if modalities is None:
        return tuple(folders)
    wanted = {modality(name).name for name in modalities}
    for name in wanted:
        if name not in folders:
            raise DataError(f"{root} has no folder {name}; it has {', '.join(folders)}")
    return tuple(name for name in folders if name in wanted)


def tiffs(folder: Path) -> dict[str, Path]:
    """GeoTIFFs of a folder by their names without the ending."""
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES}


def _check_present(
    keys: Sequence[str], used: Sequence[str], files: dict[str, dict[str, Path]], folders: dict[str, Path]
) -> None:
    for key in keys:
        for name in used:
            if key not in files[name]:
                raise DataError(f"{folders[name] / key}.tif is missing; add it or leave {name} out of the modalities")


def _open(path: Path) -> rasterio.DatasetReader:
    return rasterio.open(path, sharing=False)


def _read_headers(files: dict[str, Path]) -> dict[str, Header]:
    """Headers of a sample's files; those that cannot be opened are left out, and refused when they are read."""
    headers = {name: read_header(path) for name, path in files.items()}
    return {name: header for name, header in headers.items() if header is not None}


def read_header(path: Path) -> Header | None:
    """What a file says of itself; None where it cannot be opened.

    Raises:
        DataError: if its datetime tag is none.
    """
    try:
        with _open(path) as file:
            epsg = file.crs.to_epsg() if file.crs else None
            tags = file.tags()
            transform = tuple(file.transform)[:6]
            return Header(path, file.count, file.shape, epsg, transform, _time(path, tags), tags)
    except RasterioError:
        return None


def _time(path: Path, tags: dict[str, str]) -> np.datetime64 | None:
    text = tags.get("datetime")
    if text is None:
        return None
    try:
        return np.datetime64(text).astype("datetime64[s]")
    except ValueError as error:
        raise DataError(f"{path} has the datetime tag {text!r}; write it as 2020-01-31T12:00:00") from error


def ground_shape(name: str, header: Header) -> tuple[float, float]:
    """Height and width of a file in pixels of 10 m."""
    detail = modality(name).detail
    return header.shape[0] / detail, header.shape[1] / detail


def ground_transform(name: str, header: Header) -> tuple[float, float, float, float, float, float]:
    """Affine of the 10 m grid of a file."""
    return grid_transform(header.transform, 10 * modality(name).detail)


def check_header(
    name: str, header: Header, reference: tuple[str, Header], slack: float = 0.01, bands: Sequence[str] | None = None
) -> None:
    """Refuse a file that is not its modality, or does not lie on the grid of the sample's other files.

    Args:
        name: modality of the file.
        header: of the file.
        reference: modality and header of the file that the others must lie on.
        slack: how far from 10 m pixels may be, in parts.
        bands: those expected, where they are not all of the modality's.

    Raises:
        DataError: naming the file and the cure.
    """
    path, (other, base), detail = header.path, reference, modality(name).detail
    _check_bands(name, path, header.bands, bands)
    if header.epsg is None:
        raise DataError(f"{path} has no coordinate system with an EPSG code; assign the one that it was cut in")
    a, b, _, d, e, _ = header.transform
    pixel = 10 / detail
    if b or d or max(abs(a - pixel), abs(e + pixel)) > slack * pixel:
        raise DataError(f"{path} has pixels of {a:g} x {e:g}; resample it to a north-up grid of {pixel:g} m")
    if header.epsg != base.epsg:
        raise DataError(f"{path} is in EPSG:{header.epsg}, {base.path} in EPSG:{base.epsg}; reproject one to the other")
    shift = max(abs(header.transform[k] - base.transform[k]) for k in (2, 5)) / 10
    if shift >= 0.5:
        raise DataError(f"{path} lies {shift:.3g} pixels off {base.path}; cut both on the same grid")
    coarse = base.transform[0] * modality(other).detail
    if abs(a * detail - coarse) > 1e-3 * coarse:
        raise DataError(f"{path} has pixels of {a:g}, {base.path} of {base.transform[0]:g}; resample one to the other")


def _check_bands(name: str, path: Path, bands: int, expected: Sequence[str] | None = None) -> None:
    names = expected or modality(name).band_names
    if bands != len(names):
        wanted = f"{len(names)} ({', '.join(names)})"
        raise DataError(f"{path} has {bands} bands, {name} has {wanted}; write it again with all of them")


def read_checked(name: str, path: Path, bands: Sequence[str] | None = None) -> np.ndarray:
    """Pixels (band, y, x) of one file, as they are stored in it.

    Args:
        name: modality whose bands, in order, and unit the file must have.
        path: a GeoTIFF.
        bands: the bands expected, where they are not all of the modality's.

    Raises:
        DataError: if it cannot be read, has other bands, no data somewhere, or numbers of another unit.
    """
    table = modality(name)
    array, nodata, described = _read_pixels(path)
    names = tuple(bands or table.band_names)
    _check_bands(name, path, len(array), names)
    if set(described) <= set(table.band_names) and described != names:
        raise DataError(f"{path} has the bands {', '.join(described)}; reorder them to {', '.join(names)}")
    _check_complete(path, array, nodata if nodata != table.nodata else None, names)
    radiometry.check_plausible(str(path), Raster({10: array}, table.unit))
    return array


def _read_pixels(path: Path) -> tuple[np.ndarray, float | None, tuple[str, ...]]:
    """Pixels (band, y, x), the file's no-data value and its names of the bands, "" where it has none."""
    try:
        with _open(path) as file:
            return file.read(), file.nodata, tuple(name or "" for name in file.descriptions)
    except RasterioError as error:
        raise DataError(f"{path} cannot be read (truncated or no TIFF); copy it again or remove it") from error


def _read_raster(name: str, path: Path, headers: dict[str, Header]) -> Raster:
    table = modality(name)
    stored = as_stored(path, read_checked(name, path), table.dtype)
    return native_or_fine(name, Raster({10: stored}, table.unit, _acquired(name, headers)))


def _read_unchecked(name: str, path: Path, headers: dict[str, Header]) -> tuple[Raster, list[str]]:
    """A file as it is, and flags of what its own words contradict; refused only if it cannot be read."""
    table = modality(name)
    array, nodata, described = _read_pixels(path)
    _check_bands(name, path, len(array))
    flags = []
    if set(described) <= set(table.band_names) and described != table.band_names:
        flags.append(f"band_order: described as {', '.join(described)}")
    if nodata is not None and nodata != table.nodata and (share := float(np.mean(array == nodata))):
        flags.append(f"no_data: {share:.2%} is marked by {nodata:g}")
    with contextlib.suppress(DataError):
        array = as_stored(path, array, table.dtype)
    raster = Raster({10: array}, table.unit, _acquired(name, headers))
    return native_or_fine(name, raster), flags


def _check_complete(path: Path, array: np.ndarray, nodata: float | None, bands: Sequence[str]) -> None:
    absent = ~np.isfinite(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)
    if nodata is not None:
        absent |= array == nodata
    for band, share in zip(bands, absent.mean(axis=(1, 2)), strict=True):
        if share:
            raise DataError(f"{path} has no data (NaN) in {share:.2%} of band {band}; fill or remove the tile")


def as_stored(path: Path, array: np.ndarray, dtype: str) -> np.ndarray:
    """Cast to the table's dtype: integers exactly, decibels and indices to the nearest float16 (< 0.02 dB off)."""
    stored = array.astype(dtype)
    if stored.dtype.kind != "f" and not np.array_equal(stored, array):
        raise DataError(f"{path} holds {array.dtype} numbers that {dtype} cannot; write it as {dtype}")
    return stored


def _acquired(name: str, headers: dict[str, Header]) -> np.datetime64 | None:
    times = [headers[other].time for other in (name, *(_OVERPASS if name in _OVERPASS else ())) if other in headers]
    return next((time for time in times if time is not None), None)


def scene_of(files: dict[str, Path]) -> int:
    """Scene class of a sample; -1 where its land cover is absent or cannot be read."""
    if "LULC" not in files:
        return -1
    try:
        land_cover, *_ = _read_pixels(files["LULC"])
        radiometry.check_plausible(str(files["LULC"]), Raster({10: land_cover}, modality("LULC").unit))
        elevation = _read_pixels(files["DEM"])[0] if "DEM" in files else None
    except DataError:
        return -1
    return scene_class(land_cover, elevation)


def centres_of(headers: Sequence[Header | None]) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of the tiles' centres; NaN where no file could be opened."""
    lon, lat = np.full((2, len(headers)), np.nan)
    groups: dict[int, list[tuple[int, Header]]] = {}
    for i, header in enumerate(headers):
        if header is not None and header.epsg is not None:
            groups.setdefault(header.epsg, []).append((i, header))
    for epsg, members in groups.items():
        rows = [i for i, _ in members]
        x = [h.transform[2] + h.transform[0] * h.shape[1] / 2 for _, h in members]
        y = [h.transform[5] + h.transform[4] * h.shape[0] / 2 for _, h in members]
        lon[rows], lat[rows] = warp(f"EPSG:{epsg}", "EPSG:4326", x, y)
    return lon, lat


def _size(shape: tuple[float, float]) -> str:
    return f"{shape[1]:g} x {shape[0]:g}"
