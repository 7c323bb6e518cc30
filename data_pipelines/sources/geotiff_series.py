"""Triple samples from folders of GeoTIFFs: a high-resolution image and series of Sentinel-2 and Sentinel-1.

    <path>/HR/<key>.tif                     red, green, blue; 8 bits; 32 pixels to one of the series (0.3125 m)
    <path>/S2L2A/<key>/<date>.tif           twelve bands, or the ten without B01 and B09; digital numbers; 10 m
    <path>/S1GRD/<key>/<date>.tif           VV, VH in dB; 10 m
    <path>/LULC/<key>.tif                   land cover for evaluation, if there is any

All files of a key share their coordinate system and their upper left corner. `<date>` is YYYY-MM-DD, further words may
follow after "T" or "_" (2021-06-30_descending.tif). A file's `datetime` tag gives the time of the day and must agree
with its name; the tags `cloud_fraction` (0 to 1) and `orbit` (ascending, descending) are kept where all frames have
them. Pixels of the series may measure 9 to 11 m, so that Web-Mercator tiles (9.555 and 0.2986 m) pass.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rasterio.errors import NotGeoreferencedWarning

from data_pipelines import radiometry
from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from data_pipelines.sources.geotiff import (
    Header,
    as_stored,
    centres_of,
    check_header,
    ground_shape,
    ground_transform,
    modality_folders,
    read_checked,
    read_header,
    required_modalities,
    scene_of,
    tiffs,
)

KNOWN = ("HR", "S2L2A", "S1GRD", "LULC")
SERIES = ("S2L2A", "S1GRD")
TEN_BANDS = tuple(band.name for band in modality("S2L2A").bands if band.gsd <= 20)

_DATE = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[T_].*)?")
_SLACK = 0.1  # of a pixel's size
_THREADS = 8

Frames = Mapping[str, Path]
"""Name of a frame -> its file."""


class GeoTiffSeriesSource:
    """Random access to a folder of series, in the modality table's units and dtypes.

    Opening lists the files and reads one header a modality and key for the index, and the land cover; everything else
    is checked when a sample is read.

    Args:
        path: folder with one sub-folder a modality.
        modalities: read these of each sample and require them; None reads what there is. LULC always comes along.
        tile: least side of the tiles in pixels of 10 m.
        samples: take only the first so many, by key.

    Raises:
        DataError: naming the folder or file at fault and the cure.
    """

    name = "geotiff_series"

    def __init__(
        self,
        path: str | Path,
        modalities: Sequence[str] | None = None,
        tile: int | None = None,
        samples: int | None = None,
    ):
        self._root, self._tile = Path(path), tile
        folders = modality_folders(self._root)
        strange = [name for name in folders if name not in KNOWN]
        if strange:
            raise DataError(f"{folders[strange[0]]} is none of {', '.join(KNOWN)}; move it away")
        used = required_modalities(self._root, folders, modalities)
        self._used = tuple(name for name in folders if name in used or name == "LULC")
        found = {name: _listed(name, folders[name]) for name in self._used}
        keys = sorted(set().union(*(found[name] for name in self._used if name != "LULC")))[:samples]
        if not keys:
            raise DataError(f"{self._root} holds no series; expected {self._root}/S2L2A/<key>/<YYYY-MM-DD>.tif")
        for key in keys if modalities is not None else []:
            for name in used:
                if key not in found[name]:
                    raise DataError(f"{folders[name] / key} is missing; add it or leave {name} out of the modalities")
        self._files = [{name: found[name][key] for name in self._used if key in found[name]} for key in keys]
        with ThreadPoolExecutor(_THREADS) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # refused by name on reading
            references = list(pool.map(_reference, self._files))
            covers = [{"LULC": files["LULC"][""]} if "LULC" in files else {} for files in self._files]
            scenes = np.asarray(list(pool.map(scene_of, covers)), np.int8)
        lon, lat = centres_of([found[1] if found else None for found in references])
        self.index = Index.at(keys, lon, lat, scenes)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`, with all frames of its series.

        Raises:
            DataError: naming the file that cannot be read, has no date, contradicts its unit or lies elsewhere.
        """
        files = self._files[i]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            reference = _reference(files)
            if reference is None:
                raise DataError(f"{next(iter(next(iter(files.values())).values()))} cannot be read; copy it again")
            rasters = {name: _read(name, frames, reference) for name, frames in files.items()}
        if self._tile is not None and min(ground_shape(*reference)) < self._tile:
            raise DataError(f"{reference[1].path} is smaller than tile={self._tile}; choose a smaller tile")
        assert reference[1].epsg is not None
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


def _listed(name: str, folder: Path) -> dict[str, Frames]:
    """Files of a modality: key -> frames, "" being the name of the one frame of what is no series."""
    if name not in SERIES:
        return {key: {"": path} for key, path in tiffs(folder).items()}
    stray = tiffs(folder)
    if stray:
        path = next(iter(stray.values()))
        raise DataError(
            f"{path} is no series; {name} wants one folder a place and one file a date, {folder}/<key>/<YYYY-MM-DD>.tif"
        )
    listed = {entry.name: tiffs(entry) for entry in sorted(folder.iterdir()) if entry.is_dir()}
    return {key: frames for key, frames in listed.items() if frames}


def _reference(files: Mapping[str, Frames]) -> tuple[str, Header] | None:
    """Modality and header of the first file that can be opened: the others must lie on its grid."""
    for name, frames in files.items():
        for path in frames.values():
            header = read_header(path)
            if header is not None:
                return name, header
    return None


def _read(name: str, frames: Frames, reference: tuple[str, Header]) -> Raster:
    """One modality of a sample: an image, or a series in the order of its dates."""
    opened = [_checked_header(name, path, reference) for path in frames.values()]
    if name not in SERIES:
        header, bands = opened[0]
        image = as_stored(header.path, read_checked(name, header.path, bands), modality(name).dtype)
        return Raster({10: image}, modality(name).unit, header.time)
    times = np.array([_time(stem, header) for stem, (header, _) in zip(frames, opened, strict=True)])
    order = np.argsort(times, kind="stable")
    twice = np.flatnonzero(np.diff(times[order]) == np.timedelta64(0, "s"))
    if len(twice):
        first, second = (opened[order[twice[0] + k]][0].path for k in (0, 1))
        raise DataError(f"{first} and {second} are of the same time; tag them with their datetime or remove one")
    images = [_native(name, opened[i][0].path, opened[i][1]) for i in order]
    grids = {gsd: np.stack([image[gsd] for image in images]) for gsd in images[0] if all(gsd in im for im in images)}
    return Raster(grids, modality(name).unit, times[order], _facts([opened[i][0] for i in order]))


def _checked_header(name: str, path: Path, reference: tuple[str, Header]) -> tuple[Header, Sequence[str] | None]:
    """Header of a file that lies on the reference's grid, and its bands where they are not all of the modality's."""
    header = read_header(path)
    if header is None:
        raise DataError(f"{path} cannot be read (truncated or no TIFF); copy it again or remove it")
    bands = TEN_BANDS if name == "S2L2A" and header.bands == len(TEN_BANDS) else None
    check_header(name, header, reference, _SLACK, bands)
    detail, (height, width) = modality(name).detail, ground_shape(*reference)
    if header.shape != (detail * height, detail * width):
        raise DataError(
            f"{path} is {header.shape[1]} x {header.shape[0]} pixels, {reference[1].path} has {width:g} x {height:g} "
            f"of 10 m; cut it to {detail * width:g} x {detail * height:g}"
        )
    return header, bands


def _time(stem: str, header: Header) -> np.datetime64:
    """When a frame was taken: the date that names its file, the time of its datetime tag."""
    match = _DATE.fullmatch(stem)
    try:
        date = np.datetime64(match[1]) if match else None
    except ValueError:
        date = None
    if date is None:
        raise DataError(f"{header.path} has no date; name it YYYY-MM-DD.tif by the day of its acquisition")
    if header.time is None:
        return date.astype("datetime64[s]")
    if header.time.astype("datetime64[D]") != date:
        raise DataError(f"{header.path} is dated {date} by its name and {header.time} by its datetime tag; mend one")
    return header.time


def _native(name: str, path: Path, bands: Sequence[str] | None) -> dict[int, np.ndarray]:
    """Pixels of one frame on native grids; those of 60 m only where the file has them."""
    table = modality(name)
    image = as_stored(path, read_checked(name, path, bands), table.dtype)
    if bands is not None:
        whole = np.zeros((len(table.bands), *image.shape[1:]), image.dtype)
        whole[[table.band_index(band) for band in bands]] = image
        image = whole
    try:
        grids = radiometry.to_native_grids(name, Raster({10: image}, table.unit)).grids
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return {gsd: grid for gsd, grid in grids.items() if bands is None or gsd <= 20}


def _facts(headers: Sequence[Header]) -> dict[str, np.ndarray]:
    """What the tags of all frames tell: clouds, orbits."""
    facts = {}
    tags = [{key.lower(): value for key, value in header.tags.items()} for header in headers]
    if all("cloud_fraction" in tag for tag in tags):
        try:
            facts["cloud_fraction"] = np.array([float(tag["cloud_fraction"]) for tag in tags], np.float32)
        except ValueError as error:
            raise DataError(f"{headers[0].path.parent}: a cloud_fraction tag is no number; mend or drop it") from error
    if all(tag.get("orbit", "").lower() in ("ascending", "descending") for tag in tags):
        facts["ascending"] = np.array([tag["orbit"].lower() == "ascending" for tag in tags])
    return facts
