"""What the pixels of a raster say of its bands: whether they are in order, native, whole and alive.

Each function returns flags: a word that says what is wrong, then what exactly, as in "band_order: VH comes before VV".
No flag is a proof of health.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit, modality
from data_pipelines.radiometry import likely_unit, to_native_grids
from data_pipelines.sample import Raster, grid_bands

_ELEVATION_FILLS = (-32768, -32767, -9999, -999)  # what archives write where they have no elevation
_EUROSAT = (*range(8), 9, 10, 11, 12, 8)  # places of S2L1C's bands where B8A is last
_CLIPPED = 0.002  # share of a band at its own highest number, from which that is no chance
_FEWEST = 8  # pixels at that number
_FINE = 400  # pixels of a band whose detail can be compared
_LIKE = 0.02  # correlation by which a band is more like another than like itself


def no_data(name: str, raster: Raster) -> list[str]:
    """Flags of missing pixels: NaN, Sentinel-2 that is 0 in all bands of a grid, fill values of elevation, class 0."""
    flags = []
    for gsd, grid in raster.grids.items():
        absent = _absent(name, raster.unit, grid)
        for band, share in zip(grid_bands(name, raster.grids)[gsd], absent, strict=True):
            if share:
                flags.append((share, f"{share:.2%} of {band}"))
    if not flags:
        return []
    worst = max(flags, key=lambda flag: flag[0])[1]
    return [f"no_data: {worst}" + (f" and {len(flags) - 1} more bands" if len(flags) > 1 else "")]


def saturation(name: str, raster: Raster) -> list[str]:
    """Flags of Sentinel-2 and radar bands that are cut at a highest number, or hold a single one."""
    if modality(name).unit not in (Unit.DN10000, Unit.DB):
        return []
    cut, dead = [], []
    for band, pixels in each_band(name, raster):
        values = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels.reshape(-1)
        if len(values) < 64 or not values.any():
            continue
        high = values.max()
        count = int(np.sum(values == high))
        share = count / len(values)
        if share == 1:
            dead.append(band)
        elif count >= _FEWEST and share > _CLIPPED and np.median(values) < high and _is_cut(values, high, raster.unit):
            cut.append(f"{band} at {high:g} ({share:.2%})")
    flags = [f"saturated: {', '.join(cut)}"] if cut else []
    return flags + ([f"constant: {', '.join(dead)}"] if dead else [])


def unit(name: str, raster: Raster) -> tuple[Unit | None, list[str]]:
    """Unit that the numbers look like (None where there are none), and a flag if it is not the one stated."""
    values = np.concatenate([grid.reshape(-1)[:: grid.size // 20_000 + 1] for grid in raster.grids.values()])
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not len(values):
        return None, ["no_data: all of it"]
    if raster.unit in (Unit.DB, Unit.LINEAR) and np.mean(values > 60_000) > 0.05:
        return None, ["unit: numbers near 65536 are negative decibels that were stored without a sign"]
    likely = likely_unit(values, raster.unit)
    if likely is raster.unit:
        return likely, []
    return likely, [f"unit: said to be in {raster.unit.value}, looks like {likely.value}"]


def replicated(name: str, raster: Raster) -> tuple[bool | None, list[str]]:
    """Whether coarse bands are exact copies of native pixels; None where a modality has no coarse bands.

    Raises nothing: a raster on native grids is True by its layout.
    """
    if len(modality(name).grids) == 1:
        return None, []
    try:
        to_native_grids(name, raster)
    except DataError as error:
        return False, [f"resampled: {str(error).partition(';')[0]}"]
    return True, []


def radar_order(raster: Raster) -> list[str]:
    """A flag if the two radar bands look exchanged: VV is nearly everywhere the stronger one."""
    grid = raster.grids[10].reshape(-1, 2, *raster.grids[10].shape[-2:]).astype(np.float32)
    first, second = grid[:, 0], grid[:, 1]
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 64:
        return []
    if np.mean(first[both] < second[both]) > 0.8:
        return ["band_order: VH comes before VV"]
    return []


def optical_order(name: str, raster: Raster) -> list[str]:
    """A flag if a Sentinel-2 product looks as if its bands stood in EuroSAT's order, with B8A last.

    At 10 m, copies betray the native grid of each band; on native grids, or where bands were interpolated, the cirrus
    band of S2L1C is the one that sees nothing.
    """
    grid = raster.grids.get(10)
    table = modality(name)
    if grid is not None and len(raster.grids) == 1:
        image = grid.reshape(-1, *grid.shape[-3:])[0]
        seen = [_native_grid(band) for band in image]
        stated = [band.gsd for band in table.bands]
        if None not in seen and 60 in seen and seen != stated:
            order = [i for i in _EUROSAT if table.name != "S2L2A" or i != 10]
            known = [modality("S2L1C").bands[i].gsd for i in order]
            what = "B8A comes last" if seen == known else f"native grids are {seen}, not {stated}"
            return [f"band_order: {what}"]
    if name != "S2L1C":
        return []
    level = {band: float(np.median(pixels[pixels != 0])) for band, pixels in each_band(name, raster) if pixels.any()}
    if len(level) == len(table.bands) and level["B09"] < 0.5 * level["B10"] and level["B09"] == min(level.values()):
        return ["band_order: B09 is as dark as cirrus; B8A comes last"]
    return []


def pair_order(toa: Raster, surface: Raster) -> list[str]:
    """A flag if fine detail of a band of S2L2A is that of another band of S2L1C: one product is out of order."""
    above, below = _details("S2L1C", toa), _details("S2L2A", surface)
    strange, margin = [], 0.0
    for gsd, details in below.items():
        names, others = list(details), list(above.get(gsd, {}))
        if len(others) < 2 or details[names[0]].shape != above[gsd][others[0]].shape:
            continue
        alike = _standardised(list(details.values())) @ _standardised(list(above[gsd].values())).T
        for i, band in enumerate(names):
            best, own = int(alike[i].argmax()), others.index(band)
            if alike[i, best] > max(0.5, alike[i, own]):
                strange.append(f"{band} of S2L2A is like {others[best]} of S2L1C")
                margin = max(margin, float(alike[i, best] - alike[i, own]))
    # One band alone cannot have changed places, and among bands that are all alike a little more says nothing.
    return [f"band_order: {', '.join(strange)}"] if len(strange) > 1 and margin > _LIKE else []


def colour_order(colours: Raster, surface: Raster) -> list[str]:
    """A flag if the picture's red is S2L2A's blue and its blue the red."""
    picture = colours.grids[10].reshape(-1, 3, *colours.grids[10].shape[-2:])[0].astype(np.float32)
    of_surface = dict(each_band("S2L2A", surface))
    red, blue = (of_surface[band].reshape(-1, *of_surface[band].shape[-2:])[0] for band in ("B04", "B02"))
    if red.shape != picture.shape[-2:]:
        return []
    # The shorter way from red to blue tells: in levels, both correlate.
    shown, seen = _differences(picture[0] - picture[2]), _differences(red.astype(np.float32) - blue)
    return ["band_order: blue comes before red"] if _correlation(shown, seen) < -0.5 else []


def each_band(name: str, raster: Raster) -> Iterator[tuple[str, np.ndarray]]:
    """Bands of a raster with their names, (y, x) or (time, y, x), each on the grid that it is stored on."""
    for gsd, names in grid_bands(name, raster.grids).items():
        for i, band in enumerate(names):
            yield band, raster.grids[gsd][..., i, :, :]


def _absent(name: str, stated: Unit, grid: np.ndarray) -> Sequence[float]:
    """Share of each band that has no data."""
    if grid.dtype.kind == "f":
        absent = ~np.isfinite(grid)
    elif stated is Unit.DN10000:
        absent = np.broadcast_to((grid == 0).all(axis=-3, keepdims=True), grid.shape)
    elif stated is Unit.METRE:
        absent = np.isin(grid, _ELEVATION_FILLS)
    elif stated is Unit.CLASS:
        absent = grid == 0
    else:
        return [0.0] * grid.shape[-3]
    axes = tuple(axis for axis in range(grid.ndim) if axis != grid.ndim - 3)
    return absent.mean(axis=axes).tolist()


def _is_cut(values: np.ndarray, high: float, stated: Unit) -> bool:
    """Whether a distribution ends in a wall: more at the top number than in the range below it."""
    if stated is Unit.DN10000 and high < 5000:  # no sensor and no archive cuts there
        return False
    reach = max(0.01 * abs(float(high)), 0.1)
    return int(np.sum(values == high)) > 2 * int(np.sum((values < high) & (values >= high - reach)))


def _native_grid(band: np.ndarray) -> int | None:
    """Coarsest of 60, 20 and 10 m whose pixels a band at 10 m copies; None for an even band, which says nothing."""
    if band.size == 0 or (band == band[0, 0]).all() or min(band.shape) < 12:
        return None
    for step in (6, 2):
        coarse = band[::step, ::step].repeat(step, 0)[: band.shape[0]].repeat(step, 1)[:, : band.shape[1]]
        if np.array_equal(coarse, band):
            return step * 10
    return 10


def _details(name: str, raster: Raster) -> dict[int, dict[str, np.ndarray]]:
    """Native grid -> band -> differences between neighbours on that grid, of the first frame."""
    gsds = {band.name: band.gsd for band in modality(name).bands}
    found: dict[int, dict[str, np.ndarray]] = {}
    for band, pixels in each_band(name, raster):
        step = gsds[band] // 10 if len(raster.grids) == 1 else 1
        image = pixels.reshape(-1, *pixels.shape[-2:])[0, ::step, ::step].astype(np.float32)
        if image.size >= _FINE:
            found.setdefault(gsds[band], {})[band] = _differences(image)
    return found


def _standardised(images: Sequence[np.ndarray]) -> np.ndarray:
    """(n, pixels) of mean 0 and length 1, so that products are correlations; no more than some thousand pixels."""
    rows = np.stack([image.reshape(-1)[:: image.size // 16_000 + 1] for image in images])
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9)


def _differences(image: np.ndarray) -> np.ndarray:
    return image[:, 1:] - image[:, :-1]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 64:
        return 0.0
    a, b = one[both] - one[both].mean(), other[both] - other[both].mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0
