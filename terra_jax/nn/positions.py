"""Position tables, learned or of sines and cosines, resampled to other grids."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from terra_jax.nn.resizing import cubic_kernel


def sincos_positions(side: int, width: int) -> Float[np.ndarray, "side side width"]:
    """The fixed table of MoCo v3: sines and cosines of the row, then those of the column, a quarter of `width` each.

    Float32 throughout, as the public PyTorch code has it.
    """
    quarter = width // 4
    frequencies = 1 / np.float32(10_000) ** (np.arange(quarter, dtype=np.float32) / np.float32(quarter))
    angles = np.arange(side, dtype=np.float32)[:, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    half = (side, side, 2 * quarter)
    return np.concatenate([np.broadcast_to(waves[:, None], half), np.broadcast_to(waves[None], half)], axis=-1)


def sincos_sequence(length: int, width: int) -> Float[np.ndarray, "length width"]:
    """The fixed table of a sequence: sines, then cosines of the place, half of `width` each; float32 throughout."""
    half = width // 2
    frequencies = 1 / np.float32(10_000) ** (np.arange(half, dtype=np.float32) / np.float32(half))
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def bicubic_interpolation(table: int, grid: int, nudge: float = 0.0) -> Float[np.ndarray, "grid table"]:
    """Resampling of one axis of a position table, exactly as PyTorch's bicubic interpolation does.

    The kernel has a = -0.75, taps are clamped at the border and nothing is smoothed when the grid shrinks:
    image-resizing functions give other values.

    Args:
        table: length of the axis.
        grid: wanted length.
        nudge: what is added to the wanted length where the scale factor is computed.
    """
    scale = (grid + nudge) / table
    centre = (np.arange(grid) + 0.5) / scale - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((grid, table))
    for tap in range(-1, 3):
        weight = cubic_kernel(centre - first - tap, a=-0.75)
        np.add.at(matrix, (np.arange(grid), np.clip(first + tap, 0, table - 1)), weight)
    return matrix.astype(np.float32)


def dino_interpolation(table: int, grid: int) -> Float[np.ndarray, "grid table"]:
    """`bicubic_interpolation` as DINO's `interpolate_pos_encoding` uses it: its +0.1 stays in the coordinates."""
    return bicubic_interpolation(table, grid, nudge=0.1)


def resample_positions(
    positions: Float[Array, "n d"],
    table: tuple[int, int],
    grid: tuple[int, int],
    interpolation: Callable[[int, int], np.ndarray] = dino_interpolation,
) -> Float[Array, "m d"]:
    """Positions of a (rows, columns) table, resampled to another grid along both axes.

    Args:
        positions: the table, row by row.
        table, grid: its rows and columns, and those wanted.
        interpolation: (length of an axis, wanted length) -> matrix.
    """
    rows, columns = (jnp.asarray(interpolation(t, g)) for t, g in zip(table, grid, strict=True))
    image = positions.reshape(*table, -1)
    return jnp.einsum("yr,xc,rcd->yxd", rows, columns, image).reshape(grid[0] * grid[1], -1)
