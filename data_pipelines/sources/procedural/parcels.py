"""Man-made geometry: fields and blocks in strips, circular pivots, streets and roads."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lattice:
    """Where the lines of a partition run, at any resolution: strips, cut into parcels.

    Attributes:
        cosine, sine: (2,) float32 of the angles of the strips, outside and inside the district.
        bend: pixels by which warp fields of unit variance move the lines.
        origin: (across, along) position of the first strip's corner, pixels.
        strip_of: whole pixels across -> number of the strip.
        starts, widths, lengths, offsets: of each strip: pixels across, pixels along, and parts of a length.
        per_strip: parcels that a strip may have.
    """

    cosine: np.ndarray
    sine: np.ndarray
    bend: np.float32
    origin: tuple[np.float32, np.float32]
    strip_of: np.ndarray
    starts: np.ndarray
    widths: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray
    per_strip: int

    def turned(
        self, rows: np.ndarray, columns: np.ndarray, warp: np.ndarray, district: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions across and along the strips, pixels.

        Args:
            rows, columns: float32 positions, pixels; broadcast against each other.
            warp: (2, y, x) smooth fields there.
            district: (y, x) bool, which of the two orientations holds.
        """
        return _turn(rows, columns, warp, district, self.cosine, self.sine, self.bend)


@dataclass(frozen=True)
class Parcels:
    """A partition of a square into parcels.

    Attributes:
        ids: (m, m) int32 number of the parcel.
        count: parcels there may be; numbers lie below it.
        edge: (m, m) bool, pixels at a boundary.
        inside_circle: (m, m) bool, pixels of the circle inscribed in their parcel (for square parcels).
        lattice: the lines.
    """

    ids: np.ndarray
    count: int
    edge: np.ndarray
    inside_circle: np.ndarray
    lattice: Lattice


def make_parcels(
    rng: np.random.Generator,
    warp: np.ndarray,
    district: np.ndarray,
    width: float,
    *,
    aspect: float,
    irregularity: float,
) -> Parcels:
    """Divide a square into strips, and strips into parcels, turned to another angle in each district.

    Args:
        rng: source of chance.
        warp: (2, m, m) smooth fields of about unit variance that bend the lines.
        district: (m, m) bool, which of two orientations holds.
        width: typical width of a strip, pixels.
        aspect: length of a parcel over its width.
        irregularity: 0 for a survey grid, 1 for old, crooked fields.
    """
    m = district.shape[0]
    angle = rng.uniform(0, np.pi) + np.array([0.0, rng.normal(0.5, 0.5)])
    cosine, sine = (f(angle)[::-1].astype(np.float32) for f in (np.cos, np.sin))
    bend = np.float32(irregularity * (4 + 0.35 * width))
    pixels = np.arange(m, dtype=np.float32)
    u, v = _turn(pixels[:, None], pixels, warp, district, cosine, sine, bend)
    origin = u.min(), v.min()
    u -= origin[0]
    v -= origin[1]
    strips = int(u.max() / max(width * 0.4, 2.0)) + 2
    widths = np.maximum(np.rint(width * np.exp(0.35 * irregularity * rng.standard_normal(strips))), 2).astype(int)
    starts = np.concatenate([[0], np.cumsum(widths)])
    strip_of = np.repeat(np.arange(strips, dtype=np.int32), widths)
    strip = strip_of[np.minimum(u.astype(np.int32), len(strip_of) - 1)]
    lengths = (width * aspect * np.exp(0.4 * irregularity * rng.standard_normal(strips))).astype(np.float32)
    lengths = np.maximum(lengths, 2)
    offsets = rng.random(strips, dtype=np.float32) * min(irregularity * 2, 1.0)
    along = v / lengths[strip] + offsets[strip]
    order = np.floor(along)
    per_strip = int(order.max()) + 1
    ids = strip * np.int32(per_strip) + order.astype(np.int32)
    edge = np.zeros(ids.shape, bool)
    edge[:, :-1] = ids[:, :-1] != ids[:, 1:]
    edge[:-1] |= ids[:-1] != ids[1:]
    across = (u - starts[strip].astype(np.float32)) / widths[strip].astype(np.float32) - np.float32(0.5)
    inside = across**2 + (along - order - np.float32(0.5)) ** 2 < np.float32(0.235)
    lattice = Lattice(cosine, sine, bend, origin, strip_of, starts, widths, lengths, offsets, per_strip)
    return Parcels(ids, strips * per_strip, edge, inside, lattice)


def _turn(
    rows: np.ndarray,
    columns: np.ndarray,
    warp: np.ndarray,
    district: np.ndarray,
    cosines: np.ndarray,
    sines: np.ndarray,
    bend: np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    first = bool(district.flat[0])
    if (district == first).all():
        cosine, sine = cosines[int(first)], sines[int(first)]
    else:
        cosine, sine = (np.where(district, pair[1], pair[0]) for pair in (cosines, sines))
    rows, columns = rows + bend * warp[0], columns + bend * warp[1]
    return columns * cosine + rows * sine, rows * cosine - columns * sine


def road_network(rng: np.random.Generator, warp: np.ndarray, roads: int) -> np.ndarray:
    """Share of each pixel that is road: a few long, gently bent lines.

    Args:
        rng: source of chance.
        warp: (2, m, m) smooth fields that bend the lines.
        roads: number of lines.
    """
    m = warp.shape[-1]
    share = np.zeros((m, m), np.float32)
    rows, columns = np.arange(m, dtype=np.float32)[:, None], np.arange(m, dtype=np.float32)
    for _ in range(roads):
        angle, bend = rng.uniform(0, np.pi), rng.uniform(2, 12)
        at = rng.uniform(0.1, 0.9, 2) * m
        distance = (rows - at[0]) * np.float32(np.sin(angle)) + (columns - at[1]) * np.float32(np.cos(angle))
        distance += np.float32(bend) * warp[int(rng.integers(2))]
        share = np.maximum(share, np.clip(np.float32(rng.uniform(0.8, 1.4)) - np.abs(distance), 0, 1))
    return share
