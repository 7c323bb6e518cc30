"""What the registry must know of TerraMind."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from terra_jax.nn.initialisation import abstract, draw_params, with_options
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.torch_weights import weight_map
from terra_jax.terramind.variants import TOKENIZERS
from terra_jax.weights.convert import ModelSpec, Part

MODELS = tuple(TOKENIZERS)
LICENCE = "Apache-2.0 (TerraMind-1.0-Tokenizer-* of ibm-esa-geospatial)"
PUBLIC_OPTIONS = {"clip": "unit"}
"""The released sampler clamps its prediction to +-1 standard deviation, whatever weights it runs."""


def maker(name: str, **overrides: Any) -> Callable[[nnx.Rngs], Tokenizer]:
    """Make the constructor of a model.

    Args:
        name: key of TOKENIZERS.
        overrides: fields of `TokenizerVariant` or keyword arguments of `Tokenizer`.

    Raises:
        ConfigError: an override that is neither.
    """
    variant, options = with_options(name, TOKENIZERS[name], Tokenizer, overrides)
    return lambda rngs: Tokenizer(variant, rngs=rngs, **options)


def spec(name: str, **overrides: Any) -> ModelSpec:
    """What conversion must know of a model: one part, the tokenizer."""
    make = maker(name, **overrides)
    variant, _ = with_options(name, TOKENIZERS[name], Tokenizer, overrides)
    part = Part(weight_map(variant), lambda: abstract(make)[1], lambda: draw_params(make))
    options = PUBLIC_OPTIONS if variant.unet else {}
    return ModelSpec(name, {"tokenizer": part}, LICENCE, default_weights="student", public_options=options)


def assemble(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the public model from those of its parts."""
    return dict(parts["tokenizer"])


def experiment(config: Any) -> Any:
    """A run's `training.experiment.Experiment`."""
    from terra_jax.terramind import tokenizer_experiment

    return tokenizer_experiment.experiment(config)


def evaluate(config: Any, tokenizer: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Reconstruction figures of a tokenizer's parameters on a config's data."""
    from terra_jax.terramind import tokenizer_experiment

    return tokenizer_experiment.evaluate(config, tokenizer, split)


def scores_table(result: Mapping[str, Any]) -> str:
    """What `evaluate` found, as lines of text."""
    from terra_jax.terramind import tokenizer_evaluation

    return tokenizer_evaluation.scores_table(result)
