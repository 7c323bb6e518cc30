"""Crop settings: where a sample is cut before it is tokenised, the same for all of its modalities.

Setting 0 is the centre without a flip, the others are random resized crops with a random flip. A crop is a function
of (seed, key, setting) and the sample's shape alone: no process, order or earlier draw has a part in it.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.hashing import hash_strings
from data_pipelines.transforms.boxes import random_resized_boxes

_STREAM = 0xC407  # keeps these draws apart from others with the same seed


@dataclass(frozen=True)
class Crop:
    """A rectangle of a sample, and whether what is cut out of it is mirrored.

    Attributes:
        top, left, height, width: 10 m pixels of the sample.
        flip: left to right.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, height, width), as `crop_resize` takes it."""
        return self.top, self.left, self.height, self.width


def crop_setting(key: str, setting: int, shape: tuple[int, int], size: int, *, scale: float, seed: int) -> Crop:
    """The crop of a sample under a setting.

    Args:
        key: of the sample.
        setting: 0: the centre, `size` pixels a side, neither resized nor flipped; from 1 on: random.
        shape: (height, width) of the sample in 10 m pixels; random crops lie in its central square.
        size: side of the image that the crop is resized to.
        scale: least area of a random crop, as a fraction of that square's.
        seed: of all draws.

    Raises:
        DataError: if the sample is smaller than `size`.
    """
    extent = min(shape)
    if extent < size:
        raise DataError(f"sample {key} is {shape[1]} x {shape[0]} pixels, smaller than {size}; give larger tiles")
    if setting == 0:
        return Crop((shape[0] - size) // 2, (shape[1] - size) // 2, size, size)
    rng = np.random.default_rng([_STREAM, seed, int(hash_strings([key])[0]), setting])
    top, left, height, width = (int(side) for side in random_resized_boxes(rng, 1, extent, (scale, 1.0))[0])
    corner = (shape[0] - extent) // 2, (shape[1] - extent) // 2
    return Crop(corner[0] + top, corner[1] + left, height, width, flip=bool(rng.random() < 0.5))
