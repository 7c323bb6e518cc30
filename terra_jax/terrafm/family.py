"""What the registry must know of TerraFM."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from terra_jax.evaluation.table import scores_table
from terra_jax.nn.initialisation import abstract, draw_params, with_options
from terra_jax.terrafm.experiment import evaluate, experiment, objective
from terra_jax.terrafm.model import TerraFM
from terra_jax.terrafm.torch_weights import weight_map
from terra_jax.terrafm.variants import VARIANTS
from terra_jax.weights.convert import ModelSpec, Part

MODELS = tuple(VARIANTS)
COMPOSITES: dict[str, dict[str, str]] = {}
LICENCE = "Apache-2.0 by the model card of MBZUAI/TerraFM; its code repository names none"

__all__ = [
    "COMPOSITES", "LICENCE", "MODELS", "assemble", "evaluate", "experiment", "maker", "objective", "scores_table",
    "spec",
]  # fmt: skip


def maker(name: str, **overrides: Any) -> Callable[[nnx.Rngs], TerraFM]:
    """Make the constructor of a model.

    Args:
        name: key of VARIANTS.
        overrides: fields of `Variant` or keyword arguments of `TerraFM`.

    Raises:
        ConfigError: an override that is neither.
    """
    variant, options = with_options(name, VARIANTS[name], TerraFM, overrides)
    return lambda rngs: TerraFM(variant, rngs=rngs, **options)


def spec(name: str, **overrides: Any) -> ModelSpec:
    """What conversion must know of a model: one part, the encoder."""
    make = maker(name, **overrides)
    variant, _ = with_options(name, VARIANTS[name], TerraFM, overrides)

    def fresh() -> dict[str, Any]:
        # Zero keys score all modalities alike: fusion without trained keys is uniform attention.
        params = draw_params(make)
        fusion = params["patch_embed"]["fusion"]
        fusion["key"] = jnp.zeros_like(fusion["key"])
        return params

    return ModelSpec(name, {"encoder": Part(weight_map(variant), lambda: abstract(make)[1], fresh)}, LICENCE)


def assemble(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the public model from those of its parts."""
    return dict(parts["encoder"])
