"""terra_jax's side of `benchmark.py skysense`: one row in one process, its figures as one line of JSON.

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
from terra_jax.nn.swin import SwinSize, SwinV2
from terra_jax.skysense.fusion import Fusion
from terra_jax.skysense.variants import FusionSize

Run = Callable[[], Any]


def fusion(settings: dict[str, Any]) -> tuple[Run, float]:
    """Fused features of a batch of positions and all gradients, those of the frames included."""
    width, frames = settings["width"], (settings["positions"], settings["frames"], settings["width"])
    size = FusionSize(inputs=width, width=width, depth=settings["depth"], heads=settings["heads"])
    return _gradients(lambda rngs: Fusion(size, rngs=rngs, remat="none"), lambda model, x: [model(x)], frames)


def stages(settings: dict[str, Any]) -> tuple[Run, float]:
    """Maps of two stages of an image and the gradients of all parameters and of the image."""
    size = SwinSize(
        tuple(settings["widths"]), tuple(settings["depths"]), tuple(settings["stage_heads"]), (8, 8), (0, 0)
    )
    image = (settings["images"], settings["pixels"], settings["pixels"], 3)
    return _gradients(lambda rngs: SwinV2(size, rngs=rngs), lambda model, x: model.maps(x), image)


def _gradients(make: Callable, apply: Callable, shape: tuple[int, ...]) -> tuple[Run, float]:
    """The program of a mean of squares and its gradients, ready to run, and the seconds that compiling it took."""
    graphdef, shapes = abstract(make)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jax.device_put(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    x = jax.device_put(rng.standard_normal(shape, np.float32))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        outputs = apply(nnx.merge(graphdef, nnx.State(params)), x)
        return sum((jnp.square(output).mean() for output in outputs), jnp.zeros(()))

    start = time.perf_counter()
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, x).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(program(params, x)), seconds


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after an untimed run, of compiling, and the process's peak memory."""
    run, compile_seconds = {"fusion": fusion, "stages": stages}[settings["row"]](settings)
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    return {**timed(run, settings["repeats"]), "compile_seconds": compile_seconds, "versions": versions}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
