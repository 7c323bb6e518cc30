"""Carrying a model's weights between PyTorch files, params folders and training folders; knows no family.

    PyTorch file(s)            -> params folder        import
    params or training folder  -> PyTorch file(s)      export
    PyTorch file(s)            -> PyTorch file(s)      re-export: checked, unwrapped, in the public order
    training folder            -> params folder        extraction

A model has one or more parts, each a public file of its own. Every route accounts for every tensor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from terra_jax.errors import CheckpointError, WeightsError
from terra_jax.weights.files import SUPPORTED, is_weight_file, open_state, save_state
from terra_jax.weights.params_folder import is_params_folder, load_params, read_card, save_params
from terra_jax.weights.rules import Params, WeightMap, flatten_params, misfit
from terra_jax.weights.state import LazyTensor
from terra_jax.weights.transfer import Report, conform_state, export_state, import_params

CHOICES = ("teacher", "student", "ema")


class Held(NamedTuple):
    """What a folder holds: part -> parameters, and the options of the model that go with them."""

    parts: Mapping[str, Params]
    options: Mapping[str, Any]


Loader = Callable[[Path, str], Held]


@dataclass(frozen=True)
class Part:
    """One public file's worth of a model.

    Attributes:
        weights: How its parameters and the file correspond.
        template: Gives the parameters as a nested dict of ShapeDtypeStructs, without building them.
        fresh: Gives initialised parameters, for those that a file lacks; traced by `jax.jit`.
        path: Where the module that an objective trains holds it, attributes with slashes; default the part's name.
    """

    weights: WeightMap
    template: Callable[[], Params]
    fresh: Callable[[], Params] | None = None
    path: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """What conversion must know of a model.

    Attributes:
        name: The registered name.
        parts: Part name -> part, in order; a model of one file has one part.
        licence: The licence of the public weights, printed with every conversion.
        default_weights: Which of "teacher", "student" and "ema" is meant when a source holds several and none is named.
        public_options: Options of the model that its PyTorch files imply, since they cannot say; a params folder and a
            training folder hold their own.
    """

    name: str
    parts: Mapping[str, Part]
    licence: str
    default_weights: str = "teacher"
    public_options: Mapping[str, Any] = field(default_factory=dict)


def parse_sources(texts: Sequence[str], parts: Sequence[str]) -> dict[str, Path]:
    """Reads "PATH" or "PART=PATH" arguments.

    Args:
        texts: The arguments. A PATH alone gives all parts: a folder, or the file of a model of one part.
        parts: The names of the model's parts.

    Returns:
        Part -> path, in the model's order.

    Raises:
        WeightsError: A part is unknown, given twice or missing.
    """
    given: dict[str, Path] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        named = bool(equals) and name.isidentifier() and not Path(text).exists()
        if named and name not in parts:
            raise WeightsError(f"{text}: the model has no part {name!r}; its parts are {', '.join(parts)}")
        if not named and is_weight_file(Path(text)) and len(parts) > 1:
            raise WeightsError(
                f"{text}: several parts make the model; say which with PART=PATH, one of {', '.join(parts)}"
            )
        for part in [name] if named else parts:
            if part in given:
                raise WeightsError(f"{text}: the part {part!r} is given twice; give it once")
            given[part] = Path(rest) if named else Path(text)
    if missing := [part for part in parts if part not in given]:
        raise WeightsError(f"no file is given for {', '.join(missing)}; add {missing[0]}=PATH")
    return {part: given[part] for part in parts}


def load_parts(
    spec: ModelSpec, sources: Mapping[str, Path], weights: str | None = None, load_workdir: Loader | None = None
) -> tuple[dict[str, Params], list[Report]]:
    """Loads a model's parameters from whatever holds them.

    Args:
        spec: The model.
        sources: Part -> weight file, params folder, or training folder (a working folder or one of its steps).
        weights: "teacher", "student" or "ema", where the source holds several; None for the model's default.
        load_workdir: Reads a training folder: (path, weights) -> what it holds.

    Returns:
        Part -> nested dict of arrays, and an account for every part.

    Raises:
        WeightsError, CheckpointError: A source is unreadable, unsafe, damaged or does not fit.
    """
    weights, load_workdir = _chosen(spec, weights), load_workdir and lru_cache(maxsize=1)(load_workdir)
    loaded, reports = {}, []
    for part, path in sources.items():
        loaded[part], report = _load_part(spec, part, path, weights, load_workdir)
        reports.append(report)
    return loaded, reports


def convert(
    spec: ModelSpec,
    sources: Sequence[str],
    target: str | Path,
    *,
    weights: str | None = None,
    overwrite: bool = False,
    load_workdir: Loader | None = None,
    log: Callable[[str], Any] = print,
) -> None:
    """Converts weights; the direction follows from the ends.

    Args:
        spec: The model.
        sources: "PATH" or "PART=PATH", each a weight file, a params folder or a training folder.
        target: A weight file, to write PyTorch (STEM.PART.SUFFIX if the model has several parts); else a params folder.
        weights: "teacher", "student" or "ema", where a source holds several; None for the model's default.
        overwrite: Whether to replace what lies at the target.
        load_workdir: Reads a training folder: (path, weights) -> what it holds.
        log: Takes each line for the user.

    Raises:
        WeightsError, CheckpointError: A source is unfit, or the target exists and `overwrite` is not set.
    """
    target = Path(target)
    paths = parse_sources(sources, tuple(spec.parts))
    files = targets(target, tuple(spec.parts))
    for path in files.values():
        _check_target(path, overwrite)
    if is_weight_file(target):
        cached = load_workdir and lru_cache(maxsize=1)(load_workdir)
        for part, path in paths.items():
            state, report = _exported(spec, part, path, _chosen(spec, weights), cached)
            save_state(files[part], state)
            log(f"{report}\n  -> {files[part]}")
    else:
        loaded, reports = load_parts(spec, paths, weights, load_workdir)
        options = {name: value for report in reports for name, value in report.options.items()}
        save_params(target, spec.name, loaded, spec.licence, options)
        log("\n".join([*map(str, reports), f"  -> {target} (params folder of {spec.name})"]))
    log(f"licence of the public weights: {spec.licence}")


def _exported(
    spec: ModelSpec, part: str, path: Path, weights: str, load_workdir: Loader | None
) -> tuple[dict[str, LazyTensor], Report]:
    """The state dict of one part, lazily, and its account."""
    if is_weight_file(path):
        entry = spec.parts[part]
        return conform_state(_preferring(entry.weights, weights), open_state(path), entry.template())
    params, _ = _load_part(spec, part, path, weights, load_workdir)
    return export_state(spec.parts[part].weights, params, str(path))


def _load_part(
    spec: ModelSpec, part: str, path: Path, weights: str, load_workdir: Loader | None
) -> tuple[Params, Report]:
    entry = spec.parts[part]
    template = entry.template()
    if is_weight_file(path):
        params, report = import_params(_preferring(entry.weights, weights), open_state(path), template, entry.fresh)
        return params, replace(report, options=spec.public_options)
    if not path.is_dir():
        what = "is no folder and its suffix names no weight format" if path.exists() else "does not exist"
        raise WeightsError(f"{path}: {what}; give a {SUPPORTED} file, a params folder or a training folder")
    if is_params_folder(path):
        held = Held(load_params(path, spec.name, {part: template}), read_card(path).options)
    elif load_workdir is not None:
        held = load_workdir(path, weights)
    else:
        raise WeightsError(
            f"{path}: is no params folder that `terra-jax convert` wrote; give one, or a {SUPPORTED} file"
        )
    params = dict(held.parts[part])
    leaves = flatten_params(params)
    if reason := misfit({name: tuple(leaf.shape) for name, leaf in leaves.items()}, template):
        raise CheckpointError(f"{path}: {reason}; use the options that it was made with")
    size = sum(leaf.size for leaf in leaves.values())
    return params, Report(str(path), len(leaves), size, options=held.options)


def _chosen(spec: ModelSpec, weights: str | None) -> str:
    if weights not in (None, *CHOICES):
        raise WeightsError(f"weights={weights!r}: is unknown; use one of {', '.join(CHOICES)}")
    return weights or spec.default_weights


def _preferring(weight_map: WeightMap, weights: str) -> WeightMap:
    """The map with `weights` as its first wrapper and the other choices struck out."""
    wrappers = (weights, *(wrapper for wrapper in weight_map.wrappers if wrapper not in CHOICES))
    return WeightMap(
        *weight_map.rows,
        training_only=weight_map.training_only,
        wrappers=wrappers,
        aliases=weight_map.aliases,
    )


def targets(target: Path, parts: tuple[str, ...]) -> dict[str, Path]:
    """Where each part is written: one file a part, or one folder for all."""
    if not is_weight_file(target) or len(parts) == 1:
        return dict.fromkeys(parts, target)
    return {part: target.with_name(f"{target.stem}.{part}{target.suffix}") for part in parts}


def _check_target(path: Path, overwrite: bool) -> None:
    """Refuses a target that exists, or that must not be replaced at all."""
    if not path.exists():
        return
    if not (path.is_file() if is_weight_file(path) else is_params_folder(path)):
        raise WeightsError(f"{path}: exists and is no earlier result of this kind; choose another target")
    if not overwrite:
        raise WeightsError(f"{path}: exists; choose another target or pass --overwrite")
