"""Building modules: parameters drawn in one compiled call, shapes without drawing anything."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Make = Callable[[nnx.Rngs], nnx.Module]


def initialise(make: Make, seed: int = 0) -> nnx.Module:
    """A module with random parameters.

    Args:
        make: rngs -> module whose variables are all `nnx.Param`.
        seed: of the initial values.
    """
    graphdef, _ = abstract(make)
    return nnx.merge(graphdef, nnx.State(initial_params(make, seed)))


def initial_params(make: Make, seed: int = 0) -> dict[str, Any]:
    """The random parameters alone, as a nested dict; equal to those of `initialise`."""
    return jax.jit(lambda: draw_params(make, seed), compiler_options=run_once_options())()


def draw_params(make: Make, seed: int = 0) -> dict[str, Any]:
    """`initial_params` for use inside a function that is compiled already."""
    return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(jax.random.key(seed))), nnx.Param))


def run_once_options() -> dict[str, Any]:
    """Compiler options for a function that runs once: on CPU, optimising random draws takes longer than drawing."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def abstract(make: Make) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Static structure and the nested dict of parameter shapes; no array is made."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return graphdef, nnx.to_pure_dict(state)
