"""Which number format the network computes in; parameters, losses, softmax and norms' statistics stay float32."""

import jax
import jax.numpy as jnp

from terra_jax.errors import ConfigError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str = "auto"):
    """Resolve a config's word: "auto" is bfloat16 on accelerators and float32 on CPU, where bfloat16 is emulated.

    Raises:
        ConfigError: if the word is unknown.
    """
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; choose auto, {' or '.join(DTYPES)}")
    return DTYPES[name]
