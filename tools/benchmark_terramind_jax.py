"""terra_jax's side of `benchmark.py terramind`: one row in one process, its figures as one line of JSON.

Started by benchmark.py; the argument is the row's settings as JSON. The step is the trainer's own program.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import benchmark_terramind_batch as batches
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_timing import Memory, timed

from data_pipelines.recipes.spec import ArraySpec
from terra_jax.parallel.mesh import make_mesh
from terra_jax.terramind.objective import PretrainingObjective, packed, stream_weights
from terra_jax.terramind.variants import MODELS
from terra_jax.training.build import build
from terra_jax.training.optimiser import AdamW


class Task(PretrainingObjective):
    """Pretraining from images that are cut and standardised already, as the other side is given them."""

    def loss(self, bind, params, extra, batch, key, step):
        """Mean over the streams of their targets' cross-entropies."""
        model = bind(params).model
        inputs, targets = packed(batch)
        pixels = {name.removeprefix("pixels/"): image for name, image in batch.items() if name.startswith("pixels/")}
        decoded = model.decode(model.encode(inputs, pixels), targets)
        asked = jax.nn.one_hot(targets.stream, len(self.outputs))
        weights = asked @ stream_weights(asked.sum((0, 1)), self.outputs, "mod")
        return model.token_loss(decoded, targets, weights)[0], ({}, {})


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every repeat after an untimed run, of compiling, and memory."""
    variant = MODELS[settings["size"]]
    inputs, outputs = batches.STREAMS[settings["modalities"]]
    slots, pixels = batches.draw(
        np.random.default_rng(0), inputs, outputs, settings["batch"], settings["tokens"], variant.image, variant.patch
    )
    data = {**slots, **{f"pixels/{name}": image for name, image in pixels.items()}}
    spec = {name: ArraySpec(array.shape[1:], array.dtype.name, "") for name, array in data.items()}
    task = Task(variant, spec, inputs, outputs, variant.image, model_options={"remat": settings["remat"]})
    optimiser = AdamW(steps=1000, learning_rate=1e-4, weight_decay=0.05, betas=(0.9, 0.95), undecayed="norms")
    program = build(task, optimiser, make_mesh())

    start = time.perf_counter()
    work, held = WORK[settings["row"]](program, task, optimiser, settings["batch"])
    seconds = time.perf_counter() - start
    memory = Memory()
    arrays = held(program.init())
    batch = program.place(data)

    def run() -> None:
        nonlocal arrays
        arrays, result = work(arrays, batch)
        jax.block_until_ready((arrays, result))

    figures = timed(run, settings["repeats"], memory=memory)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state["params"]))
    versions = {"jax": jax.__version__, "flax": flax.__version__}
    return {**figures, "parameters": parameters, "compile_seconds": seconds, "versions": versions}


Work = tuple[Callable[[Any, Any], tuple[Any, Any]], Callable[[Any], Any]]
"""(what is held, batch) -> (what is held then, result); and what is held, of the first state."""


def step(program, task, optimiser, batch_size) -> Work:
    """Loss, gradients and AdamW; the state is donated from run to run."""
    compiled = program.step.lower(program.abstract_state, program.abstract_batch(batch_size)).compile()
    return compiled, lambda state: state


def gradients(program, task, optimiser, batch_size) -> Work:
    """Loss and gradients alone."""

    def loss(params, batch):
        return task.loss(program.bind, params, {}, batch, jax.random.key(0), jnp.zeros((), jnp.int32))[0]

    abstract = program.abstract_state["params"], program.abstract_batch(batch_size)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*abstract).compile()
    return lambda params, batch: (params, compiled(params, batch)), lambda state: state["params"]


def update(program, task, optimiser, batch_size) -> Work:
    """AdamW alone, the gradients being at hand."""
    transform = optimiser.transform(program.logical_axes, task.frozen)

    def apply(params, opt, grads):
        updates, opt = transform.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    params, opt = program.abstract_state["params"], program.abstract_state["opt"]
    compiled = jax.jit(apply, donate_argnums=(0, 1)).lower(params, opt, params).compile()

    def work(arrays, batch):
        *state, grads = arrays
        return (*compiled(*state, grads), grads), ()

    return work, lambda state: (state["params"], state["opt"], jax.tree.map(jnp.ones_like, state["params"]))


WORK = {"step": step, "gradients": gradients, "update": update, "few": gradients, "all": gradients}

if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
