"""Building modules: options by name, parameters drawn in one compiled call, shapes without drawing anything."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx

from terra_jax.errors import ConfigError

Make = Callable[[nnx.Rngs], nnx.Module]
Variant = TypeVar("Variant")


def with_options(
    name: str, variant: Variant, module: type[nnx.Module], overrides: Mapping[str, Any]
) -> tuple[Variant, dict[str, Any]]:
    """Sort a user's options into those that change a model's sizes and those that its constructor takes.

    Args:
        name: of the model, for messages.
        variant: its sizes, a dataclass.
        module: its class, constructed as `module(variant, rngs=..., **options)`.
        overrides: fields of the dataclass or keyword arguments of the class.

    Returns:
        The changed sizes and the keyword arguments.

    Raises:
        ConfigError: an override that is neither.
    """
    sizes = {field.name for field in dataclasses.fields(variant)}  # type: ignore[arg-type]
    options = set(inspect.signature(module.__init__).parameters) - {"self", "variant", "rngs"}
    for key in overrides:
        if key not in sizes | options:
            near = difflib.get_close_matches(key, sizes | options, n=2) or sorted(sizes | options)
            raise ConfigError(f"{name} has no option {key!r}; did you mean {' or '.join(near)}?")
    changed = dataclasses.replace(variant, **{k: v for k, v in overrides.items() if k in sizes})  # type: ignore[type-var]
    return changed, {k: v for k, v in overrides.items() if k in options}


class _Keys:
    """The keys of `nnx.Rngs(key)`, bit for bit, counted in Python: NNX's counter costs milliseconds under a trace."""

    def __init__(self, key: jax.Array):
        self.key = key
        self.count = 0

    def params(self) -> jax.Array:
        """The next key."""
        self.count += 1
        return jax.random.fold_in(self.key, self.count - 1)


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
    return nnx.to_pure_dict(nnx.state(_made(make, seed), nnx.Param))


def run_once_options() -> dict[str, Any]:
    """Compiler options for a function that runs once: on CPU, optimising random draws takes longer than drawing."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}


def abstract(make: Make) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Static structure and the nested dict of parameter shapes; no array is made."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: _made(make, 0)))
    return graphdef, nnx.to_pure_dict(state)


def _made(make: Make, seed: int) -> nnx.Module:
    return make(_Keys(jax.random.key(seed)))  # type: ignore[arg-type]
