"""What the registry must know of SkySense."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from terra_jax.nn.initialisation import abstract, draw_params, with_options
from terra_jax.skysense.encoders import HREncoder, SeriesEncoder
from terra_jax.skysense.fusion import Fusion, UpHead
from terra_jax.skysense.model import SkySense
from terra_jax.skysense.variants import PART_MODELS, PARTS, WHOLE, part_size
from terra_jax.weights.convert import ModelSpec, Part

MODELS = (*PART_MODELS, *WHOLE)
COMPOSITES: dict[str, dict[str, str]] = {}
LICENCE = "the terms of the SkySense release (Jack-bo1220/SkySense): research and other non-commercial use"
_CLASSES: dict[str, type[nnx.Module]] = {
    "hr": HREncoder,
    "s2": SeriesEncoder,
    "s1": SeriesEncoder,
    "head_s2": UpHead,
    "head_s1": UpHead,
    "fusion": Fusion,
}


def maker(name: str, **overrides: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    """Make the constructor of a model.

    Args:
        name: key of WHOLE or of PART_MODELS.
        overrides: fields of the sizes or keyword arguments of the class.

    Raises:
        ConfigError: an override that is neither.
    """
    part = PART_MODELS.get(name)
    module = _CLASSES[part] if part else SkySense
    sizes = part_size(part) if part else WHOLE[name]
    variant, options = with_options(name, sizes, module, overrides)  # type: ignore[misc]
    return lambda rngs: module(variant, rngs=rngs, **options)  # type: ignore[call-arg]


def spec(name: str, **overrides: Any) -> ModelSpec:
    """What conversion must know of a model: its public files, one for a part model and six for a whole one."""
    make = maker(name, **overrides)
    graphdef, template = abstract(make)
    model: Any = nnx.merge(graphdef, nnx.State(template))
    if part := PART_MODELS.get(name):
        return ModelSpec(name, {part: Part(model.weight_map, lambda: template, lambda: draw_params(make))}, LICENCE)
    maps = model.weight_map
    return ModelSpec(name, {part: _part(make, part, maps[part], template[part]) for part in PARTS}, LICENCE)


def _part(make: Callable, part: str, weights, template: dict[str, Any]) -> Part:
    return Part(weights, lambda: template, lambda: draw_params(make)[part], f"encoder/{part}")


def assemble(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the public model from those of its parts."""
    return dict(parts) if set(parts) == set(PARTS) else dict(next(iter(parts.values())))


def experiment(config: Any) -> Any:
    """A run's `training.experiment.Experiment`."""
    from terra_jax.skysense import experiment

    return experiment.experiment(config)


def objective(config: Any) -> Any:
    """A run's `training.objective.Objective`, without its data."""
    from terra_jax.skysense import experiment

    return experiment.objective(config)


def evaluate(config: Any, params: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Land-cover figures of a model's parameters on a config's data."""
    from terra_jax.skysense import experiment

    return experiment.evaluate(config, params, split)


def scores_table(result: Mapping[str, Any]) -> str:
    """What `evaluate` found, as lines of text."""
    from terra_jax.skysense import evaluation

    return evaluation.scores_table(result)
