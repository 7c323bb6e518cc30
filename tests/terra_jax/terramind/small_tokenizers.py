"""Tokenizers far smaller than nano, with random parameters that give many different tokens, and hand-made samples."""

from dataclasses import replace

import jax
import numpy as np
from flax import nnx

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, modality
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import Index
from terra_jax.nn.initialisation import abstract
from terra_jax.nn.unet import UNetSize
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.variants import TOKENIZERS, TokenizerVariant

UNET = UNetSize(channels=8, multipliers=(1, 2), blocks=1, attention=(2,), groups=4)


def small_variant(kind: str) -> TokenizerVariant:
    nano = TOKENIZERS[f"terramind_v1_tokenizer_{kind}_nano"]
    return replace(nano, width=32, depth=1, heads=2, table=4, image=32, unet=nano.unet and UNET)


def small_tokenizer(kind: str, seed: int = 0, **options) -> Tokenizer:
    """Filled by NumPy: drawing parameters as the library does would be compiled first."""
    variant = small_variant(kind)
    graphdef, shapes = abstract(lambda rngs: Tokenizer(variant, rngs=rngs, **options))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(0.3 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    return nnx.merge(graphdef, nnx.State(params))


def land_cover_sample(i: int, shape: tuple[int, int] = (40, 40)) -> Sample:
    """Blocks of random classes."""
    blocks = np.random.default_rng([7, i]).integers(0, len(LAND_COVER), (1, -(-shape[0] // 4), -(-shape[1] // 4)))
    classes = blocks.repeat(4, 1).repeat(4, 2)[:, : shape[0], : shape[1]].astype(np.uint8)
    transform = (10.0, 0.0, 6e5, 0.0, -10.0, 5e6)
    return Sample(f"s{i}", {"LULC": Raster({10: classes}, modality("LULC").unit)}, 3.0 + i, 45.0, 32631, transform)


class LandCoverSource:
    """Samples made by hand; some of which may be unreadable, or replaced."""

    name = "fake"

    def __init__(self, size: int, unreadable=(), replaced=None):
        self.index = Index.at([f"s{i}" for i in range(size)], 3.0 + np.arange(size), np.full(size, 45.0))
        self.unreadable, self.replaced = set(unreadable), replaced or {}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Sample:
        if i in self.unreadable:
            raise DataError(f"s{i}.tif cannot be read; copy it again")
        return self.replaced.get(i) or land_cover_sample(i)
