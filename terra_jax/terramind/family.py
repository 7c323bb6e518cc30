"""What the registry must know of TerraMind."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import abstract, draw_params, with_options
from terra_jax.terramind.backbone import Backbone
from terra_jax.terramind.composites import COMPOSITES, GENERATORS, THINKERS, compose, generator_maker, given_parts
from terra_jax.terramind.model import EncoderDecoder
from terra_jax.terramind.tim import TiM
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.torch_weights import weight_map
from terra_jax.terramind.variants import MODELS as SIZES
from terra_jax.terramind.variants import TOKENIZERS
from terra_jax.weights.convert import ModelSpec, Part

_MODELS: dict[str, tuple[type[nnx.Module], Any]] = {
    **{name: (Tokenizer, variant) for name, variant in TOKENIZERS.items()},
    **{f"terramind_v1_{size}": (Backbone, variant) for size, variant in SIZES.items()},
    **{f"terramind_v1_{size}_encdec": (EncoderDecoder, variant) for size, variant in SIZES.items()},
    **{name: (TiM, SIZES[size]) for name, size in THINKERS.items()},
}
"""Registered name -> class and sizes."""

MODELS = (*_MODELS, *GENERATORS)
LICENCE = "Apache-2.0 (TerraMind-1.0-* of ibm-esa-geospatial)"
__all__ = [
    "COMPOSITES", "LICENCE", "MODELS", "assemble", "compose", "evaluate", "experiment", "given_parts", "maker",
    "objective", "scores_table", "spec",
]  # fmt: skip

PUBLIC_OPTIONS = {"clip": "unit"}
"""The released sampler clamps its prediction to +-1 standard deviation, whatever weights it runs."""


def maker(name: str, **overrides: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    """Make the constructor of a model.

    Args:
        name: one of MODELS.
        overrides: fields of its sizes (`TokenizerVariant`, `Variant`) or keyword arguments of its class; of a
            generator's encoder-decoder, and `tokenizers`.

    Raises:
        ConfigError: an override that is neither.
    """
    if name in GENERATORS:
        return generator_maker(name, maker, **overrides)
    module, sizes = _MODELS[name]
    variant, options = with_options(name, sizes, module, overrides)
    return lambda rngs: module(variant, rngs=rngs, **options)  # type: ignore[call-arg]


def spec(name: str, **overrides: Any) -> ModelSpec:
    """What conversion must know of a model: one part, "tokenizer" or "model"."""
    make = maker(name, **overrides)
    if name in TOKENIZERS:
        variant, _ = with_options(name, TOKENIZERS[name], Tokenizer, overrides)
        part = Part(weight_map(variant), lambda: abstract(make)[1], lambda: draw_params(make))
        options = PUBLIC_OPTIONS if variant.unet else {}
        return ModelSpec(name, {"tokenizer": part}, LICENCE, default_weights="student", public_options=options)
    graphdef, template = abstract(make)
    model: Any = nnx.merge(graphdef, nnx.State(template))
    weights = model.whole_map if name in GENERATORS else model.weight_map
    part = Part(weights, lambda: template, lambda: draw_params(make))
    return ModelSpec(name, {"model": part}, LICENCE, default_weights="student")


def assemble(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the public model from those of its one part."""
    (params,) = parts.values()
    return dict(params)


def experiment(config: Any) -> Any:
    """A run's `training.experiment.Experiment`."""
    return _experiments(config).experiment(config)


def objective(config: Any) -> Any:
    """A run's `training.objective.Objective`, without its data."""
    return _experiments(config).objective(config)


def evaluate(config: Any, params: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Figures of a tokenizer's or a model's parameters on a config's data."""
    return _experiments(config).evaluate(config, params, split)


def scores_table(result: Mapping[str, Any]) -> str:
    """What `evaluate` found, as lines of text."""
    from terra_jax.terramind import evaluation, tokenizer_evaluation

    return (evaluation if "zero_shot" in result else tokenizer_evaluation).scores_table(result)


def _experiments(config: Any) -> Any:
    """The module of the runs that train a model of this name.

    Raises:
        ConfigError: if none does.
    """
    from terra_jax.terramind import experiment, tokenizer_experiment

    if config.model in TOKENIZERS:
        return tokenizer_experiment
    if not config.model.endswith("_encdec"):
        raise ConfigError(
            f"{config.model} is not trained by itself; pretrain its encoder-decoder, terramind_v1_*_encdec"
        )
    return experiment
