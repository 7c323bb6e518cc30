"""A self-distillation toy with all that a real objective has: scanned blocks, EMA teacher, centre, frozen head."""

import json
import os
import resource
import signal
import sys
import time
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from data_pipelines.recipes.spec import ArraySpec
from terra_jax.errors import MissingProcessError, TerraJaxError
from terra_jax.nn.stacking import stacked
from terra_jax.training.config import with_run_options
from terra_jax.training.experiment import Experiment

WIDTH, MLP, DEPTH, PROTOTYPES = 16, 32, 2, 24


def _param(rngs, shape, names):
    return nnx.Param(jax.random.uniform(rngs.params(), shape, minval=-0.5, maxval=0.5), axes=names)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones((WIDTH,)), axes=("embed",))
        self.up = _param(rngs, (WIDTH, MLP), ("embed", "mlp"))
        self.bias = nnx.Param(jnp.zeros((MLP,)), axes=("mlp",))
        self.down = _param(rngs, (MLP, WIDTH), ("mlp", "embed"))

    def __call__(self, x):
        normed = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * self.scale[...]
        return x + jnp.tanh(normed @ self.up[...] + self.bias[...]) @ self.down[...]


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.stem = _param(rngs, (8, WIDTH), ("stem", "embed"))
        self.blocks = stacked(Block, DEPTH, rngs)

    def __call__(self, x):
        return jax.lax.scan(lambda x, block: (block(x), None), x @ self.stem[...], self.blocks)[0]


class Model(nnx.Module):
    def __init__(self, rngs):
        self.encoder = Encoder(rngs)
        self.head = _param(rngs, (WIDTH, PROTOTYPES), ("embed", "prototypes"))

    def __call__(self, x):
        return self.encoder(x) @ self.head[...]


class Toy:
    """Student matches the centred teacher; the class-weighted centre shows whether tallies are whole."""

    def __init__(self, frozen=None, bad_step=None, bad_example=None):
        self.batch_spec = {
            "view": ArraySpec((8,), "float32"),
            "other": ArraySpec((8,), "float32"),
            "common": ArraySpec((), "bool"),
        }
        self.frozen = frozen or {}
        self.bad_step, self.bad_example = bad_step, bad_example

    def build(self, rngs):
        return Model(rngs)

    def extra(self, params):
        return {"teacher": params, "centre": jnp.zeros((PROTOTYPES,))}

    def loss(self, bind, params, extra, batch, key, step):
        student = bind(params)(batch["view"])
        teacher = jax.lax.stop_gradient(bind(extra["teacher"])(batch["other"]))
        target = jax.nn.softmax((teacher - extra["centre"]) / 0.5)
        loss = -jnp.mean(jnp.sum(target * jax.nn.log_softmax(student), -1))
        if self.bad_step is not None:
            loss = jnp.where(step + 1 == self.bad_step, jnp.nan, loss)
        if self.bad_example is not None:
            spoilt = jnp.any(batch["view"][:, 0] == batch_at(self.bad_example, 1)["view"][0, 0])
            loss = jnp.where(spoilt, jnp.inf, loss)
        common = batch["common"].astype(jnp.float32)
        tally = {"sum": jnp.sum(teacher * common[:, None], 0), "count": jnp.sum(common)}
        return loss, (tally, {"entropy": jnp.mean(-jnp.sum(target * jnp.log(target), -1))})

    def after_update(self, extra, params, tally, step):
        teacher = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, extra["teacher"], params)
        mean = tally["sum"] / jnp.maximum(tally["count"], 1.0)
        centre = jnp.where(tally["count"] > 0, 0.9 * extra["centre"] + 0.1 * mean, extra["centre"])
        return {"teacher": teacher, "centre": centre}


def batch_at(position, size):
    """The batch that starts at a position of the endless stream; common examples come first (one shard's)."""
    rows = [np.random.default_rng([7, position + i]).normal(size=(2, 8)) for i in range(size)]
    views = np.stack(rows).astype(np.float32)
    return {"view": views[:, 0], "other": views[:, 1], "common": np.arange(size) == 0}


class Stream:
    """The loader's interface over `batch_at`."""

    def __init__(self, position, size, failures=None, index=0, count=1):
        self.position, self.size, self.failures, self.closed = position, size, dict(failures or {}), False
        self.index, self.count = index, count

    def __iter__(self):
        local = self.size // self.count
        while True:
            batch = batch_at(self.position, self.size)
            self.position += self.size
            yield {name: array[self.index * local :][:local] for name, array in batch.items()}

    def keys(self, start, stop):
        return [f"sample-{position}" for position in range(start, stop)]

    def close(self):
        self.closed = True


def toy_config(steps=8, batch_size=8, save_every=3, evaluate_every=4, model="toy", **mesh):
    """Small enough to compile in a second."""
    return ConfigDict(
        {
            "model": model,
            "seed": 0,
            "steps": steps,
            "batch_size": batch_size,
            "accumulation": 1,
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, **mesh},
            "data": {"path": ""},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 2, "clip_norm": 0.3},
            "checkpoint": {"every": save_every, "keep": 2},
            "evaluation": {"every": evaluate_every},
        }
    )


def toy_experiment(config, failures=None, init=None, report=None, **options):
    """A run of the toy."""

    def probe(bind, state, step):
        return {"head_norm": float(jnp.sum(state["params"]["head"] ** 2))}

    return Experiment(
        objective=Toy(**options),
        loader=lambda position, index, count: Stream(position, config.batch_size, failures, index, count),
        evaluators={"probe": probe},
        init=init,
        report=report,
    )


class Slow(Stream):
    """Takes its time, writes down which examples it gave, and may spoil, refuse or hold back one batch."""

    def __init__(self, *arguments, delay=0.0, log=None, fail_at=None, hang_at=None, **options):
        super().__init__(*arguments, **options)
        self.delay, self.log, self.fail_at, self.hang_at = delay, log, fail_at, hang_at

    def __iter__(self):
        local = self.size // self.count
        for batch in super().__iter__():
            time.sleep(self.delay)
            first = self.position - self.size
            if self.fail_at == first:
                raise DataError(f"sample-{first} cannot be read; copy it again")
            while self.hang_at == first:
                time.sleep(0.1)
            if self.log:
                with open(self.log, "a") as file:
                    file.write(f"{first} {first + self.index * local} {local}\n")
            yield batch


def run(options):
    """A run in a process of its own.

    Args:
        options: "workdir"; "config" as `toy_config` takes it; "overrides" (key -> value); "delay" seconds a batch;
            "kill_in_save", the step in whose save this process kills itself; "log", a file for the examples given;
            "coordinator", "count" and "index" where there are several processes; "fail_at" and "hang_at",
            positions of a batch; "largest_file" in bytes, which stands for a full disk.
    """
    from terra_jax.parallel import distributed, processes
    from terra_jax.training import checkpoints
    from terra_jax.training.loop import train

    if "largest_file" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["largest_file"],) * 2)
    config = with_run_options(toy_config(**{"steps": 24, "save_every": 6, "evaluate_every": 0, **options["config"]}))
    for key, value in options.get("overrides", {}).items():
        config.update_from_flattened_dict({key: value})
    save = checkpoints.Checkpoints.save

    def save_and_die(self, step, *rest):
        save(self, step, *rest)
        if step == options.get("kill_in_save"):
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints.Checkpoints.save = save_and_die
    jax.config.update("jax_disable_most_optimizations", True)

    def stream(position, index, count):
        slow = {name: options.get(name) for name in ("log", "fail_at", "hang_at")}
        return Slow(position, config.batch_size, index=index, count=count, delay=options.get("delay", 0.0), **slow)

    found = processes.find(options.get("coordinator"), options.get("count"), options.get("index"))
    with distributed.joined(found, options.get("wait", 30)):
        experiment = toy_experiment(config, **options.get("toy", {}))
        experiment = replace(experiment, loader=stream)
        print(train(experiment, config, options["workdir"])["status"], flush=True)


def main():
    """Run what the command line says in JSON; mistakes and damage are one line each."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        run(json.loads(sys.argv[1]))
    except (TerraJaxError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, MissingProcessError) else 2)


if __name__ == "__main__":
    main()
