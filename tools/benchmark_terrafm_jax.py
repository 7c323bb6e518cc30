"""terra_jax's side of `benchmark.py terrafm`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON. The step is the trainer's own program.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np
from benchmark_timing import timed
from flax import nnx

from data_pipelines.recipes.terrafm import TerraFMRecipe
from terra_jax.parallel.mesh import make_mesh
from terra_jax.terrafm.model import TerraFM
from terra_jax.terrafm.objective import TerraFMObjective
from terra_jax.terrafm.variants import VARIANTS, Variant
from terra_jax.training.build import Program, build, tree_mode
from terra_jax.training.optimiser import AdamW

MODALITIES = ("S2L2A",)
TINY = Variant(width=16, depth=12, heads=2, image=16, fusion_heads=2)
"""Next to no arithmetic, but as many arrays in its state as the base size: what remains is Python."""


def forward(settings: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    """Class tokens of a batch; returns the run and the seconds that compiling took."""
    variant = _variant(settings)
    with tree_mode():
        graphdef, abstract = nnx.split(nnx.eval_shape(lambda: TerraFM(variant, rngs=nnx.Rngs(0))))

    def apply(params: nnx.State, x: jax.Array) -> jax.Array:
        with tree_mode():
            return nnx.merge(graphdef, params)({"S2L2A": x}, normalised=True)

    # filled array by array, so that peak memory is the forward pass's and not the initialisation's
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jax.device_put(0.02 * rng.standard_normal(leaf.shape, np.float32)), abstract)
    x = jax.device_put(rng.standard_normal((settings["batch"], variant.image, variant.image, 12), np.float32))
    start = time.perf_counter()
    compiled = jax.jit(apply).lower(params, x).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(compiled(params, x)), seconds


def step(settings: dict[str, Any]) -> tuple[Callable[[], Any], float]:
    """Cut and standardise views, loss, gradients, AdamW, teacher and centres; the state is donated from run to run."""
    program, batch = _program(_variant(settings), settings)
    state = program.init()
    start = time.perf_counter()
    compiled = program.step.lower(state, batch).compile()  # type: ignore[attr-defined]
    seconds = time.perf_counter() - start

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return run, seconds


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after an untimed run, of compiling, and the process's peak memory."""
    run, compile_seconds = (forward if settings["row"] == "forward" else step)(settings)
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    return {**timed(run, settings["repeats"]), "compile_seconds": compile_seconds, "versions": versions}


def compile_time(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds to trace and to compile the step at a given depth; nothing is run."""
    program, _ = _program(dataclasses.replace(_variant(settings), depth=settings["depth"]), settings)
    start = time.perf_counter()
    lowered = program.step.lower(program.abstract_state, program.abstract_batch(settings["batch"]))  # type: ignore[attr-defined]
    traced = time.perf_counter()
    lowered.compile()
    return {"trace_seconds": traced - start, "compile_seconds": time.perf_counter() - traced}


def python_time(settings: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds that the caller's thread spends in the call of a step, which returns before the work is done.

    The model is so small that the work does not hold the call up. `wall_milliseconds` also counts what other threads
    and processes take away.
    """
    settings = {**settings, "batch": 1, "prototypes": 32, "local_views": 0, "head_hidden": 32, "head_bottleneck": 16}
    program, batch = _program(TINY, settings)
    state = program.init()
    wall, own = [], []
    for _ in range(settings["repeats"]):
        start, own_start = time.perf_counter(), time.thread_time()
        state, metrics = program.step(state, batch)
        own.append(1e3 * (time.thread_time() - own_start))
        wall.append(1e3 * (time.perf_counter() - start))
        jax.block_until_ready((state, metrics))
    return {
        "milliseconds": statistics.median(own[3:]),
        "wall_milliseconds": statistics.median(wall[3:]),
        "arrays": len(jax.tree.leaves(state)),
    }


def _variant(settings: dict[str, Any]) -> Variant:
    return VARIANTS[f"terrafm_{settings['size']}"]


def _program(variant: Variant, settings: dict[str, Any]) -> tuple[Program, dict[str, jax.Array]]:
    """The trainer's program and one random batch on the device."""
    local_views, batch_size = settings["local_views"], settings["batch"]
    recipe = TerraFMRecipe(MODALITIES, variant.image, local_views, (0.25, 1.0), (0.05, 0.25))
    objective = TerraFMObjective(
        variant=variant,
        batch_spec=recipe.batch_spec,
        modalities=MODALITIES,
        global_size=variant.image,
        local_size=settings["local_pixels"],
        prototypes=settings["prototypes"],
        steps=1000,
        head_hidden=settings.get("head_hidden", 2048),
        head_bottleneck=settings.get("head_bottleneck", 256),
        encoder_options={"drop_path": 0.1, "remat": settings["remat"]},
    )
    program = build(objective, AdamW(steps=1000, learning_rate=5e-4), make_mesh())
    return program, program.place(_random_batch(recipe, batch_size))


def _random_batch(recipe: TerraFMRecipe, batch_size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    batch = {}
    for name, spec in recipe.batch_spec.items():
        shape = (batch_size, *spec.shape)
        if name == "boxes":
            corner = rng.uniform(0, recipe.tile / 4, (*shape[:-1], 2))
            batch[name] = np.concatenate([corner, np.full_like(corner, recipe.tile * 3 / 4)], -1).astype(spec.dtype)
        elif name == "frequent":
            batch[name] = np.arange(batch_size) % 2 == 0
        elif spec.dtype == "bool":
            batch[name] = np.ones(shape, bool)
        else:
            batch[name] = rng.integers(0, 4000, shape).astype(spec.dtype)
    return batch


TASKS = {"compile": compile_time, "python": python_time}

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(TASKS.get(given["row"], measure)(given)))
