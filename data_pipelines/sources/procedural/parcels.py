"""Man-made geometry: fields and blocks in strips, circular pivots, streets and roads."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parcels:
    """A partition of a square into parcels.

    Attributes:
        ids: (m, m) int32 number of the parcel.
        count: parcels there may be; numbers lie below it.
        edge: (m, m) bool, pixels at a boundary.
        inside_circle: (m, m) bool, pixels of the circle inscribed in their parcel (for square parcels).
    """

    ids: np.ndarray
    count: int
    edge: np.ndarray
    inside_circle: np.ndarray


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
    cosine, sine = (np.where(district, *f(angle).astype(np.float32)[:, None, None]) for f in (np.cos, np.sin))
    bend = np.float32(irregularity * (4 + 0.35 * width))
    rows, columns = (
        np.arange(m, dtype=np.float32)[:, None] + bend * warp[0],
        np.arange(m, dtype=np.float32) + bend * warp[1],
    )
    u, v = columns * cosine + rows * sine, rows * cosine - columns * sine
    u -= u.min()
    v -= v.min()
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
    return Parcels(ids, strips * per_strip, edge, inside)


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
