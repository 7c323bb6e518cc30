"""Fabricated samples, sources and GeoTIFF folders for the tests of the data path."""

from pathlib import Path

import numpy as np
import rasterio
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.modalities import MODALITIES, Unit, modality
from data_pipelines.recipes.spec import ArraySpec
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index

ORIGIN = (600_000.0, 5_000_040.0)  # on the 60 m lattice of any UTM zone


def same(left: Sample, right: Sample) -> bool:
    """Whether two samples are equal to the last bit, dtypes and times included."""
    fields = ("key", "lon", "lat", "epsg", "transform", "source", "attributes")
    if any(getattr(left, name) != getattr(right, name) for name in fields):
        return False
    return list(left.rasters) == list(right.rasters) and all(
        same_raster(a, right.rasters[name]) for name, a in left.rasters.items()
    )


def same_raster(left: Raster, right: Raster) -> bool:
    if left.unit is not right.unit or list(left.grids) != list(right.grids) or not _same_array(left.time, right.time):
        return False
    if list(left.frames) != list(right.frames) or not all(
        _same_array(fact, right.frames[name]) for name, fact in left.frames.items()
    ):
        return False
    return all(_same_array(grid, right.grids[gsd]) for gsd, grid in left.grids.items())


def _same_array(left, right) -> bool:
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


@st.composite
def rasters(draw, name: str, pixels: int) -> Raster:
    """A raster of a modality on native grids or all at 10 m, a single image or a series, possibly with NaN."""
    table = modality(name)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = draw(st.sampled_from([None, None, 2]))
    native = draw(st.booleans())
    grids = table.grids if native else {10: tuple(range(len(table.bands)))}
    lead = () if frames is None else (frames,)
    arrays = {}
    for gsd, bands in grids.items():
        side = -(-pixels // (gsd // 10)) * (1 if table.detail == 1 else 2)  # finer, not 32 times: only for a test
        array = rng.normal(0, 50, (*lead, len(bands), side, side)).astype(table.dtype)
        if array.dtype.kind == "f" and draw(st.booleans()):
            array.reshape(-1)[0] = np.nan
        arrays[gsd] = array
    seconds = draw(st.integers(0, 2**32))
    time = [None, np.datetime64(seconds, "s")][draw(st.integers(0, 1))]
    if frames is not None:
        time = (seconds + np.arange(frames)).astype("datetime64[s]")
        facts = {"cloud_fraction": rng.random(frames, dtype=np.float32), "ascending": rng.random(frames) < 0.5}
        return Raster(arrays, table.unit, time, facts if draw(st.booleans()) else {})
    return Raster(arrays, table.unit, time)


@st.composite
def samples(draw) -> Sample:
    """A sample of one to three modalities."""
    names = draw(st.lists(st.sampled_from(sorted(MODALITIES)), min_size=1, max_size=3, unique=True))
    pixels = draw(st.integers(1, 13))
    number = st.floats(allow_nan=False, allow_infinity=False, width=64)
    value = st.one_of(number, st.integers(-(2**40), 2**40), st.text(max_size=5), st.booleans())
    return Sample(
        key=draw(st.text("abc_0123", min_size=1, max_size=8)),
        rasters={name: draw(rasters(name, pixels)) for name in names},
        lon=draw(st.floats(-180, 180)),
        lat=draw(st.floats(-85, 85)),
        epsg=draw(st.sampled_from([32631, 32722])),
        transform=(10.0, 0.0, draw(st.floats(0, 1e6)), 0.0, -10.0, draw(st.floats(0, 1e7))),
        source="fake",
        attributes=draw(st.dictionaries(st.text("abc", min_size=1, max_size=3), value, max_size=2)),
    )


def elevation_sample(i: int, pixels: int = 4) -> Sample:
    """A small sample whose pixels say its number."""
    grid = np.full((1, pixels, pixels), i, np.int16)
    transform = (10.0, 0.0, ORIGIN[0], 0.0, -10.0, ORIGIN[1])
    return Sample(f"s{i}", {"DEM": Raster({10: grid}, Unit.METRE)}, 3.0, 45.0, 32631, transform, "fake")


class FakeSource:
    """Elevation samples, some of which cannot be read."""

    name = "fake"

    def __init__(self, size: int, unreadable: tuple[int, ...] = ()):
        self.index = Index.at([f"s{i}" for i in range(size)], np.full(size, 3.0), np.full(size, 45.0))
        self.unreadable, self.reads = unreadable, 0

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        self.reads += 1
        if i in self.unreadable:
            raise DataError(f"s{i}.tif cannot be read; copy it again")
        return elevation_sample(i)


class FakeRecipe:
    """An example that says which sample it is of and where in the stream, with a random number of its own."""

    def __init__(self):
        self.batch_spec = {
            "sample": ArraySpec((), "int64"),
            "position": ArraySpec((), "int64"),
            "noise": ArraySpec((2,), "float64"),
        }

    def __call__(self, sample: Sample, position: int) -> dict[str, np.ndarray]:
        return {
            "sample": np.int64(sample.rasters["DEM"].grids[10][0, 0, 0]),
            "position": np.int64(position),
            "noise": np.random.default_rng([7, position]).random(2),
        }


def plausible(name: str, pixels: int, seed: int = 0) -> np.ndarray:
    """(band, y, x) at 10 m with numbers that fit the modality's unit, replicated from native grids."""
    table, rng = modality(name), np.random.default_rng(seed)
    low, high = {
        Unit.DN10000: (100, 4000), Unit.DB: (-25, 0), Unit.METRE: (5, 500), Unit.CLASS: (1, 9),
        Unit.INDEX: (-1, 1), Unit.BYTE: (0, 255),
    }[table.unit]  # fmt: skip
    out = np.empty((len(table.bands), pixels, pixels), np.float64)
    for i, band in enumerate(table.bands):
        step = band.gsd // 10
        side = -(-pixels // step)
        coarse = rng.uniform(low, high, (side, side))
        out[i] = coarse.repeat(step, 0).repeat(step, 1)[:pixels, :pixels]
    return out.astype(table.dtype)


def write_tif(path: Path, array: np.ndarray, *, epsg: int = 32631, offset: float = 0.0, gsd: float = 10.0, **tags: str):
    """Write (band, y, x) as a GeoTIFF; float16 is widened to float32, as GDAL wants it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    profile = {
        "driver": "GTiff", "count": array.shape[0], "height": array.shape[1], "width": array.shape[2],
        "dtype": array.dtype, "crs": f"EPSG:{epsg}",
        "transform": rasterio.Affine(gsd, 0, ORIGIN[0] + offset, 0, -gsd, ORIGIN[1]),
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(array)
        file.update_tags(**tags)


def write_folder(root: Path, keys=("a", "b", "c"), modalities=("S2L2A", "S1RTC", "DEM", "LULC"), pixels=24) -> Path:
    """A folder of plausible tiles."""
    for n, key in enumerate(keys):
        for name in modalities:
            write_tif(root / name / f"{key}.tif", plausible(name, pixels, n))
    return root


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, cut off, cut out, doubled or wiped."""
    kind, out = rng.integers(6), bytearray(data)
    start, length = int(rng.integers(len(out))), int(rng.integers(1, 200))
    if kind <= 1:
        for _ in range(int(rng.integers(1, 8))):
            out[int(rng.integers(len(out)))] ^= int(rng.integers(1, 256))
    elif kind == 2:
        del out[start:]
    elif kind == 3:
        del out[start : start + length]
    elif kind == 4:
        out[start:start] = out[start : start + length]
    else:
        out[start : start + length] = bytes(len(out[start : start + length]))
    return bytes(out)
