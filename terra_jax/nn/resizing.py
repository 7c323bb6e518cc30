"""From tiles on native grids to network inputs, on the device: upsample, crop and resize in one pair of matmuls.

The host ships each band once, on the grid that it was measured on, and boxes as numbers. For every box two small
matrices (one per axis) hold bicubic resampling, the crop and the nearest-neighbour upsampling of coarse bands at once.
Shapes are static whatever the boxes are.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from data_pipelines.modalities import modality


def cubic_kernel(x, a: float):
    """Keys' cubic convolution kernel with parameter `a` (-0.5: PIL and antialiased resizing; -0.75: PyTorch)."""
    x = abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return (x <= 1) * near + ((x > 1) & (x < 2)) * far


def resampling_matrix(
    start: Float[Array, "*b"],
    length: Float[Array, "*b"],
    extent: int,
    size: int,
    flip: Bool[Array, "*b"] | None = None,
    nearest: bool = False,
) -> Float[Array, "*b size extent"]:
    """Antialiased bicubic resampling of the pixels [start, start + length) of an axis to `size` pixels.

    Args:
        start, length: the box along this axis, pixels; only pixels whose centre lies inside it contribute.
        extent: pixels of the axis.
        size: pixels of the result.
        flip: whether to mirror the result.
        nearest: take the pixel below each centre instead, as class ids want it.
    """
    step = (length / size)[..., None, None]
    centre = start[..., None, None] + (jnp.arange(size)[:, None] + 0.5) * step
    pixel = jnp.arange(extent) + 0.5
    if nearest:
        weight = (jnp.floor(centre) + 0.5 == pixel).astype(jnp.float32)
    else:
        weight = cubic_kernel((pixel - centre) / jnp.maximum(step, 1.0), a=-0.5)
        inside = (pixel > start[..., None, None]) & (pixel < (start + length)[..., None, None])
        weight = jnp.where(inside, weight, 0.0)
        weight = weight / weight.sum(-1, keepdims=True)
    return weight if flip is None else jnp.where(flip[..., None, None], weight[..., ::-1, :], weight)


def on_coarse_grid(
    matrix: Float[Array, "b v size extent"], factor: int, pixels: int, phase: Int[Array, " b"] | None = None
) -> Float[Array, "b v size pixels"]:
    """Fold nearest-neighbour upsampling into a resampling matrix: 10 m columns -> columns of a coarser grid.

    Args:
        matrix: resampling of the 10 m axis.
        factor: 10 m pixels per coarse pixel.
        pixels: length of the coarse axis; pixels * factor covers the extent.
        phase: offset of the axis' first 10 m pixel within its coarse pixel, 0..factor-1 (None: 0).
    """
    extent = matrix.shape[-1]
    if phase is None:
        padded = jnp.pad(matrix, [(0, 0)] * 3 + [(0, pixels * factor - extent)])
    else:
        column = jnp.arange(pixels * factor)[None] - phase[:, None]
        valid = (column >= 0) & (column < extent)
        taken = jnp.take_along_axis(matrix, jnp.clip(column, 0, extent - 1)[:, None, None], axis=-1)
        padded = jnp.where(valid[:, None, None], taken, 0.0)
    return padded.reshape(*padded.shape[:-1], pixels, factor).sum(-1)


def crop_resize(
    grids: Mapping[int, Num[Array, "b c h w"]],
    boxes: Float[Array, "b v 4"],
    size: int,
    order: Sequence[int],
    flips: Bool[Array, "b v 2"] | None = None,
    phase: Int[Array, "b 2"] | None = None,
    nearest: bool = False,
) -> Float[Array, "b v size size c"]:
    """Views of a tile: for each box, all bands resampled to size x size pixels, channels last, float32.

    Args:
        grids: metres per pixel -> bands on that grid, as stored; the 10 m grid must be there.
        boxes: (top, left, height, width) in 10 m pixels of the tile.
        size: pixels per side of a view.
        order: for each output channel, its place among all bands when the grids are laid end to end, finest first.
        flips: whether to mirror a view vertically, horizontally.
        phase: (row, column) of the tile's first pixel on the 60 m lattice, 0..5; None where tiles lie on the lattice.
        nearest: take the nearest pixel instead of a mean, for class ids.
    """
    extents = grids[10].shape[-2:]
    matrices = [
        resampling_matrix(
            boxes[..., i], boxes[..., i + 2], extents[i], size, None if flips is None else flips[..., i], nearest
        )
        for i in (0, 1)
    ]
    views = []
    for gsd in sorted(grids):
        values, factor = grids[gsd].astype(jnp.float32), gsd // 10
        rows, columns = (
            matrix
            if factor == 1
            else on_coarse_grid(matrix, factor, values.shape[i - 2], None if phase is None else phase[:, i] % factor)
            for i, matrix in enumerate(matrices)
        )
        # Digital numbers have 14 bits; by default a TPU would multiply them with 8.
        partial = jnp.einsum("bvph,bchw->bvpcw", rows, values, precision="highest")
        views.append(jnp.einsum("bvqw,bvpcw->bvpqc", columns, partial, precision="highest"))
    return jnp.concatenate(views, axis=-1)[..., jnp.asarray(order)]


def band_order(name: str, gsds: Sequence[int], bands: Sequence[str]) -> tuple[int, ...]:
    """The `order` argument of `crop_resize` that puts bands, shipped on grids `gsds`, into the order of `bands`.

    Args:
        name: modality.
        gsds: the grids that are shipped; the single grid 10 means that every band was stored at 10 m.
        bands: names of the channels wanted, in order; shipped bands that are not wanted must have been left out.
    """
    table = modality(name)
    wanted = [table.bands[table.band_index(band)] for band in bands]
    if len(gsds) == 1:
        return tuple(range(len(bands)))
    shipped = [band.name for gsd in sorted(gsds) for band in sorted(wanted, key=table.bands.index) if band.gsd == gsd]
    return tuple(shipped.index(band.name) for band in wanted)
