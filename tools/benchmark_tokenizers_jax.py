"""terra_jax's side of `benchmark.py tokenizers`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_timing import timed
from flax import nnx

from terra_jax.nn.initialisation import abstract
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.variants import TOKENIZERS

NAMES = {"base": "terramind_v1_tokenizer_s2l2a", "nano": "terramind_v1_tokenizer_s2l2a_nano"}


def compiled(settings: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    """A row's work, ready to run, and the seconds that compiling it took."""
    variant = TOKENIZERS[NAMES[settings["size"]]]
    graphdef, shapes = abstract(lambda rngs: Tokenizer(variant, rngs=rngs))
    # filled array by array, so that peak memory is the work's and not the initialisation's
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jax.device_put(_small(rng, leaf.shape)), shapes)
    batch, pixels = settings["batch"], settings["pixels"]
    grid = pixels // variant.patch

    def encode(params: Any, image: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, nnx.State(params)).tokenize(image, normalised=True)

    def decode(params: Any, ids: jax.Array, noise: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, nnx.State(params)).decode_tokens(ids, settings["steps"], noise=noise, clip="unit")

    image = jax.device_put(rng.standard_normal((batch, pixels, pixels, variant.channels), np.float32))
    ids = jnp.asarray(rng.integers(0, variant.codebook, (batch, grid, grid)), jnp.int32)
    function, arguments = (decode, (ids, image)) if "steps" in settings else (encode, (image,))
    start = time.perf_counter()
    program = jax.jit(function).lower(params, *arguments).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(program(params, *arguments)), seconds


def _small(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape, np.float32)
    values *= 0.02
    return values


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after an untimed run, of compiling, and the process's peak memory."""
    run, compile_seconds = compiled(settings)
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    return {**timed(run, settings["repeats"]), "compile_seconds": compile_seconds, "versions": versions}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
