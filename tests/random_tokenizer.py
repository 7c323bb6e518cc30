"""Modules with random parameters, none of them zero, as if they had been trained; drawn without a compiler."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from terra_jax import registry
from terra_jax.nn.initialisation import Make, abstract
from terra_jax.nn.unet import UNetSize

TINY = {"width": 32, "depth": 2, "heads": 2}
TINY_UNET = UNetSize(channels=8, multipliers=(1,), blocks=1, attention=(1,), patch=4, groups=4)


def random_tokenizer(name: str, **overrides: Any) -> Any:
    """A tokenizer by name; equal for equal arguments."""
    return random_module(registry.family(name).maker(name, **overrides))


def random_module(make: Make) -> Any:
    """What `make` constructs, with parameters near 0, and scales near 1."""
    graphdef, params = abstract(make)
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        values = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        return jnp.asarray(values + (path[-1] == "scale"))

    flat = nnx.to_flat_state(nnx.State(params))
    return nnx.merge(graphdef, nnx.from_flat_state([(path, drawn(path, leaf)) for path, leaf in flat]))
