"""Rasters of some modalities to rasters of others: whole scenes by overlapping windows, where they lie on Earth."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from rasterio.errors import CRSError
from rasterio.warp import transform as warp

from data_pipelines.modalities import Unit, modality
from terra_jax.errors import ConfigError
from terra_jax.inference.rasters import Georeference, read_image, read_place, write_image
from terra_jax.parallel.mesh import make_mesh
from terra_jax.parallel.shardings import replicated
from terra_jax.weights.atomic import file_aside

COORDINATES = "coords"


class Generator(Protocol):
    """What generates modalities from others, such as `terramind.generator.Generator`."""

    patch: int
    image: int
    multiple: int

    def generate(self, inputs: Mapping[str, Any], outputs: Sequence[str], **options: Any) -> dict[str, Any]:
        """Batches of rasters to batches of rasters."""


@dataclass(frozen=True)
class Tiling:
    """How a scene is cut.

    Attributes:
        window: pixels per side of a window; None: of a usual image of the model.
        overlap: least pixels that neighbours share, where they are blended; None: a quarter of a window.
        batch: windows that are on each device at once.
    """

    window: int | None = None
    overlap: int | None = None
    batch: int = 4


def generate_rasters(
    generator: Generator,
    sources: Mapping[str, Path | None],
    outputs: Sequence[str],
    out: Path,
    *,
    seed: int = 0,
    tiling: Tiling = Tiling(),
    overwrite: bool = False,
    tags: Mapping[str, Any] | None = None,
    **options: Any,
) -> list[Path]:
    """Generate rasters of a scene, larger ones by windows that share what is drawn at each place.

    The bytes follow from the inputs and the seed, whatever the number of devices.

    Args:
        generator: of the modalities.
        sources: modality -> GeoTIFF with all its bands in its unit; all of one grid, with a georeference. "coords" ->
            None gives the scene's place.
        outputs: modalities, in the order in which they are decided.
        out: folder that takes MODALITY.tif for each, and coords.json.
        seed: of all that is drawn.
        tiling: how the scene is cut.
        overwrite: whether to replace what lies there.
        tags: metadata of the rasters.
        options: further arguments of `generator.generate`.

    Returns:
        The files written.

    Raises:
        ConfigError, DataError: rasters without a place, of different grids, other bands or units; outputs that exist.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed} is out of range; use 0..{2**32 - 1}")
    for name in outputs:
        if name != COORDINATES:
            modality(name)
        if name in sources:
            raise ConfigError(f"{name} is given; leave it out of the outputs")
    files = {name: out / (f"{name}.json" if name == COORDINATES else f"{name}.tif") for name in outputs}
    for path in files.values():
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; choose another --out or pass --overwrite")
    scene = _Scene.read({name: path for name, path in sources.items() if path is not None}, COORDINATES in sources)
    maps = _generated(generator, scene, tuple(outputs), jax.random.key(seed), tiling, options)
    for name, path in files.items():
        if name == COORDINATES:
            lon, lat = (round(float(value), 4) for value in maps[name])
            with file_aside(path) as aside:
                aside.write_text(json.dumps({"lon": lon, "lat": lat}) + "\n")
        else:
            write_image(path, maps[name], name, scene.place, {"seed": seed, **(tags or {})})
    return list(files.values())


@dataclass(frozen=True)
class _Scene:
    """Rasters of one grid; `located`: whether the windows' centres are an input too."""

    images: Mapping[str, np.ndarray]
    place: Georeference
    located: bool

    @classmethod
    def read(cls, files: Mapping[str, Path], located: bool) -> "_Scene":
        if not files:
            raise ConfigError("no raster is given; give one as MODALITY=FILE")
        places = {}
        for path in files.values():
            if not path.is_file():
                raise ConfigError(f"{path} does not exist; give a GeoTIFF")
            places[path] = place, _ = read_place(path)
            if not place.is_known:
                raise ConfigError(f"{path} has no georeference; assign the coordinate system and grid that it lies on")
        (first, expected), *others = places.items()
        for path, found in others:
            if found != expected:
                raise ConfigError(f"{path} does not lie on the grid of {first}; resample one to the other")
        images = {name: read_image(path, name) for name, path in files.items()}
        return cls(images, expected[0], located)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width, pixels."""
        height, width, _ = next(iter(self.images.values())).shape
        return height, width

    def centre(self, row: float, column: float, side: tuple[int, int]) -> tuple[float, float]:
        """Longitude and latitude of the middle of a window."""
        a, b, c, d, e, f = self.place.transform
        column, row = column + side[1] / 2, row + side[0] / 2
        x, y = a * column + b * row + c, d * column + e * row + f
        try:
            (lon,), (lat,) = warp(self.place.crs, "EPSG:4326", [x], [y])
        except CRSError as error:
            raise ConfigError(f"the scene's coordinate system leads to no longitude and latitude ({error})") from error
        return lon, lat


@dataclass(frozen=True)
class _Windows:
    """Windows of one size that cover a scene, padded to whole patches by its own mirror image.

    Attributes:
        shape: height and width of the padded scene.
        side: of a window.
        corners: row and column of each.
        overlap: pixels along which neighbours are blended.
    """

    shape: tuple[int, int]
    side: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    overlap: int

    @classmethod
    def cover(cls, shape: tuple[int, int], generator: Generator, tiling: Tiling) -> "_Windows":
        unit, patch = generator.multiple, generator.patch
        window = tiling.window or generator.image
        if window < 1 or window % unit:
            raise ConfigError(f"a window of {window} pixels does not suit the model; use a multiple of {unit}")
        overlap = window // 4 if tiling.overlap is None else tiling.overlap
        if not 0 <= overlap < window:
            raise ConfigError(f"an overlap of {overlap} pixels does not suit windows of {window}; use less")
        if tiling.batch < 1:
            raise ConfigError(f"a batch of {tiling.batch} windows is too small; use 1 or more")
        padded = tuple(-(-length // unit) * unit for length in shape)
        side = tuple(min(length, window) for length in padded)
        rows, columns = (
            _starts(length, extent, (extent - overlap) // patch * patch)
            for length, extent in zip(padded, side, strict=True)
        )
        corners = tuple((row, column) for row in rows for column in columns)
        return cls(padded, side, corners, overlap)  # type: ignore[arg-type]

    def weights(self) -> np.ndarray:
        """How much each pixel of a window counts: less towards its edges, along the overlap; (y, x, 1)."""
        ramps = []
        for length in self.side:
            inside = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
            ramps.append(np.minimum(inside / max(self.overlap, 1), 1.0))
        return np.outer(*ramps)[..., None].astype(np.float32)

    def places(self, row: int, column: int, patch: int) -> np.ndarray:
        """Numbers of a window's patches in the scene."""
        rows = row // patch + np.arange(self.side[0] // patch)
        columns = column // patch + np.arange(self.side[1] // patch)
        return (rows[:, None] * (self.shape[1] // patch) + columns).reshape(-1)


def _starts(length: int, side: int, stride: int) -> list[int]:
    """Where windows begin; the last one ends where the scene does."""
    if length <= side:
        return [0]
    if stride < 1:
        raise ConfigError(f"windows of {side} pixels that overlap so far never get on; choose a smaller overlap")
    return [*range(0, length - side, stride), length - side]


def _generated(
    generator: Generator,
    scene: _Scene,
    outputs: tuple[str, ...],
    key: jax.Array,
    tiling: Tiling,
    options: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Outputs of a whole scene: (y, x, band), (y, x) of classes, longitude and latitude."""
    windows = _Windows.cover(scene.shape, generator, tiling)
    mesh = make_mesh(devices=jax.local_devices())
    generator = jax.device_put(generator, replicated(mesh))
    padded = {name: _mirrored(image, windows.shape) for name, image in scene.images.items()}
    weights, total = windows.weights(), np.zeros((*windows.shape, 1), np.float32)
    sums: dict[str, Any] = {}
    for corners in _batches(windows.corners, tiling.batch * mesh.size):
        full = [*corners, *[corners[-1]] * (tiling.batch * mesh.size - len(corners))]  # one shape, one program
        made = generator.generate(
            _cut(padded, scene, windows, full),
            outputs,
            key=key,
            probabilities=True,
            numbers=np.zeros(len(full), np.int32),  # one scene: what is drawn follows from the place alone
            places=np.stack([windows.places(*corner, generator.patch) for corner in full]),
            mesh=mesh,
            **options,
        )
        made = {name: np.asarray(values)[: len(corners)] for name, values in made.items()}
        for i, (row, column) in enumerate(corners):
            area = slice(row, row + windows.side[0]), slice(column, column + windows.side[1])
            total[area] += weights
            for name, values in made.items():
                if name == COORDINATES:
                    sums.setdefault(name, []).append(values[i])
                    continue
                held = sums.setdefault(name, np.zeros((*windows.shape, values.shape[-1]), np.float32))
                held[area] += weights * values[i]
    height, width = scene.shape
    return {
        name: _mean_place(held) if name == COORDINATES else _finished(name, (held / total)[:height, :width])
        for name, held in sums.items()
    }


def _cut(
    padded: Mapping[str, np.ndarray], scene: _Scene, windows: _Windows, corners: Sequence[tuple[int, int]]
) -> dict[str, np.ndarray]:
    height, width = windows.side
    inputs = {
        name: np.stack([image[row : row + height, column : column + width] for row, column in corners])
        for name, image in padded.items()
    }
    if scene.located:
        inputs[COORDINATES] = np.array([scene.centre(*corner, windows.side) for corner in corners])
    return inputs


def _mean_place(places: Sequence[np.ndarray]) -> np.ndarray:
    """Longitude and latitude of a scene from those of its windows; the former go round."""
    lon, lat = np.stack(places, axis=-1)
    return np.array([np.degrees(np.angle(np.exp(1j * np.radians(lon)).mean())), lat.mean()])


def _finished(name: str, values: np.ndarray) -> np.ndarray:
    """Class ids of probabilities; other values as they are."""
    return values.argmax(-1) if modality(name).unit is Unit.CLASS else values


def _mirrored(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    margins = [(0, wanted - length) for wanted, length in zip(shape, image.shape[:2], strict=True)]
    return np.pad(image, [*margins, (0, 0)], mode="symmetric")


def _batches(corners: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(corners), size):
        yield corners[start : start + size]
