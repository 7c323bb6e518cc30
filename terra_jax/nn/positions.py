"""Learned position tables, resampled to other grids."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from terra_jax.nn.resizing import cubic_kernel


def dino_interpolation(table: int, grid: int) -> Float[np.ndarray, "grid table"]:
    """Bicubic resampling of one axis of a position table, exactly as DINO's `interpolate_pos_encoding` does.

    The scale factor carries DINO's +0.1 into the sampling coordinates, the kernel has a = -0.75, taps are clamped at
    the border and nothing is smoothed when the grid shrinks: image-resizing functions give other values.
    """
    scale = (grid + 0.1) / table
    centre = (np.arange(grid) + 0.5) / scale - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((grid, table))
    for tap in range(-1, 3):
        weight = cubic_kernel(centre - first - tap, a=-0.75)
        np.add.at(matrix, (np.arange(grid), np.clip(first + tap, 0, table - 1)), weight)
    return matrix.astype(np.float32)


def resample_positions(
    positions: Float[Array, "n d"], table: tuple[int, int], grid: tuple[int, int]
) -> Float[Array, "m d"]:
    """Positions of a (rows, columns) table, resampled to another grid by `dino_interpolation` along both axes."""
    rows, columns = (jnp.asarray(dino_interpolation(t, g)) for t, g in zip(table, grid, strict=True))
    image = positions.reshape(*table, -1)
    return jnp.einsum("yr,xc,rcd->yxd", rows, columns, image).reshape(grid[0] * grid[1], -1)
