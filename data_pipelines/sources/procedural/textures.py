"""A stock of periodic textures, made once: what repeats without anyone seeing it, because it is cut anywhere."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural.noise import periodic_fields

_SIDE = 1024  # pixels of the close textures, 320 m
_CROWN = 16  # pixels between crowns, 5 m
_CLOUD_SIDE = 512  # nodes of the cloud fields, 20 km


@dataclass(frozen=True)
class Textures:
    """Periodic fields at 32 pixels to 10 m, (1024, 1024) float32.

    Attributes:
        canopy: uniform on 0 to 1, high in the middle of tree crowns: where it exceeds 1 - share, that share is covered.
        slope: (2, ...) of the crowns' domes, downwards and to the right.
        tone: of unit variance, one value a crown.
        mottle: fractal, of unit variance: tufts, stains.
        grain: white, of unit variance.
        ripple: (2, ...) waves running down and across, of unit variance.
    """

    canopy: np.ndarray
    slope: np.ndarray
    tone: np.ndarray
    mottle: np.ndarray
    grain: np.ndarray
    ripple: np.ndarray


@functools.cache
def close_textures() -> Textures:
    """The textures of high-resolution images."""
    rng = np.random.default_rng(0x7E47)
    dome, tone = _crowns(rng)
    order = np.empty(dome.size, np.float32)
    order[np.argsort(dome, axis=None, kind="stable")] = (np.arange(dome.size, dtype=np.float32) + 0.5) / dome.size
    slope = np.stack([np.roll(dome, -2, axis) - np.roll(dome, 2, axis) for axis in (0, 1)])
    mottle = periodic_fields(rng, 2, _SIDE, 2.4, 30)[0]
    waves = periodic_fields(rng, 2, _SIDE, 5.0, 2.5, stretch=3.0)
    grain = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)
    return Textures(order.reshape(dome.shape), slope, tone, mottle, grain, np.stack([waves[0], waves[1].T]))


@functools.cache
def cloud_fields() -> np.ndarray:
    """(4, 512, 512) fields of unit variance on nodes 40 m apart: two of heaps, then two of layers."""
    rng = np.random.default_rng(0xC10D)
    return np.concatenate([periodic_fields(rng, 2, _CLOUD_SIDE, 3.3, 9), periodic_fields(rng, 2, _CLOUD_SIDE, 3.0, 60)])


def window(field: np.ndarray, corner: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """A square cut out of a periodic field, (..., size, size); a view where it does not cross the edge.

    Args:
        field: (..., side, side).
        corner: row and column, any integers.
        size: side of the square.
    """
    return _along(_along(field, int(corner[0]), size, -2), int(corner[1]), size, -1)


def _along(field: np.ndarray, start: int, size: int, axis: int) -> np.ndarray:
    side = field.shape[axis]
    parts, at = [], start % side
    while size:
        length = min(size, side - at)
        parts.append(field[..., at : at + length, :] if axis == -2 else field[..., at : at + length])
        size, at = size - length, 0
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def _crowns(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Height of the highest dome over each pixel, and that dome's tone: one crown in each cell of a shaken grid."""
    cells = _SIDE // _CROWN
    at = (rng.random((2, cells, cells), dtype=np.float32) * 0.9 + 0.05) * _CROWN
    radius = rng.uniform(0.45, 1.15, (cells, cells)).astype(np.float32) * _CROWN
    tones = rng.standard_normal((cells, cells), dtype=np.float32)
    rise = radius * rng.uniform(0.7, 1.3, (cells, cells)).astype(np.float32)
    inner = np.arange(_CROWN, dtype=np.float32)
    best = np.full((cells, _CROWN, cells, _CROWN), -np.inf, np.float32)
    tone = np.zeros_like(best)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            row, column, size, height, colour = (
                np.roll(values, (-down, -right), (0, 1))[:, None, :, None] for values in (*at, radius, rise, tones)
            )
            squared = (inner[:, None, None] - row - down * _CROWN) ** 2 + (inner - column - right * _CROWN) ** 2
            dome = height * (1 - squared / size**2)
            tone = np.where(dome > best, colour, tone)
            best = np.maximum(best, dome)
    return best.reshape(_SIDE, _SIDE), tone.reshape(_SIDE, _SIDE)
