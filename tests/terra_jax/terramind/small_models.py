"""Encoder-decoders far smaller than nano, with random parameters that give many different tokens."""

from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from small_tokenizers import small_tokenizer, small_variant

from terra_jax.nn.initialisation import abstract
from terra_jax.terramind.generator import Generator
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.variants import MODELS
from terra_jax.weights.params_folder import save_params

SIZES = {"width": 32, "depth": 2, "decoder_depth": 1, "heads": 2, "hidden": 48, "image": 32}
INPUTS = ("S2L2A", "S1GRD", "DEM", "tok_S2L2A", "tok_LULC", "tok_NDVI", "coords")
OUTPUTS = ("tok_S2L2A", "tok_LULC", "tok_NDVI", "coords")


def small_model(seed: int = 0, **options) -> EncoderDecoder:
    """A grid of 4 x 4 patches of 8 pixels; random parameters of NumPy: the library would compile before it draws."""
    variant = replace(MODELS["nano"], **SIZES)
    options = {"inputs": INPUTS, "outputs": OUTPUTS, **options}
    graphdef, shapes = abstract(lambda rngs: EncoderDecoder(variant, rngs=rngs, **options))
    rng = np.random.default_rng(seed)

    def drawn(path, leaf) -> jax.Array:
        values = 0.3 * rng.standard_normal(leaf.shape, np.float32)
        return jax.numpy.asarray(values + (path[-1].key == "scale"))

    return nnx.merge(graphdef, nnx.State(jax.tree_util.tree_map_with_path(drawn, shapes)))


def small_generator(modalities=("S2L2A", "LULC", "NDVI"), coordinates=None, **options) -> Generator:
    """With the small tokenizers of some modalities."""
    tokenizers = {name: small_tokenizer(name.lower()) for name in modalities}
    return Generator(small_model(**options), tokenizers, coordinates)


def saved_parts(folder: Path, **options) -> dict[str, str]:
    """An encoder-decoder and a tokenizer of land cover, as params folders that record their sizes."""
    model, tokenizer = small_model(**options), small_tokenizer("lulc")
    params = {name: nnx.to_pure_dict(nnx.state(m, nnx.Param)) for name, m in (("model", model), ("LULC", tokenizer))}
    held = {**SIZES, "inputs": list(INPUTS), "outputs": list(OUTPUTS), **options}
    save_params(folder / "model", "terramind_v1_nano_encdec", {"model": params["model"]}, "none", held)
    held = {key: value for key, value in asdict(small_variant("lulc")).items() if key != "unet"}
    save_params(folder / "LULC", "terramind_v1_tokenizer_lulc_nano", {"tokenizer": params["LULC"]}, "none", held)
    return {"model": str(folder / "model"), "LULC": str(folder / "LULC")}
