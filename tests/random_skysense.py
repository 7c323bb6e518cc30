"""A small SkySense with random weights, and images for it."""

import jax.numpy as jnp
import numpy as np
from random_tokenizer import random_module

from terra_jax.nn.swin import SwinSize
from terra_jax.skysense.model import SkySense
from terra_jax.skysense.variants import FusionSize, SeriesSize, SkySenseSize

TINY = SkySenseSize(
    SwinSize((8, 16), (1, 1), (2, 2), (4, 4), (0, 0), patch=16),
    SeriesSize("S2L2A", width=8, depth=2, heads=2, aligned=16, image=16),
    SeriesSize("S1GRD", width=8, depth=2, heads=2, aligned=16, image=16),
    FusionSize(inputs=16, width=12, depth=3, heads=2),
)
DAYS = {"S2L2A": jnp.array([[3, 200, 365], [10, 20, 30]]), "S1GRD": jnp.array([[5, 90], [90, 5]])}


def random_skysense(size=TINY, **options):
    return random_module(lambda rngs: SkySense(size, rngs=rngs, **options))


def random_images(side=8, seed=0):
    """Two samples of standardised images: three frames of Sentinel-2 and two of Sentinel-1."""
    rng = np.random.default_rng(seed)
    shapes = {"HR": (2, 32 * side, 32 * side, 3), "S2L2A": (2, 3, side, side, 10), "S1GRD": (2, 2, side, side, 2)}
    return {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
