"""Colour augmentation of the high-resolution views, on the device (paper: blur, solarisation and the like)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from data_pipelines.modalities import modality

RADIUS = 4
"""Pixels to either side that a blur reaches: two of its widest deviation."""


@dataclass(frozen=True)
class Augmentation:
    """Strengths and probabilities, all 0 for none.

    Attributes:
        brightness, contrast: largest relative change.
        blur: probability of a Gaussian blur of 0.3 to 2 pixels (BYOL, appendix B, scaled to our images).
        solarise: probability of inverting what is brighter than half.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    blur: float = 0.0
    solarise: float = 0.0

    def __call__(
        self, images: Float[Array, "b h w 3"], key: Key[Array, ""], statistics: str
    ) -> Float[Array, "b h w 3"]:
        """Change each image by itself.

        Args:
            images: standardised.
            key: of the random draws.
            statistics: set that standardised them.
        """
        if not (self.brightness or self.contrast or self.blur or self.solarise):
            return images
        mean, std = modality("HR").statistics_for(statistics)
        keys = jax.random.split(key, 5)
        images = images * std + mean
        count = len(images)

        def around_one(key: Key[Array, ""], most: float) -> Float[Array, "b 1 1 1"]:
            return jax.random.uniform(key, (count, 1, 1, 1), minval=1 - most, maxval=1 + most)

        middle = images.mean((1, 2, 3), keepdims=True)
        images = (images - middle) * around_one(keys[0], self.contrast) + middle * around_one(keys[1], self.brightness)
        images = jnp.clip(images, 0, 255)
        if self.blur:
            chosen = jax.random.bernoulli(keys[2], self.blur, (count,))
            sigma = jnp.where(chosen, jax.random.uniform(keys[3], (count,), minval=0.3, maxval=2.0), 1e-3)
            images = _blurred(images, sigma)
        if self.solarise:
            chosen = jax.random.bernoulli(keys[4], self.solarise, (count, 1, 1, 1))
            images = jnp.where(chosen & (images > 128), 255 - images, images)
        return (images - mean) / std


def _blurred(images: Float[Array, "b h w 3"], sigma: Float[Array, " b"]) -> Float[Array, "b h w 3"]:
    """Gaussian blur of each image by its own deviation, edges repeated."""
    offset = jnp.arange(-RADIUS, RADIUS + 1)
    kernel = jnp.exp(-0.5 * jnp.square(offset / sigma[:, None]))
    kernel = (kernel / kernel.sum(1, keepdims=True))[..., None, None, None]
    for axis in (1, 2):
        length = images.shape[axis]
        padded = jnp.pad(images, [(RADIUS, RADIUS) if i == axis else (0, 0) for i in range(4)], mode="edge")
        shifted = (jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(2 * RADIUS + 1))
        images = sum((kernel[:, i] * image for i, image in enumerate(shifted)), start=jnp.zeros_like(images))
    return images
