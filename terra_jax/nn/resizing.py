"""From tiles on native grids to network inputs, on the device: upsample, crop and resize in one pair of matmuls.

The host ships each band once, on the grid that it was measured on, and boxes as numbers. For every box two small
matrices (one per axis) hold bicubic resampling, the crop and the nearest-neighbour upsampling of coarse bands at once.
Shapes are static whatever the boxes are.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from data_pipelines.modalities import modality

_BLOCK = 32  # rows of a view that share a window of the tile


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


def crop_resize_fine(
    image: Num[Array, "b c h w"], boxes: Float[Array, "b v 4"], size: int, flips: Bool[Array, "b v 2"] | None = None
) -> Float[Array, "b v size size c"]:
    """What `crop_resize` makes of one grid, for images of many pixels: the cost follows the views, not the tile.

    Each block of rows (columns) of a view is a product with the window of the tile that it looks at, a fourteenth of
    the products where views of 512 pixels are cut out of 2048.

    Args:
        image: bands on one grid, as stored.
        boxes: (top, left, height, width) in pixels of the image.
        size: pixels per side of a view.
        flips: whether to mirror a view vertically, horizontally.
    """
    count, views, channels = *boxes.shape[:2], image.shape[1]
    flips = jnp.zeros((count, views, 2), bool) if flips is None else flips
    (rows, tops), (columns, lefts) = (
        _windowed_matrix(boxes[..., i], boxes[..., i + 2], image.shape[2 + i], size, flips[..., i]) for i in (0, 1)
    )

    def view(picture, rows, tops, columns, lefts):
        bands = jax.vmap(lambda top: jax.lax.dynamic_slice_in_dim(picture, top, rows.shape[-1], 1))(tops)
        partial = jnp.einsum("nph,nchw->cnpw", rows, bands.astype(jnp.float32), precision="highest")
        partial = partial.reshape(channels * size, -1)
        bands = jax.vmap(lambda left: jax.lax.dynamic_slice_in_dim(partial, left, columns.shape[-1], 1))(lefts)
        whole = jnp.einsum("nqw,nxw->xnq", columns, bands, precision="highest")
        return whole.reshape(channels, size, size).transpose(1, 2, 0)

    of_one_image = jax.vmap(view, in_axes=(None, 0, 0, 0, 0))
    return jax.vmap(of_one_image)(image, rows, tops, columns, lefts)


def _windowed_matrix(
    start: Float[Array, "b v"], length: Float[Array, "b v"], extent: int, size: int, flip: Bool[Array, "b v"]
) -> tuple[Float[Array, "b v blocks block window"], Int[Array, "b v blocks"]]:
    """`resampling_matrix` in blocks of rows, each with the columns of its window, and where the windows begin."""
    block = math.gcd(size, _BLOCK)
    coarsest = max(extent / size, 1.0)  # the most pixels that become one
    window = min(extent, math.ceil((block + 4) * coarsest) + 2)  # the kernel reaches two pixels to either side
    step = (length / size)[..., None, None]
    place = jnp.arange(size).reshape(-1, block)
    place = jnp.where(flip[..., None, None], size - 1 - place, place)
    centre = start[..., None, None] + (place + 0.5) * step
    first = jnp.floor(centre.min(-1) - 2 * jnp.maximum(step[..., 0], 1.0))
    first = jnp.clip(first, 0, extent - window).astype(jnp.int32)
    pixel = (first[..., None] + jnp.arange(window) + 0.5)[..., None, :]
    weight = cubic_kernel((pixel - centre[..., None]) / jnp.maximum(step, 1.0)[..., None], a=-0.5)
    begin, end = (edge[..., None, None, None] for edge in (start, start + length))
    weight = jnp.where((pixel > begin) & (pixel < end), weight, 0.0)
    return weight / weight.sum(-1, keepdims=True), first


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
