"""Configs of runs: found by name or path, changed by typed overrides, remembered in the working folder."""

import ast
import difflib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from terra_jax.errors import ConfigError

MAY_CHANGE = (
    "steps",
    "accumulation",
    "remat",
    "mesh",
    "checkpoint",
    "evaluation",
    "guard",
    "profile",
    "data.path",
    "data.tokens",
    "data.threads",
    "data.cache",
    "data.index_cache",
    "data.strict",
)
"""What a run may be resumed with another value of; anything else makes it another run."""

RUN_OPTIONS: dict[str, Any] = {
    "checkpoint": {
        "durable": "",  # path or URL of copies that outlive the machine (gs://bucket/run)
    },
    "guard": {
        "on_nan": "stop",  # at a bad step; "skip" goes back to the last checkpoint and leaves the batch out
        "divergence": 0.0,  # a loss beyond so many times the usual is bad too; 0 for never
        "hang_seconds": 1800.0,  # a step that takes longer is reported, after as long again ended; 0 for never
    },
    "profile": (0, 0),  # first step and number of steps of a profiler trace
}
"""What every run has beyond what its config file says, with the values where the file says nothing."""


def load_config(name: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """Load a config and apply overrides.

    Args:
        name: "terrafm/nano" for one that comes with the library, or the path of a .py with `get_config()`.
        overrides: "config.optimizer.learning_rate=1e-3" each ("config." may be left out); a value takes the type of
            the one it replaces; lists are written (a,b,c).

    Raises:
        ConfigError: no such config, an unknown key, or a value of the wrong type.
    """
    path = Path(name) if name.endswith(".py") else _installed(name)
    if not path.is_file():
        raise ConfigError(
            f"config {name!r} does not exist; give a path to a .py or one of: {', '.join(list_configs())}"
        )
    spec = importlib.util.spec_from_file_location(f"_terra_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config {path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ConfigError(f"config {path}, line {error.lineno}: {error.msg}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config {path} has no function get_config()")
    config = with_run_options(module.get_config())
    for override in overrides:
        _apply(config, override)
    return config


def with_run_options(config: ConfigDict) -> ConfigDict:
    """A copy of a config that has all of `RUN_OPTIONS`."""
    filled = ConfigDict(config.to_dict())
    for name, value in RUN_OPTIONS.items():
        if isinstance(value, Mapping):
            filled[name] = {**value, **filled.get(name, {})}
        elif name not in filled:
            filled[name] = value
    return filled


def list_configs() -> list[str]:
    """Names of the configs that come with the library."""
    root = _root()
    names = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py")]
    return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith("_"))


def as_json(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Plain JSON values of a config (tuples become lists)."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.loads(json.dumps(plain))


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Make sure that `workdir` holds nothing yet, or this very run.

    Raises:
        ConfigError: naming the keys that differ from the folder's run beyond `MAY_CHANGE`, or the files in the way.
    """
    rows = workdir / "metrics.csv"
    results = [rows] if rows.exists() and rows.stat().st_size else []
    results += [path for path in (workdir / "checkpoints", workdir / "report.json") if path.exists()]
    if not results:
        return
    path = workdir / "config.json"
    if not path.exists():
        raise ConfigError(
            f"{workdir} has {results[0].name} but no config.json: it is no run's folder; choose another --workdir"
        )
    same_run(json.loads(path.read_text()), config, str(workdir), "--workdir")


def remember(config: ConfigDict, workdir: Path) -> None:
    """Write `WORKDIR/config.json`, by which `check_workdir` knows the run."""
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{workdir} cannot be made ({error.strerror}); choose another --workdir") from error
        write_json(workdir / "config.json", as_json(config))


def write_json(path: Path, value: Any) -> None:
    """Write JSON aside, then rename.

    Raises:
        ConfigError: the place cannot be written.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n")
        os.replace(aside, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def same_run(held: Mapping[str, Any], config: ConfigDict, place: str, option: str) -> None:
    """Make sure that a config that was found somewhere is of the same run.

    Args:
        held: the config that was found.
        config: of this run.
        place: where it was found, for the message.
        option: that would choose another place.

    Raises:
        ConfigError: naming the keys that differ beyond `MAY_CHANGE`.
    """
    was, wanted, nothing = dict(_flat(held)), dict(_flat(as_json(config))), "nothing"
    different = [
        f"{key} is {was.get(key, nothing)!r} there and {wanted.get(key, nothing)!r} here"
        for key in dict.fromkeys([*was, *wanted])
        if was.get(key, nothing) != wanted.get(key, nothing)
        and not any(key == free or key.startswith(free + ".") for free in MAY_CHANGE)
    ]
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise ConfigError(
            f"{place} holds another run: {'; '.join(different[:3])}{more}; choose another {option} or the same values"
        )


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _root() -> Path:
    """Folder of the configs: the installed package, or `configs/` beside the package in a checkout."""
    spec = importlib.util.find_spec("terra_jax.configs")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(__file__).resolve().parents[2] / "configs"


def _installed(name: str) -> Path:
    return _root() / f"{name}.py"


def _apply(config: ConfigDict, override: str) -> None:
    """Set one "a.b=value"."""
    key, equals, text = override.removeprefix("--").removeprefix("config.").partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form --config.KEY=VALUE")
    *sections, last = key.split(".")
    section: Any = config
    for depth, name in enumerate([*sections, last]):
        if not isinstance(section, ConfigDict) or name not in section:
            raise ConfigError(f"unknown config key {key!r}{_nearest(key, config)}")
        if depth < len(sections):
            section = section[name]
    old = section[last]
    if isinstance(old, ConfigDict):
        raise ConfigError(f"config key {key!r} is a section; set one of {', '.join(f'{key}.{k}' for k in old)}")
    with section.ignore_type():
        section[last] = _typed(key, text, old)


def _nearest(key: str, config: ConfigDict) -> str:
    known = [name for name, _ in _flat(config.to_dict())]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    close = close or [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(config)}"


def _typed(key: str, text: str, old: Any) -> Any:
    """Read `text` as a value of the same type as `old`."""
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if isinstance(old, int):
            return int(text.replace("_", ""))
        if isinstance(old, float):
            return float(text)
        if isinstance(old, str):
            return text
        if isinstance(old, tuple | list):
            items = [item.strip().strip("'\"") for item in text.strip("()[] ").split(",") if item.strip()]
            example = old[0] if len(old) else None
            return type(old)(_literal(item) if example is None else _typed(key, item, example) for item in items)
        return _literal(text)
    except (ValueError, KeyError):
        kind = type(old).__name__
        raise ConfigError(f"config key {key!r} wants a value of type {kind} (as {old!r}), not {text!r}") from None


def _literal(text: str) -> Any:
    """Read a number, boolean or None if it is one, else text."""
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
