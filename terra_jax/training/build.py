"""One objective, one mesh, one optimiser -> the compiled step; serves training, restore, tests and compile checks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from terra_jax.errors import ConfigError, WeightsError
from terra_jax.nn.initialisation import run_once_options
from terra_jax.parallel import shardings
from terra_jax.training.objective import Bind, Objective, Params, PyTree
from terra_jax.training.optimiser import AdamW

State = dict[str, Any]
"""`{"params", "extra", "opt", "step"}`: nested dicts of arrays, all that the next step depends on."""


@dataclass(frozen=True)
class Program:
    """What can be run on a mesh.

    Attributes:
        abstract_state: ShapeDtypeStructs with shardings; restoring needs nothing else.
        step: `(state, batch) -> (state, metrics)`, one `jax.jit`; the state passed in is donated (gone afterwards).
        bind: parameters -> module.
        batch_sharding: how every array of a batch is split.
        logical_axes: names of the parameters' dimensions, nested as the parameters.
        graphdef: static structure of the module.
        mesh: the devices.
    """

    abstract_state: State
    step: Callable[[State, Mapping[str, Any]], tuple[State, dict[str, jax.Array]]]
    bind: Bind
    batch_sharding: NamedSharding
    logical_axes: dict[str, Any]
    graphdef: Any
    mesh: Mesh
    _objective: Objective
    _initial: Callable[[Params], State]

    def init(self, replace_params: Params | None = None) -> State:
        """Random first state on the mesh; teacher and optimiser start from the parameters as they are then.

        Args:
            replace_params: nested dict of a part of the parameters that takes the place of the random values.

        Raises:
            WeightsError: a replacement that is no parameter or has another shape.
        """
        replacements = replace_params or {}
        _check_replacements(replacements, self.abstract_state["params"])
        return self._initial(replacements)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Put this process's part of a global batch on the mesh."""
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), self.batch_sharding)
        return {k: jax.make_array_from_process_local_data(self.batch_sharding, v) for k, v in batch.items()}

    def abstract_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a global batch of `batch_size` examples."""
        return {
            name: jax.ShapeDtypeStruct((batch_size, *spec.shape), np.dtype(spec.dtype), sharding=self.batch_sharding)
            for name, spec in self._objective.batch_spec.items()
        }


def build(objective: Objective, optimiser: AdamW, mesh: Mesh, *, accumulation: int = 1, seed: int = 0) -> Program:
    """Make the program of one training run.

    Args:
        objective: the task.
        optimiser: hyper-parameters and schedules.
        mesh: the devices (`parallel.mesh.make_mesh`).
        accumulation: number of micro-batches of a step; gradients and metrics are averaged, tallies summed.
        seed: of the initial values and of every step's key.
    """
    if accumulation < 1:
        raise ConfigError(f"accumulation={accumulation} must be 1 or more")
    with tree_mode():
        module = nnx.eval_shape(lambda: objective.build(nnx.Rngs(0)))
        graphdef, _ = nnx.split(module, nnx.Param)
        axes = shardings.logical_axes(module)
    extra_axes = dict(getattr(objective, "extra_axes", {}))
    transform = optimiser.transform(axes, objective.frozen)

    def bind(params: Params) -> nnx.Module:
        with tree_mode():
            return nnx.merge(graphdef, params)

    def initial(replacements: Params) -> State:
        with tree_mode():
            params = nnx.to_pure_dict(nnx.state(objective.build(nnx.Rngs(jax.random.key(seed))), nnx.Param))
        params = _replaced(params, replacements)
        return {
            "params": params,
            "extra": objective.extra(params),
            "opt": transform.init(params),
            "step": jnp.zeros((), jnp.int32),
        }

    def step(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        # what `split_examples` refers to, and layers that work shard by shard
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            grads, tally, metrics = _gradients(objective, bind, state, batch, key, accumulation, batch_sharding)
        updates, opt = transform.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics |= {"grad_norm": optax.global_norm(grads), "learning_rate": optimiser.learning_rate_at(state["step"])}
        extra = objective.after_update(state["extra"], params, tally, state["step"])
        return {"params": params, "extra": extra, "opt": opt, "step": state["step"] + 1}, metrics

    abstract = jax.eval_shape(initial, {})
    batch_sharding = shardings.batch_sharding(mesh)
    placed = shardings.parameter_shardings(axes, abstract["params"], mesh)
    layout = shardings.mirrored_shardings(abstract, abstract["params"], placed, mesh)
    layout["extra"] |= shardings.parameter_shardings(extra_axes, {k: abstract["extra"][k] for k in extra_axes}, mesh)
    return Program(
        abstract_state=jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), abstract, layout
        ),
        step=jax.jit(step, donate_argnums=0, out_shardings=(layout, shardings.replicated(mesh))),
        bind=bind,
        batch_sharding=batch_sharding,
        logical_axes=axes,
        graphdef=graphdef,
        mesh=mesh,
        _objective=objective,
        _initial=jax.jit(initial, out_shardings=layout, compiler_options=run_once_options()),
    )


@contextlib.contextmanager
def tree_mode() -> Iterator[None]:
    """Build and bind modules as plain trees that carry logical names but no placement."""
    with nnx.use_eager_sharding(False), nnx.set_graph_mode(False), nnx.set_graph_updates(False):
        yield


def _gradients(
    objective: Objective,
    bind: Bind,
    state: State,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    accumulation: int,
    batch_sharding: NamedSharding,
) -> tuple[Params, PyTree, dict[str, jax.Array]]:
    """Mean gradient, summed tally and mean metrics of a batch, taken in `accumulation` parts."""

    def part(micro: Mapping[str, jax.Array], key: jax.Array) -> tuple[Params, PyTree, dict[str, jax.Array]]:
        def loss_of(params: Params) -> tuple[jax.Array, tuple[PyTree, Mapping[str, jax.Array]]]:
            return objective.loss(bind, params, state["extra"], micro, key, state["step"])

        (loss, (tally, metrics)), grads = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        return grads, tally, {"loss": loss, **metrics}

    if accumulation == 1:
        return part(batch, key)

    def split(leaf: jax.Array) -> jax.Array:
        # Part i takes every `accumulation`-th example from i on, so that each device keeps its own examples.
        parts = leaf.reshape(leaf.shape[0] // accumulation, accumulation, *leaf.shape[1:])
        parts = jax.lax.with_sharding_constraint(parts, batch_sharding)
        return jnp.swapaxes(parts, 0, 1)

    def add(total: PyTree, inputs: tuple[Mapping[str, jax.Array], jax.Array]) -> tuple[PyTree, None]:
        micro, index = inputs
        return jax.tree.map(jnp.add, total, part(micro, jax.random.fold_in(key, index))), None

    parts = jax.tree.map(split, dict(batch))
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, first, key))
    (grads, tally, metrics), _ = jax.lax.scan(add, zeros, (parts, jnp.arange(accumulation)))
    grads, metrics = jax.tree.map(lambda total: total / accumulation, (grads, metrics))
    return grads, tally, metrics


def _replaced(params: Params, replacements: Params) -> Params:
    """Parameters with the leaves of `replacements` in the places of the random ones."""
    result = dict(params)
    for name, value in replacements.items():
        old = params[name]
        result[name] = _replaced(old, value) if isinstance(old, dict) else jnp.asarray(value, old.dtype)
    return result


def _check_replacements(replacements: Params, abstract: Params, prefix: str = "") -> None:
    """Raise for a replacement that is no parameter or does not have its shape."""
    for name, value in replacements.items():
        path = f"{prefix}{name}"
        known = abstract.get(name)
        if known is None or isinstance(known, dict) != isinstance(value, Mapping):
            raise WeightsError(f"{path} is no parameter of this model; it has {', '.join(sorted(abstract))} here")
        if isinstance(known, dict):
            _check_replacements(value, known, f"{path}/")
        elif tuple(value.shape) != tuple(known.shape):
            raise WeightsError(f"{path} has shape {tuple(value.shape)}, the model's is {tuple(known.shape)}")
