"""The high-resolution picture of a scene: the 10 m map looked at from 32 times nearer.

Nothing new is decided about the ground. What covers a pixel of 10 m in fractions becomes objects that cover as much:
crowns, houses, streets along the lines of their blocks, fields with straight edges and rows, waves. So the picture
averaged over 10 m shows what Sentinel-2 sees of the same day.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from data_pipelines.modalities import modality
from data_pipelines.sources.procedural import spectra
from data_pipelines.sources.procedural.acquisition import Acquisition
from data_pipelines.sources.procedural.land_cover import LandCover
from data_pipelines.sources.procedural.parcels import Lattice, Parcels
from data_pipelines.sources.procedural.places import BUILT, CROPS, WATER
from data_pipelines.sources.procedural.surface import Surface
from data_pipelines.sources.procedural.textures import Textures, close_textures, window

DETAIL = modality("HR").detail
_RGB = [spectra.BANDS.index(band) for band in ("B04", "B03", "B02")]
_GROUND = [spectra.GRASS, spectra.LITTER, spectra.SOIL, spectra.DARK_SOIL]
_STREET = 0.35  # pixels of 10 m from a block's edge that are street
_LOT = 1.5  # pixels of 10 m that a house and its garden take
_ROAD = 0.45  # share of asphalt from which a pixel of 10 m holds a road
_SHADE = np.float32(0.55)  # light in the shadow of trees and houses
_WHITE = np.float32(0.42)  # reflectance that is shown as white, but for bright scenes


def render_closeup(
    rng: np.random.Generator,
    land: LandCover,
    surface: Surface,
    palette: np.ndarray,
    light: np.ndarray,
    seen: Acquisition,
    tile: int,
) -> np.ndarray:
    """Draw the picture: (3, 32 tile, 32 tile) uint8, red, green, blue; the square root of reflectance.

    Args:
        rng: of the layer "image".
        land: classes and the lines of parcels.
        surface: materials on the day of the picture.
        palette: (10, 13) spectra of that day.
        light: (m, m) light on the ground over that on level ground.
        seen: sun.
        tile: side of the tile, pixels of 10 m.
    """
    view = _View.of(rng, tile)
    colours = palette[:, _RGB].astype(np.float32)
    picture = _open_ground(view, land, surface, colours)
    if land.fields is not None and (land.classes == CROPS).any():
        part, place = view.around(land.classes == CROPS)
        _plough(part, rng, land, land.fields, picture[:, *place], surface, colours)
    picture *= 1 + np.float32(0.07) * view.cut("mottle") + np.float32(0.03) * view.cut("grain")
    if surface.visible[spectra.SNOW_COVER].max() > 0.02:
        _snow(view, surface.visible[spectra.SNOW_COVER], colours, picture)
    if (land.classes == WATER).any():
        _fill(view, rng, land, surface, colours, picture)
    tall = np.zeros(picture.shape[1:], bool)
    _build(view, rng, land, surface, colours, picture, tall)
    _plant(view, surface, colours, seen, picture, tall)
    picture *= view.smooth(light)
    mean = np.float32(0.9) * np.tensordot(colours.mean(1), surface.visible, 1).mean() + np.float32(0.2)
    gain = np.float32(np.exp(rng.normal(0, 0.08))) / max(_WHITE, mean)
    np.clip(picture * gain + np.float32(rng.uniform(0, 0.02)), 0, 1, out=picture)
    return (np.sqrt(picture) * np.float32(255.5)).astype(np.uint8)


@dataclass(frozen=True)
class _View:
    """The near view, or a part of it: which pixels of the 10 m map it shows, and where its textures are cut."""

    rows: range
    columns: range
    corner: tuple[int, int]
    textures: Textures

    @classmethod
    def of(cls, rng: np.random.Generator, tile: int) -> "_View":
        """The view of the first `tile` rows and columns."""
        textures = close_textures()
        top, left = rng.integers(0, max(textures.grain.shape[0] - DETAIL * tile, 0) + 1, 2)
        return cls(range(tile), range(tile), (int(top), int(left)), textures)

    def around(self, mask: np.ndarray) -> tuple["_View", tuple[slice, slice]]:
        """The part about the marked pixels of the 10 m map, and where it lies in this whole view."""
        spans = []
        for axis, whole in ((1, self.rows), (0, self.columns)):
            marked = np.flatnonzero(mask[: len(self.rows), : len(self.columns)].any(axis))
            low, high = (int(marked[0]) - 1, int(marked[-1]) + 2) if len(marked) else (0, 1)
            spans.append(range(max(low, 0), min(high, len(whole))))
        rows, columns = (slice(DETAIL * span.start, DETAIL * span.stop) for span in spans)
        return _View(spans[0], spans[1], self.corner, self.textures), (rows, columns)

    def smooth(self, fields: np.ndarray) -> np.ndarray:
        """Linear interpolation of (..., m, m) at the centres of the near pixels.

        By broadcasting, not by a matrix: products of this size would wake the threads of the linear algebra library,
        and loaders have threads of their own.
        """
        ends = fields[..., _padded(self.rows, fields)[:, None], _padded(self.columns, fields)]
        ends = ends.astype(np.float32, copy=False)
        part = (np.arange(DETAIL, dtype=np.float32) + np.float32(0.5)) / DETAIL
        half = DETAIL // 2  # the first centre lies half a pixel of 10 m inside
        steps = np.diff(ends, axis=-1)[..., None] * part
        steps += ends[..., :-1, None]
        rows = steps.reshape(*steps.shape[:-2], -1)[..., half:-half]
        fine = np.diff(rows, axis=-2)[..., None, :] * part[:, None]
        fine += rows[..., :-1, None, :]
        return fine.reshape(*fields.shape[:-2], -1, fine.shape[-1])[..., half:-half, :]

    def cut(self, name: str) -> np.ndarray:
        """This picture's piece of a texture (of a whole view)."""
        return window(getattr(self.textures, name), self.corner, DETAIL * len(self.rows))

    def turned(self, parcels: Parcels, land: LandCover, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Positions across and along the strips of parcels, `shift` pixels of 10 m down and right of each pixel."""
        lattice = parcels.lattice
        drift = self.smooth(land.drift)
        district = drift[0] > land.district
        rows, columns = (_centres(span) + np.float32(shift) for span in (self.rows, self.columns))
        warp = drift[::-1] if parcels is land.blocks else drift  # towns bend the other way
        across, along = lattice.turned(rows[:, None], columns, warp, district)
        return across - lattice.origin[0], along - lattice.origin[1]


def _centres(span: range) -> np.ndarray:
    """Centres of near pixels in pixels of 10 m, whole numbers at the middle of those."""
    pixels = np.arange(DETAIL * len(span), dtype=np.float32)
    return (pixels + np.float32(0.5)) / DETAIL + np.float32(span.start - 0.5)


def _padded(span: range, fields: np.ndarray) -> np.ndarray:
    """Rows (columns) of the 10 m map that a span needs, edges repeated."""
    return np.clip(np.arange(span.start - 1, span.stop + 1), 0, fields.shape[-1] - 1)


def _open_ground(view: _View, land: LandCover, surface: Surface, colours: np.ndarray) -> np.ndarray:
    """(3, pixels, pixels) reflectance of grass, soil, snow and pools between the objects, without hard edges."""
    shares = np.zeros_like(surface.visible)
    shares[_GROUND] = surface.visible[_GROUND]
    asphalt = surface.visible[spectra.ASPHALT]
    shares[spectra.ASPHALT] = np.where(asphalt < _ROAD, asphalt, 0)
    for row in (spectra.WATER_BODY, spectra.SILT):
        shares[row] = surface.visible[row] * (land.classes != WATER)
    return _mixed(view, shares, colours)


def _snow(view: _View, share: np.ndarray, colours: np.ndarray, picture: np.ndarray) -> None:
    """Snow in patches that cover its share."""
    level = view.smooth(ndtri(np.clip(1 - share, 1e-4, 1 - 1e-4)).astype(np.float32))
    mask = view.cut("mottle") > level
    tone = 1 + np.float32(0.03) * view.cut("mottle")
    for layer, colour in zip(picture, colours[spectra.SNOW_COVER], strict=True):
        np.copyto(layer, colour * tone, where=mask)


def _mixed(view: _View, shares: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Mean colour of some shares of the materials, carried over pixels that have none."""
    total = shares.sum(0)
    sums = np.tensordot(colours.T, shares, 1)
    mean = sums.sum((1, 2)) / max(float(total.sum()), 1e-6)
    sums += np.float32(1e-3) * mean[:, None, None]
    fine = view.smooth(np.concatenate([sums, total[None] + np.float32(1e-3)]))
    return fine[:3] / fine[3]


def _plough(
    view: _View,
    rng: np.random.Generator,
    land: LandCover,
    fields: Parcels,
    picture: np.ndarray,
    surface: Surface,
    colours: np.ndarray,
) -> None:
    """Fields of one colour each, with straight edges, rows and tramlines."""
    crops = land.classes == CROPS
    shares = surface.visible[_GROUND]
    ground = np.tensordot(colours[_GROUND].T, shares, 1) / np.maximum(shares.sum(0), 1e-3)
    across, along = view.turned(fields, land)
    ids, inside = _parcel_ids(fields.lattice, across, along)
    key = np.minimum(ids, fields.count - 1) * 2 + inside
    coarse = (fields.ids * 2 + fields.inside_circle).ravel()
    area, grown = (np.bincount(coarse, weight, 2 * fields.count) for weight in (None, crops.ravel()))
    table = np.stack([np.bincount(coarse, (layer * crops).ravel(), 2 * fields.count) for layer in ground])
    table = (table / np.maximum(grown, 1)).astype(np.float32)
    mask = (grown > 0.5 * area)[key] & (view.smooth(crops.astype(np.float32)) > 0.3)
    rows = rng.uniform(2.5, 6), rng.uniform(0.02, 0.07)
    wave = across * np.float32(rows[0])
    stripes = 1 + np.float32(4 * rows[1]) * (np.abs(wave - np.floor(wave) - np.float32(0.5)) - np.float32(0.25))
    lanes = across * np.float32(1 / rng.uniform(1.8, 3.6))
    stripes[lanes - np.floor(lanes) < 0.035] *= np.float32(0.86)
    key = key[mask]
    stripes = stripes[mask]
    for layer, values in zip(picture, table, strict=True):
        layer[mask] = values[key] * stripes


def _parcel_ids(lattice: Lattice, across: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the parcels, and which pixels lie in the circles inscribed in them."""
    strip, order, part, _ = _in_strip(lattice, across, along)
    middle = (across - lattice.starts[strip].astype(np.float32)) / lattice.widths[strip].astype(np.float32)
    inside = (middle - np.float32(0.5)) ** 2 + (part - np.float32(0.5)) ** 2 < np.float32(0.235)
    return strip * np.int32(lattice.per_strip) + order, inside


def _in_strip(
    lattice: Lattice, across: np.ndarray, along: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Strip, number of the parcel along it, part of the parcel passed (0 to 1) and its length in pixels."""
    strip = lattice.strip_of[np.clip(across.astype(np.int32), 0, len(lattice.strip_of) - 1)]
    length = lattice.lengths[strip]
    place = along / length + lattice.offsets[strip]
    order = np.floor(place)
    return strip, np.clip(order.astype(np.int32), 0, lattice.per_strip - 1), place - order, length


def _fill(
    view: _View,
    rng: np.random.Generator,
    land: LandCover,
    surface: Surface,
    colours: np.ndarray,
    picture: np.ndarray,
) -> None:
    """Water up to the shore, with waves."""
    water = land.classes == WATER
    colour = _mixed(view, surface.visible * water, colours)
    # A least distance from the shore keeps ponds of one pixel from shrinking to slivers.
    shore = np.where(water, np.minimum(land.shore, np.float32(-0.35)), np.maximum(land.shore, np.float32(0.35)))
    mask = view.smooth(np.clip(shore, -2.5, 2.5)) < 0
    waves = view.cut("ripple")[int(rng.integers(2))] * np.float32(rng.uniform(0.01, 0.08))
    colour *= 1 + waves + np.float32(0.05) * view.cut("grain")
    colour += np.float32(rng.gamma(1.0, 0.003)) * (waves > 0.1)  # the sun's glint
    for layer, wet in zip(picture, colour, strict=True):
        np.copyto(layer, wet, where=mask)


def _build(
    view: _View,
    rng: np.random.Generator,
    land: LandCover,
    surface: Surface,
    colours: np.ndarray,
    picture: np.ndarray,
    tall: np.ndarray,
) -> None:
    """Roads, streets, houses; `tall` is told where the houses stand."""
    asphalt, roofs = surface.visible[spectra.ASPHALT], surface.visible[spectra.ROOF]
    built = land.classes == BUILT
    if (asphalt > _ROAD).any():
        road = view.smooth(np.where(built, 0, asphalt)) > _ROAD
        _paint(picture, road, colours[spectra.ASPHALT])
    for row, column in np.argwhere((roofs > 0.15) & ~built):
        half = rng.integers(7, 13, 2)
        middle = np.array([row, column]) * DETAIL + rng.integers(13, 19, 2)
        house = tuple(slice(max(at - h, 0), at + h) for at, h in zip(middle, half, strict=True))
        picture[:, *house] = colours[spectra.ROOF][:, None, None] * np.float32(rng.uniform(0.7, 1.2))
        tall[house] = True
    if built.any() and land.blocks is not None:
        part, place = view.around(built)
        _town(part, rng, land, land.blocks, roofs, colours, picture[:, *place], tall[place])


def _town(
    view: _View,
    rng: np.random.Generator,
    land: LandCover,
    blocks: Parcels,
    cover: np.ndarray,
    colours: np.ndarray,
    picture: np.ndarray,
    tall: np.ndarray,
) -> None:
    """Streets along the edges of the blocks, a house on as many lots as roofs cover, halls that fill a block."""
    lattice = blocks.lattice
    town, roofs = view.smooth((land.classes == BUILT).astype(np.float32)) > 0.5, view.smooth(cover)
    across, along = view.turned(blocks, land, 0.5)  # a street of the 10 m map lies up and left of its edge
    strip, order, part, length = _in_strip(lattice, across, along)
    inner = across - lattice.starts[strip].astype(np.float32)
    edge = np.minimum(inner, lattice.widths[strip].astype(np.float32) - inner)
    edge = np.minimum(edge, np.minimum(part, 1 - part) * length)
    street = town & (edge < _STREET)
    _paint(picture, street, colours[spectra.ASPHALT])
    lots = [place / np.float32(_LOT) for place in (across, along)]
    whole = [np.floor(lot) for lot in lots]
    chance = rng.random((4, 4096), dtype=np.float32)
    lot = (whole[0].astype(np.int32) * 73 + whole[1].astype(np.int32) * 179 + strip * 31 + order) & 4095
    from_middle = [np.abs(lot - start - np.float32(0.5)) for lot, start in zip(lots, whole, strict=True)]
    houses = (from_middle[0] < np.float32(0.26) + np.float32(0.16) * chance[1][lot]) & (
        from_middle[1] < np.float32(0.26) + np.float32(0.16) * chance[2][lot]
    )
    houses &= chance[0][lot] * np.float32(0.46) < roofs
    houses = town & ~street & (houses | ((roofs > 0.7) & (edge > 0.8)))
    ridge = np.where(lots[0] - whole[0] > 0.5, np.float32(1.12), np.float32(0.86))
    tone = (np.float32(0.6) + np.float32(0.7) * chance[3][lot]) * ridge
    for layer, colour in zip(picture, colours[spectra.ROOF], strict=True):
        np.copyto(layer, colour * tone, where=houses)
    tall |= houses


def _plant(
    view: _View, surface: Surface, colours: np.ndarray, seen: Acquisition, picture: np.ndarray, tall: np.ndarray
) -> None:
    """Crowns where trees grow, lit from the sun's side; shadows of crowns and houses."""
    azimuth, height = np.deg2rad(seen.sun_azimuth), np.tan(np.deg2rad(min(seen.sun_zenith, 70.0)))
    trees = np.zeros_like(tall)
    if surface.visible[spectra.TREE].max() > 0.02:
        share = view.smooth(surface.visible[spectra.TREE])
        trees = (view.cut("canopy") > 1 - share) & (share > 0.02) & ~tall
    shift = 18 * height
    shaded = _moved(trees | tall, round(shift * np.cos(azimuth)), round(-shift * np.sin(azimuth)))
    shaded &= ~(trees | tall)
    for layer in picture:
        np.multiply(layer, _SHADE, out=layer, where=shaded)
    if trees.any():
        slope = view.cut("slope")
        facing = slope[0] * np.float32(np.cos(azimuth)) - slope[1] * np.float32(np.sin(azimuth))
        tone = 1 + np.float32(0.10) * view.cut("tone") + np.float32(0.06) * facing
        tone = np.maximum(tone + np.float32(0.08) * view.cut("grain"), np.float32(0.35))
        for layer, colour in zip(picture, colours[spectra.TREE], strict=True):
            np.copyto(layer, colour * np.float32(1.25) * tone, where=trees)


def _paint(picture: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    for layer, value in zip(picture, colour, strict=True):
        layer[mask] = value


def _moved(mask: np.ndarray, down: int, right: int) -> np.ndarray:
    """The union of a mask with its copies on the way to an offset."""
    moved = mask.copy()
    for part in (0.25, 0.5, 0.75, 1.0):
        rows, columns = round(part * down), round(part * right)
        source, target = ([], [])
        for step, side in zip((rows, columns), mask.shape, strict=True):
            source.append(slice(max(-step, 0), side - max(step, 0)))
            target.append(slice(max(step, 0), side - max(-step, 0)))
        moved[tuple(target)] |= mask[tuple(source)]
    return moved
