"""Models by name: the one place, beside the command line and the configs, that knows every family.

A family is imported when one of its models is first asked for.
"""

import difflib
import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from terra_jax.errors import ConfigError, WeightsError

_FAMILIES = {
    "terrafm": "terra_jax.terrafm.family",
    "terramind": "terra_jax.terramind.family",
    "skysense": "terra_jax.skysense.family",
    "skysensepp": "terra_jax.skysense.family",
}
"""First word of a model's name -> module that implements `Family`."""

_ROOMS = tuple(dict.fromkeys(_FAMILIES.values()))


class Family(Protocol):
    """What a family's room offers under `family`.

    The module that an objective trains has an attribute for every part of the model's spec, by the part's name or at
    its path. Models of `COMPOSITES` (name -> part -> registered model) can be put together from others: the family then
    says by `given_parts` which sources are parts, and by `compose` what they make.
    """

    MODELS: tuple[str, ...]
    LICENCE: str
    COMPOSITES: Mapping[str, Mapping[str, str]]

    def maker(self, name: str, **overrides: Any) -> Any:
        """Constructor of a model: rngs -> module."""

    def spec(self, name: str, **overrides: Any) -> Any:
        """What conversion must know of a model, a `weights.convert.ModelSpec`."""

    def assemble(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the model from those of its parts."""

    def experiment(self, config: Any) -> Any:
        """A run's `training.experiment.Experiment`."""

    def objective(self, config: Any) -> Any:
        """The `training.objective.Objective` of that run, without opening its data."""

    def evaluate(self, config: Any, params: Mapping[str, Any], split: str) -> dict[str, Any]:
        """Evaluation of a model's parameters on a config's data: JSON values."""

    def scores_table(self, result: Mapping[str, Any]) -> str:
        """What `evaluate` found, as lines of text."""


def family(name: str) -> Family:
    """The family of a model.

    Raises:
        ConfigError: if no model has that name; the message gives the nearest ones.
    """
    module = _FAMILIES.get(name.split("_")[0])
    found = importlib.import_module(module) if module else None
    if found is None or name not in found.MODELS:
        known = [model for target in _ROOMS for model in importlib.import_module(target).MODELS]
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ConfigError(f"unknown model {name!r}; did you mean {', '.join(near)}?")
    return found  # type: ignore[return-value]


def list_models() -> dict[str, int]:
    """Name -> number of parameters of each model, as the public weights hold them."""
    from terra_jax.weights.rules import size_of, table

    counts: dict[str, int] = {}
    for target in _ROOMS:
        module = importlib.import_module(target)
        for name in module.MODELS:
            if len(members := module.COMPOSITES.get(name, {})) > 1:
                counts[name] = sum(counts[member] for member in members.values())
                continue
            parts = module.spec(name).parts.values()
            counts[name] = sum(size_of(table(part.weights, part.template())) for part in parts)
    return counts


def build(name: str, *, seed: int = 0, **overrides: Any):
    """A model with random weights.

    Args:
        name: see `list_models`.
        seed: of the initial values.
        overrides: sizes or options of the family's model, by name.

    Raises:
        ConfigError: unknown model or option.
    """
    from terra_jax.nn.initialisation import initialise

    return initialise(family(name).maker(name, **overrides), seed)


def load(name: str, weights: str | Path | Mapping[str, str | Path], *, copy: str | None = None, **overrides: Any):
    """A model with given weights.

    Args:
        name: see `list_models`.
        weights: a .pt, .pth or .safetensors file, a params folder, a working folder of `terra-jax train` or one of its
            steps; {part: path} for models of several files.
        copy: "teacher", "student" or "ema" where a training folder holds several; default the family's.
        overrides: sizes or options of the family's model, by name; those that the weights record need not be given.

    Raises:
        ConfigError, WeightsError, CheckpointError: naming what does not fit.
    """
    return load_sources(name, _sources(weights), copy=copy, **overrides)


def load_sources(name: str, sources: list[str], *, copy: str | None = None, **overrides: Any):
    """`load` of PATH or PART=PATH sources."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from terra_jax.nn.initialisation import abstract

    if parts := _given_parts(name, sources):
        return _composed(name, parts, copy, **overrides)
    params, reports = load_params(name, sources, copy=copy, **overrides)
    recorded: dict[str, Any] = {}
    for report in reports:
        print(report)
        recorded |= report.options
    graphdef, _ = abstract(family(name).maker(name, **{**recorded, **overrides}))
    return nnx.merge(graphdef, nnx.State(jax.tree.map(jnp.asarray, params)))


def _given_parts(name: str, sources: list[str]) -> dict[str, Path] | None:
    """Part -> path, where the sources are parts of a composite."""
    chosen: Any = family(name)
    return chosen.given_parts(name, sources) if name in chosen.COMPOSITES else None


def _composed(name: str, parts: Mapping[str, Path], copy: str | None, **overrides: Any):
    chosen: Any = family(name)

    def member(registered: str, path: Path, **options: Any):
        return load(registered, path, copy=copy, **options)

    return chosen.compose(name, parts, member, **overrides)


def conversions(name: str, sources: list[str], target: str) -> list[tuple[str, list[str], str]]:
    """What converting a model takes: registered name, sources and target of each model that is converted.

    One for a model of its own. Parts of a composite are converted each by itself, to TARGET/PART, or to
    STEM.PART.SUFFIX.

    Raises:
        WeightsError: an unknown part, or one that holds no weights.
    """
    from terra_jax.weights.convert import targets
    from terra_jax.weights.files import is_weight_file

    members = family(name).COMPOSITES.get(name, {})
    parts = _given_parts(name, sources) if len(members) > 1 else None
    if parts is None:
        return [(name, sources, target)]
    if other := [part for part in parts if part not in members]:
        raise WeightsError(f"{other[0]}={parts[other[0]]} holds no weights; leave it out")
    files = targets(Path(target), tuple(members))
    file = is_weight_file(Path(target))
    places = {part: files[part] if file else Path(target) / part for part in parts}
    return [(members[part], [str(path)], str(places[part])) for part, path in parts.items()]


def load_params(name: str, sources: list[str], *, copy: str | None = None, **overrides: Any):
    """A model's parameters from PATH or PART=PATH sources, as a nested dict, and an account of each part."""
    parts, reports = _load_parts(name, sources, copy, **overrides)
    return family(name).assemble(parts), reports


def _load_parts(name: str, sources: list[str], copy: str | None = None, **overrides: Any):
    """Part -> parameters, and an account of each part."""
    from terra_jax.weights.convert import load_parts, parse_sources

    spec = spec_of(name, sources, **overrides)
    paths = parse_sources(sources, tuple(spec.parts))
    return load_parts(spec, paths, copy, training_folder_reader(name))


def spec_of(name: str, sources: list[str], **overrides: Any):
    """What conversion must know of a model as the folders among its sources hold it: built with what they record.

    Args:
        name: see `list_models`.
        sources: PATH or PART=PATH of params folders, training folders and files; files record nothing.
        overrides: sizes or options of the family's model, by name, which go before those that are recorded.
    """
    from terra_jax.training import checkpoints
    from terra_jax.weights.convert import parse_sources
    from terra_jax.weights.params_folder import is_params_folder, read_card

    chosen = family(name)
    recorded: dict[str, Any] = {}
    for path in set(parse_sources(sources, tuple(chosen.spec(name).parts)).values()):
        if is_params_folder(path):
            recorded |= read_card(path).options
        elif path.is_dir():
            with warnings.catch_warnings():  # of damaged checkpoints: said when the parameters are read
                warnings.simplefilter("ignore")
                meta = checkpoints.load_meta(path)
            recorded |= meta.get("options", {}) if meta.get("model") == name else {}
    return chosen.spec(name, **{**recorded, **overrides})


def export_torch(model, path: str | Path) -> None:
    """Write a model's weights so that the public PyTorch class loads them with strict=True.

    Args:
        model: as `build` or `load` made it; it knows its own weight map, or one for each of its parts.
        path: a .pt, .pth or .safetensors file, STEM.PART.SUFFIX for the parts of a model that has several; one that is
            there is replaced.
    """
    from flax import nnx

    from terra_jax.weights.convert import targets
    from terra_jax.weights.files import save_state
    from terra_jax.weights.transfer import export_state

    params, maps = nnx.to_pure_dict(nnx.state(model, nnx.Param)), model.weight_map
    if not isinstance(maps, Mapping):
        maps, params = {"": maps}, {"": params}
    files = targets(Path(path), tuple(maps))
    for part, weights in maps.items():
        state, report = export_state(weights, params[part])
        save_state(files[part], state)
        print(report)


def state_dict_shapes(name: str, **overrides: Any) -> dict[str, tuple[int, ...]]:
    """PyTorch key -> shape, without building an array; of a model of several files, the keys are led by "PART.".

    Args:
        name: see `list_models`.
        overrides: sizes or options of the family's model, by name.
    """
    from terra_jax.weights.rules import torch_shapes

    parts = family(name).spec(name, **overrides).parts
    return {
        f"{part}.{key}" if len(parts) > 1 else key: shape
        for part, held in parts.items()
        for key, shape in torch_shapes(held.weights, held.template()).items()
    }


def experiment(config):
    """A run from its config: the family's experiment, started from `config.init` where that names weights."""
    from dataclasses import replace

    chosen = family(config.model)
    made = chosen.experiment(config)
    if not config.init:
        return made

    def initial() -> Any:
        from terra_jax.training.experiment import Initial
        from terra_jax.weights.rules import flatten_params

        parts, reports = _load_parts(config.model, config.init.split(","), **made.options)
        places = _places(config.model)
        placed: dict[str, Any] = {}
        loaded, fresh = [], []
        for (part, params), report in zip(parts.items(), reports, strict=True):
            *above, last = places[part].split("/")
            node = placed
            for key in above:
                node = node.setdefault(key, {})
            node[last] = params
            prefix = places[part].replace("/", ".")
            fresh += [f"{prefix}.{path}" for path in report.fresh]
            loaded += [f"{prefix}.{path}" for path in flatten_params(params) if path not in report.fresh]
        return Initial(placed, loaded, fresh)

    return replace(made, init=initial)


def objective(config):
    """The objective of a run from its config alone: no data are opened.

    Raises:
        ConfigError: unknown model, or options that contradict each other.
    """
    return family(config.model).objective(config)


def training_folder_reader(name: str):
    """The reader of training folders that conversion takes: (path, copy) -> parameters and options.

    Raises (when called):
        WeightsError: if the folder holds another model.
    """

    def read(path: Path, copy: str):
        from terra_jax.training import checkpoints
        from terra_jax.weights.convert import Held

        step = checkpoints.find_step(path)
        meta = checkpoints.load_meta(step)
        if (held := meta.get("model")) != name:
            raise WeightsError(f"{path} holds {held}, not {name}; name the model that it holds")
        parts = {part: checkpoints.load_params(step, copy, place) for part, place in _places(name).items()}
        return Held(parts, meta.get("options", {}))

    return read


def _places(name: str) -> dict[str, str]:
    """Part -> where the module that an objective trains holds it, attributes with slashes."""
    return {part: held.path or part for part, held in family(name).spec(name).parts.items()}


def _sources(weights: str | Path | Mapping[str, str | Path]) -> list[str]:
    if isinstance(weights, Mapping):
        return [f"{part}={path}" for part, path in weights.items()]
    return [str(weights)]
