"""Where views are cut: boxes as numbers, drawn on the host and applied on the device."""

import numpy as np


def random_resized_boxes(
    rng: np.random.Generator,
    count: int,
    extent: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Random rectangles as RandomResizedCrop draws them.

    The area is uniform within `scale`, the logarithm of the aspect ratio uniform within that of `ratio`; a draw that
    does not fit is repeated up to ten times, then the largest centred square of the scale's upper bound is taken.

    Args:
        rng: source of randomness.
        count: number of boxes.
        extent: side of the square tile, pixels.
        scale: bounds of a box' area, as fractions of the tile's.
        ratio: bounds of width / height.

    Returns:
        float32 (count, 4): top, left, height, width; whole pixels.
    """
    tries = 10
    area = rng.uniform(scale[0], scale[1], (count, tries)) * extent**2
    aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1]), (count, tries)))
    place = rng.random((count, 2))
    width = np.rint(np.sqrt(area * aspect))
    height = np.rint(np.sqrt(area / aspect))
    fits = (width >= 1) & (height >= 1) & (width <= extent) & (height <= extent)
    first, some = np.argmax(fits, axis=1), np.asarray(np.any(fits, axis=1))
    side = max(1, min(extent, int(np.sqrt(scale[1]) * extent)))
    rows = np.arange(count)
    size = np.where(some[:, None], np.stack([height[rows, first], width[rows, first]], 1), side)
    corner = np.floor(place * (extent - size + 1))
    corner = np.where(some[:, None], corner, (extent - side) // 2)
    return np.concatenate([corner, size], axis=1).astype(np.float32)
