"""Two views of one place: which pixels of the one lie where in the other.

Views are boxes of the tile, resized to a grid and perhaps mirrored. Axes never mix, so that looking one view's map up
at the other's pixel centres is a small matrix for the rows and one for the columns, of static shape.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

EDGE = 1e-3
"""How far, in pixels, rounding may push a centre beyond the outermost centres of the other view."""


class Overlap(NamedTuple):
    """How to look a map up at another view's pixel centres, for `b` pairs of views.

    Attributes:
        rows: weights of the looked-up map's rows for each row of the other view.
        columns: the same along the other axis.
        inside: which pixels of the other view lie among the looked-up map's pixel centres, where nothing is
            extrapolated.
    """

    rows: Float[Array, "*b h y"]
    columns: Float[Array, "*b w x"]
    inside: Bool[Array, "*b h w"]

    def sample(self, maps: Float[Array, "*b t y x c"]) -> Float[Array, "*b t h w c"]:
        """Bilinear values of series of maps at the other view's pixel centres; outside, those of the nearest edge."""
        rows, columns = self.rows.astype(maps.dtype), self.columns.astype(maps.dtype)
        partial = jnp.einsum("...hy,...tyxc->...thxc", rows, maps)
        return jnp.einsum("...wx,...thxc->...thwc", columns, partial)


def overlap(
    boxes: Float[Array, "*b 4"],
    flips: Bool[Array, "*b 2"],
    size: tuple[int, int],
    other_boxes: Float[Array, "*b 4"],
    other_flips: Bool[Array, "*b 2"],
    other_size: tuple[int, int],
) -> Overlap:
    """Match pairs of views.

    Args:
        boxes: (top, left, height, width) of the views whose maps are looked up, in any unit of length.
        flips: whether they are mirrored vertically, horizontally.
        size: rows and columns of their maps.
        other_boxes, other_flips, other_size: of the views at whose pixel centres they are looked up.
    """
    axes = [
        _along(
            (boxes[..., i], boxes[..., i + 2], flips[..., i], size[i]),
            (other_boxes[..., i], other_boxes[..., i + 2], other_flips[..., i], other_size[i]),
        )
        for i in (0, 1)
    ]
    (rows, row_inside), (columns, column_inside) = axes
    return Overlap(rows, columns, row_inside[..., :, None] & column_inside[..., None, :])


def _along(view, other) -> tuple[Float[Array, "*b n m"], Bool[Array, "*b n"]]:
    """Bilinear weights along one axis, and which of the other view's pixels lie inside.

    Args:
        view, other: start, length, flip of the box along the axis, and number of pixels.
    """
    start, length, flip, pixels = other
    ground = start[..., None] + length[..., None] * _mirrored((jnp.arange(pixels) + 0.5) / pixels, flip)
    start, length, flip, pixels = view
    place = pixels * _mirrored((ground - start[..., None]) / length[..., None], flip) - 0.5
    inside = (place >= -EDGE) & (place <= pixels - 1 + EDGE)
    place = jnp.clip(place, 0, pixels - 1)
    return jnp.maximum(1 - jnp.abs(place[..., None] - jnp.arange(pixels)), 0), inside


def _mirrored(fraction: Float[Array, "*b n"], flip: Bool[Array, "*b"]) -> Float[Array, "*b n"]:
    """Fractions of a box' length, counted from the other end where it is flipped."""
    return jnp.where(flip[..., None], 1 - fraction, fraction)
