"""Crops that share ground: global views that overlap each other, and local views that overlap them both."""

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.transforms.boxes import random_resized_boxes


def check_scale(name: str, scale: tuple[float, float], extent: int) -> None:
    """Refuse bounds of a crop's area that no crop can keep.

    Args:
        name: of the option, for the message.
        scale: least and greatest area of a crop, as fractions of the tile's.
        extent: side of the tile, pixels.

    Raises:
        DataError: naming the option.
    """
    low, high = scale
    if not 0 < low <= high <= 1:
        raise DataError(f"{name}=({low:g}, {high:g}) is impossible: it takes 0 < least <= greatest <= 1 of the tile")
    if low * extent**2 < 4:
        raise DataError(
            f"{name}=({low:g}, {high:g}) gives crops below 2 x 2 pixels of a tile of {extent}, which share no ground "
            "with others; raise it or choose a larger tile"
        )


def overlapping_boxes(
    rng: np.random.Generator,
    extent: int,
    globals_: int,
    locals_: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    overlap: float = 0.5,
) -> np.ndarray:
    """Random rectangles that share ground, by construction.

    Sizes are drawn as RandomResizedCrop does. Along either axis the global views overlap by at least `overlap` of the
    shortest of them; each local view overlaps what all global views share by `overlap` of the shorter of the two.

    Args:
        rng: source of randomness.
        extent: side of the square tile, pixels.
        globals_, locals_: number of global and local views.
        global_scale, local_scale: bounds of a box' area, as fractions of the tile's.
        overlap: fraction, 0 to 1; at least one pixel is shared whatever it is.

    Returns:
        float32 (globals_ + locals_, 4): top, left, height, width; whole pixels.
    """
    wide = random_resized_boxes(rng, globals_, extent, global_scale).astype(int)
    near = random_resized_boxes(rng, locals_, extent, local_scale).astype(int)
    shared = (0, extent), (0, extent)
    boxes = []
    for sizes in (*wide[:, 2:], *near[:, 2:]):
        place = [_place(rng, int(size), span, extent, overlap) for size, span in zip(sizes, shared, strict=True)]
        boxes.append([*place, *sizes])
        if len(boxes) <= globals_:
            edges = zip(shared, place, sizes, strict=True)
            top, left = ((max(low, at), min(high, at + int(size))) for (low, high), at, size in edges)
            shared = top, left
    return np.asarray(boxes, np.float32)


def _place(rng: np.random.Generator, size: int, span: tuple[int, int], extent: int, overlap: float) -> int:
    """Start of a segment of `size` pixels in 0..extent that overlaps a span."""
    low, high = span
    least = max(1, int(np.ceil(overlap * min(size, high - low))))
    return int(rng.integers(max(0, low - size + least), min(extent - size, high - least) + 1))
