"""Which Sentinel-2 rasters carry the offset of 1000 digital numbers that products have had since baseline 04.00.

The date does not tell: older scenes were processed again with it, and archives took it off some scenes and not off
others. The pixels do. Top of atmosphere, the cirrus band B10 sees no ground: without the offset its darkest pixels are
near 0, with it near 1000. At the surface, the short-wave infrared bands are all but those of the top of atmosphere
times a number near 1, so that what is left at zero is the offset. What neither can decide is said to be unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.modalities import Unit
from data_pipelines.sample import Raster, Sample, grid_bands

OFFSET = 1000
"""Digital numbers that products since baseline 04.00 have more than reflectance x 10,000."""

PRODUCTS = ("S2L1C", "S2L2A")
"""What can carry it."""

Bands = Mapping[str, np.ndarray]
"""Band name -> (y, x) digital numbers, float32, NaN where there is no data or the sensor saturated."""

_IMPOSSIBLE = 900  # with the offset nothing lies lower but noise: zero reflectance is 1000
_CLEAR = (950, 1100)  # the darkest pixels of B10 with the offset, where the sky is clear somewhere
_VEILED, _VEIL_SPREAD = 1300, 200  # B10 with the offset under thin cirrus or dry mountain air; more, if it is even
_FLOOR_SPREAD = 60  # of the darkest tenth of B10, where that is clear sky: it ends in a floor, cloud does not
_CLEAR_SPREAD = 100  # of B10 under clear sky, with room to spare
_ABSORBED = 1400  # what chlorophyll and water leave of visible and short-wave light, with the offset
_SATURATED = 32767
_FEWEST = 9  # pixels of a band from which its darkest ones mean something
_FEWEST_PAIRS = 50
_DARK = 400  # reflectance x 10,000 below which the slope between the products does not matter
_MIDDLE = OFFSET / 2
_DOUBT = 50  # least half-width of an intercept
_SLOPES = (0.85, 1.6)  # between the products in the short-wave infrared: gases take up to a third, relief adds
_SLOPE_DOUBT = 0.25  # where the pixels do not say
_PER_INDEPENDENT = 25  # pixels that count as one, since neighbours are alike
_MOST = 8_000  # pixels a quantile looks at


@dataclass(frozen=True)
class Offset:
    """What was found.

    Attributes:
        value: 0, 1000, or None where the pixels do not tell.
        reason: why they do not; "" where they do.
        evidence: the figures that it rests on, digital numbers.
    """

    value: int | None
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)


def find_offsets(sample: Sample) -> dict[str, tuple[Offset, ...]]:
    """Offset of each frame of each Sentinel-2 product of a sample; a single image is one frame."""
    found: dict[str, tuple[Offset, ...]] = {}
    if "S2L1C" in sample.rasters:
        raster = sample.rasters["S2L1C"]
        found["S2L1C"] = tuple(offset_of_l1c(bands(sample, "S2L1C", frame)) for frame in range(frames(raster)))
    if "S2L2A" in sample.rasters:
        partners = _partners(sample)
        found["S2L2A"] = tuple(_surface_offset(sample, frame, partner, found) for frame, partner in enumerate(partners))
        for frame, partner in enumerate(partners):
            if partner is not None:
                _settle(sample, found, frame, partner)
    return found


def offset_of_l1c(toa: Bands) -> Offset:
    """Offset of a top-of-atmosphere image.

    The darkest pixels of the cirrus band decide, not its median: cirrus, high cloud, and snow or bare ground under
    the dry air of high mountains brighten B10, yet seldom the whole of a tile. Where cloud covers it all the offset is
    0 if any other band is too dark to have one, else unknown.

    Args:
        toa: all bands of S2L1C.
    """
    cirrus = _seen(toa["B10"])
    others = {name: _low(band) for name, band in toa.items() if name != "B10"}
    dark = min((value for value in others.values() if np.isfinite(value)), default=np.nan)
    if len(cirrus) < _FEWEST:
        if dark < _IMPOSSIBLE:
            return Offset(0, evidence={"darkest": dark})
        return Offset(None, "the cirrus band B10 has no data", {} if np.isnan(dark) else {"darkest": dark})
    low, lower, middle, high = (float(value) for value in np.quantile(cirrus, [0.02, 0.1, 0.5, 0.95]))
    evidence = {"b10_low": low, "b10_median": middle, "darkest": dark}
    if _two_levels(cirrus):
        return Offset(None, "B10 is near 0 in a part of the tile and near 1000 in another: two scenes in one", evidence)
    if low < _IMPOSSIBLE:
        return Offset(0, evidence=evidence)
    if dark < _IMPOSSIBLE:
        if low >= _CLEAR[0] and high - low < _CLEAR_SPREAD:
            name = min(others, key=lambda band: others[band])
            return Offset(
                None, f"B10 is even at {middle:.0f}, yet {name} falls to {dark:.0f}: bands disagree", evidence
            )
        return Offset(0, evidence=evidence)
    clear_somewhere = low <= _CLEAR[1] and lower - low < _FLOOR_SPREAD
    thinly_veiled = low <= _VEILED and (middle <= _VEILED + 100 or high - low < _VEIL_SPREAD)
    if low >= _CLEAR[0] and (clear_somewhere or thinly_veiled):
        return Offset(OFFSET, evidence=evidence)
    return Offset(None, f"B10 is {low:.0f} at its darkest: high cloud covers the whole tile", evidence)


def offset_of_l2a(surface: Bands, toa: Bands | None = None, toa_offset: int | None = None) -> Offset:
    """Offset of a surface-reflectance image.

    Args:
        surface: all bands of S2L2A.
        toa: bands of S2L1C of the same image, if there is one.
        toa_offset: its offset; None if unknown.
    """
    dark = min((value for value in map(_low, surface.values()) if np.isfinite(value)), default=np.nan)
    if np.isnan(dark):
        return Offset(None, "it has no data")
    if toa is None:
        return _alone(surface, dark)
    if toa_offset is None:
        if dark < _IMPOSSIBLE:
            return Offset(0, evidence={"darkest": dark})
        return Offset(None, "the offset of S2L1C is unknown, and no pixel is dark enough to tell", {"darkest": dark})
    compared = [_compare(toa[name] - np.float32(toa_offset), surface[name]) for name in ("B12", "B11")]
    evidence = {"darkest": dark, **compared[0].evidence}
    values = {one.value for one in compared if one.value is not None}
    if len(values) > 1:
        return Offset(None, "B11 and B12 disagree on what S2L2A has more than S2L1C", evidence)
    if not values:
        return Offset(0, evidence=evidence) if dark < _IMPOSSIBLE else Offset(None, compared[0].reason, evidence)
    (value,) = values
    if value and dark < _IMPOSSIBLE - 100:  # dark water may be corrected to a little less than nothing
        return Offset(None, f"short-wave infrared says 1000, yet a band falls to {dark:.0f}: bands disagree", evidence)
    return Offset(value, evidence=evidence)


def bands(sample: Sample, name: str, frame: int = 0) -> dict[str, np.ndarray]:
    """Bands of one frame of a Sentinel-2 product, each on the grid that it is stored on, as `Bands`."""
    raster = sample.rasters[name]
    read: dict[str, np.ndarray] = {}
    for gsd, names in grid_bands(name, raster.grids).items():
        grid = raster.grids[gsd]
        image = grid[frame] if grid.ndim == 4 else grid
        read |= {band: _numbers(pixels, raster.unit) for band, pixels in zip(names, image, strict=True)}
    return read


def frames(raster: Raster) -> int:
    """Number of images in a raster: 1, or those of a series."""
    grid = next(iter(raster.grids.values()))
    return len(grid) if grid.ndim == 4 else 1


def _numbers(pixels: np.ndarray, unit: Unit) -> np.ndarray:
    values = pixels.astype(np.float32)
    if unit is Unit.REFLECTANCE:
        return np.where(values == 0, np.nan, values * np.float32(10_000))
    absent = (values == 0) | (values >= _SATURATED)
    return np.where(absent, np.float32(np.nan), values)


def _partners(sample: Sample) -> list[int | None]:
    """Frame of S2L1C that is the same image as each frame of S2L2A, by their times."""
    surface = sample.rasters["S2L2A"]
    if "S2L1C" not in sample.rasters:
        return [None] * frames(surface)
    toa = sample.rasters["S2L1C"]
    if surface.time is None or toa.time is None:
        alike = frames(surface) == frames(toa)
        return [frame if alike else None for frame in range(frames(surface))]
    here, there = (np.atleast_1d(np.asarray(r.time)).astype("datetime64[s]").astype(np.int64) for r in (surface, toa))
    nearest = np.abs(here[:, None] - there).argmin(axis=1)
    return [int(j) if abs(here[i] - there[j]) <= 3600 else None for i, j in enumerate(nearest)]


def _settle(sample: Sample, found: dict[str, tuple[Offset, ...]], frame: int, partner: int) -> None:
    """Under cloud that leaves S2L1C unknown, learn of it from an S2L2A whose dark pixels deny an offset."""
    toa, surface = found["S2L1C"][partner], found["S2L2A"][frame]
    if toa.value is not None or surface.value != 0 or toa.evidence.get("b10_low", 0) < _IMPOSSIBLE:
        return
    above, below = bands(sample, "S2L1C", partner), bands(sample, "S2L2A", frame)
    fits = [
        offset
        for offset in (0, OFFSET)
        if all(_compare(above[name] - np.float32(offset), below[name]).value == 0 for name in ("B11", "B12"))
    ]
    if len(fits) == 1:
        told = Offset(fits[0], evidence={**toa.evidence, "by_surface": 1.0})
        found["S2L1C"] = (*found["S2L1C"][:partner], told, *found["S2L1C"][partner + 1 :])


def _surface_offset(sample: Sample, frame: int, partner: int | None, found: Mapping[str, tuple[Offset, ...]]) -> Offset:
    surface = bands(sample, "S2L2A", frame)
    if partner is None:
        offset = offset_of_l2a(surface)
    else:
        offset = offset_of_l2a(surface, bands(sample, "S2L1C", partner), found["S2L1C"][partner].value)
    if offset.value is None and "NDVI" in sample.rasters:
        return _by_stored_index(offset, surface, sample.rasters["NDVI"], frame)
    return offset


def _compare(toa: np.ndarray, surface: np.ndarray) -> Offset:
    """What one band has more at the surface, from its darkest pixels or, where none is dark, from a line through all.

    Args:
        toa: (y, x) reflectance x 10,000 at the top of the atmosphere.
        surface: the same band at the surface, possibly on a finer grid.
    """
    toa, surface = _same_grid(toa, surface)
    both = np.isfinite(toa) & np.isfinite(surface)
    x, y = (_thinned(band[both]).astype(np.float64) for band in (toa, surface))
    if len(x) < _FEWEST_PAIRS:
        return Offset(None, "too few pixels have data in both S2L1C and S2L2A")
    intercept, doubt = _intercept(x, y)
    evidence = {"swir_intercept": intercept, "swir_doubt": doubt}
    by_line = _verdict(intercept, doubt, evidence)
    dark = x < _DARK
    if dark.sum() < max(20, 0.005 * len(x)):
        return by_line
    more = float(np.median(y[dark] - x[dark]))
    by_dark = _verdict(more, 4 * _DOUBT, evidence | {"swir_dark": more})
    if by_dark.value is None:
        return by_line
    if by_line.value is not None and by_line.value != by_dark.value:
        return Offset(None, "dark and bright pixels disagree on what S2L2A has more than S2L1C", by_dark.evidence)
    return by_dark


def _verdict(more: float, doubt: float, evidence: Mapping[str, float]) -> Offset:
    for offset in (0, OFFSET):
        if abs(more - offset) + doubt < _MIDDLE:
            return Offset(offset, evidence=evidence)
    if abs(more + OFFSET) + doubt < _MIDDLE:
        return Offset(None, f"S2L2A is {-more:.0f} too dark for S2L1C: an offset was taken off twice", evidence)
    return Offset(
        None, f"the short-wave infrared says {more:.0f} +- {doubt:.0f}: too little spread to tell 0 from 1000", evidence
    )


def _intercept(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept of a line through the bulk of the points, and how far it may be off; the slope is kept physical."""
    keep = np.ones(len(x), bool)
    slope = spread = 1.0
    for _ in range(3):
        centred = x[keep] - x[keep].mean()
        spread = float(np.sqrt((centred**2).mean())) + 1e-9
        slope = float(np.clip((centred * y[keep]).mean() / spread**2, *_SLOPES))
        rest = y - slope * x
        middle = np.median(rest[keep])
        scale = 1.4826 * float(np.median(np.abs(rest[keep] - middle))) + 1.0
        keep = np.abs(rest - middle) <= 3 * scale
    error = scale / spread / np.sqrt(max(keep.sum() / _PER_INDEPENDENT, 1))
    typical = float(np.median(x[keep]))
    return float(np.median(rest[keep])), float(min(3 * error, _SLOPE_DOUBT) * abs(typical) + _DOUBT)


def _alone(surface: Bands, dark: float) -> Offset:
    """Offset of a surface image without its top-of-atmosphere partner.

    A dark pixel denies it. Only this shows it: all bands end a little above 1000, and on that floor, evenly, there is
    green vegetation (near infrared far above red), whose red and blue light would be absorbed if 1000 were taken
    off, or open water. A desert as bright as that without an offset has neither, and cloud over them is uneven.
    """
    evidence = {"darkest": dark}
    if dark < _IMPOSSIBLE:
        return Offset(0, evidence=evidence)
    if all(_CLEAR[0] <= _low(surface[name]) <= _ABSORBED for name in ("B02", "B04", "B12")):
        red, near = _same_grid(surface["B04"], surface["B8A"])
        blue, short = _same_grid(surface["B02"], surface["B12"])
        leaves = (near - red > 1800) & (red < _ABSORBED)
        water = (short < 1100) & (near < 1150) & (short > _IMPOSSIBLE)
        if _even(blue[leaves], red.size) or _even(short[water], red.size):
            return Offset(OFFSET, evidence=evidence)
    why = "there is no S2L1C of the same image beside it, and no pixel is dark enough to tell"
    return Offset(None, why, evidence)


def _even(values: np.ndarray, pixels: int) -> bool:
    """Whether values are a fair part of an image and nearly the same."""
    values = _seen(values)
    return len(values) > max(0.05 * pixels, _FEWEST) and bool(np.subtract(*np.quantile(values, [0.8, 0.1])) < 80)


def _by_stored_index(offset: Offset, surface: Bands, stored: Raster, frame: int) -> Offset:
    """A stored NDVI that fits the bands only once 1000 is taken off shows the offset; else it says nothing."""
    grid = stored.grids[10]
    index = grid.reshape(-1, *grid.shape[-2:])[min(frame, frames(stored) - 1)]
    red, near = surface["B04"], surface["B08"]
    if index.shape != red.shape:
        return offset
    as_stored, corrected = (index_error(index, red - lift, near - lift) for lift in (0, OFFSET))
    if corrected < 0.01 and as_stored > 0.05:
        return Offset(OFFSET, evidence={**offset.evidence, "ndvi_error_as_stored": as_stored})
    return offset


def index_error(index: np.ndarray, red: np.ndarray, near: np.ndarray) -> float:
    """Mean absolute difference between a stored NDVI and that of B04 and B08; NaN where nothing can be compared."""
    total = near + red
    with np.errstate(divide="ignore", invalid="ignore"):
        fresh = np.where(total > 0, (near - red) / total, np.nan)
    error = np.abs(fresh - index.astype(np.float32))
    error = error[np.isfinite(error)]
    return float(error.mean()) if len(error) else float("nan")


def _two_levels(cirrus: np.ndarray) -> bool:
    """Whether B10 has pixels near 0 and pixels near 1000, each even, and none between."""
    lower, upper = cirrus < 300, cirrus > _CLEAR[0]
    if min(lower.mean(), upper.mean()) < 0.05 or (~lower & ~upper).mean() > 0.005:
        return False
    return bool(np.subtract(*np.quantile(cirrus[upper], [0.75, 0.25])) < _CLEAR_SPREAD)


def _same_grid(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two bands on the coarser grid of both; of four or 36 fine pixels the first stands for all."""
    sides = max(len(one), len(other)), min(len(one), len(other))
    step = max(1, round(sides[0] / sides[1]))
    fine = [band[::step, ::step] if len(band) == sides[0] and step > 1 else band for band in (one, other)]
    height, width = (min(fine[0].shape[axis], fine[1].shape[axis]) for axis in (0, 1))
    return fine[0][:height, :width], fine[1][:height, :width]


def _seen(band: np.ndarray) -> np.ndarray:
    return band[np.isfinite(band)]


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: len(values) // _MOST + 1]


def _low(band: np.ndarray) -> float:
    """A band's darkest pixels but for stray ones; NaN where it has too few."""
    values = _seen(band)
    return float(np.quantile(_thinned(values), 0.01)) if len(values) >= _FEWEST else float("nan")
