"""Params folders: a model's parameters as JAX has them, without optimiser or teacher.

    FOLDER/terra_jax.json    format version, model and options, and for every part its arrays' shapes, types and CRCs
    FOLDER/params/           an Orbax checkpoint of {part: nested dict of arrays}

Orbax notices truncation, not a flipped bit; the CRCs do. The whole folder appears at once or not at all.
"""

import json
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from terra_jax.errors import CheckpointError
from terra_jax.weights.atomic import folder_aside
from terra_jax.weights.rules import Params, flatten_params, misfit
from terra_jax.weights.state import as_bytes

CARD = "terra_jax.json"
FORMAT = 1


@dataclass(frozen=True)
class Card:
    """What a params folder says of itself.

    Attributes:
        model: The model's name.
        parts: For each part, dotted path -> {"shape", "dtype", "crc32"}.
        licence: The licence of the weights that the parameters came from.
        options: Options of the model that go with its parameters; JSON values.
    """

    model: str
    parts: Mapping[str, Mapping[str, Mapping[str, Any]]]
    licence: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


def is_params_folder(path: Path) -> bool:
    """Whether `path` is a params folder, sound or not."""
    return (path / CARD).is_file()


def save_params(
    path: Path,
    model: str,
    parts: Mapping[str, Params],
    licence: str = "",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Writes parameters as a params folder, in place of one that may be there.

    Args:
        path: The folder.
        model: The model's name.
        parts: Part -> nested dict of arrays.
        licence: The licence of the weights.
        options: Options of the model that go with its parameters; JSON values.

    Raises:
        WeightsError: The folder cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    trees = {part: _on_host(tree) for part, tree in parts.items()}
    described = {
        part: {name: _description(leaf) for name, leaf in flatten_params(tree).items()} for part, tree in trees.items()
    }
    card = {"format": FORMAT, "model": model, "licence": licence, "options": dict(options or {}), "parts": described}
    context = ocp.Context()
    context.array.saving.use_compression = False  # weights do not compress, and it doubles the memory
    context.memory.deepcopy_host_arrays = False  # nobody changes them meanwhile
    with folder_aside(path) as aside:
        with context:
            ocp.save(aside.absolute() / "params", trees)
        (aside / CARD).write_text(json.dumps(card, indent=1) + "\n")


def read_card(path: Path) -> Card:
    """Reads what a params folder says of itself.

    Raises:
        CheckpointError: It is no params folder, damaged, or of a newer format.
    """
    try:
        card = json.loads((path / CARD).read_text())
        if card["format"] != FORMAT:
            raise CheckpointError(f"{path}: is a params folder of format {card['format']}; update terra_jax to read it")
        parts = {part: dict(arrays) for part, arrays in card["parts"].items()}
        return Card(str(card["model"]), parts, card["licence"], dict(card["options"]))
    except OSError as error:
        raise CheckpointError(f"{path}: has no {CARD}; give a params folder that `terra-jax convert` wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / CARD}: is damaged; convert the weights again") from error


def load_params(path: Path, model: str, templates: Mapping[str, Params]) -> dict[str, dict[str, Any]]:
    """Reads parameters from a params folder.

    Args:
        path: The folder.
        model: The model that is wanted.
        templates: The parts wanted, each with a nested dict of arrays or ShapeDtypeStructs that gives names and shapes.

    Returns:
        Part -> nested dict of NumPy arrays.

    Raises:
        CheckpointError: It holds another model, lacks a part, does not fit, or is damaged.
    """
    card = read_card(path)
    if card.model != model:
        raise CheckpointError(f"{path}: holds {card.model}, not {model}; name the model that it holds")
    for part, template in templates.items():
        _check_fit(path, part, card, template)
    tree = _restore(path, templates)
    for part in templates:
        _check_values(path, tree.get(part, {}), card.parts[part])
    return {part: tree[part] for part in templates}


def _on_host(tree: Params) -> dict[str, Any]:
    return {name: _on_host(node) if isinstance(node, Mapping) else np.asarray(node) for name, node in tree.items()}


def _description(leaf: np.ndarray) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "crc32": zlib.crc32(as_bytes(leaf))}


def _check_fit(path: Path, part: str, card: Card, template: Params) -> None:
    if part not in card.parts:
        raise CheckpointError(f"{path}: lacks the part {part!r}; it holds {', '.join(card.parts)}")
    if reason := misfit({name: tuple(entry["shape"]) for name, entry in card.parts[part].items()}, template):
        raise CheckpointError(f"{path}: {reason}; use the options that it was made with")


def _restore(path: Path, parts: Iterable[str]) -> dict[str, Any]:
    """Parts of the checkpoint as NumPy arrays, with Orbax's misleading errors turned into one that can be acted on."""
    from orbax.checkpoint import v1 as ocp

    folder = path.absolute() / "params"
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a failed load logs dozens of tracebacks of its own clean-up
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        held = ocp.metadata(folder).metadata
        with context:
            return {part: _restored(ocp.load, folder, held[part], (part,)) for part in parts}
    except Exception as error:  # Orbax raises errors of every kind, the true one as the cause
        reason = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: is truncated or damaged ({reason[:200]}); convert the weights again") from error
    finally:
        logger.setLevel(level)


def _restored(load: Callable[..., Any], folder: Path, held: Any, keys: tuple[str, ...]) -> Any:
    """One subtree, array by array: loaded at once, the arrays' raw chunks would be held beside all of them."""
    if isinstance(held, Mapping):
        return {name: _restored(load, folder, node, (*keys, name)) for name, node in held.items()}
    abstract = reduce(lambda tree, key: {key: tree}, reversed(keys), held)
    return reduce(lambda tree, key: tree[key], keys, load(folder, abstract))


def _check_values(path: Path, tree: Params, described: Mapping[str, Mapping[str, Any]]) -> None:
    """Asserts that the arrays are those that were saved."""
    leaves = flatten_params(tree)
    for name, entry in described.items():
        if name not in leaves or _description(leaves[name]) != dict(entry):
            raise CheckpointError(f"{path}: the array {name} is damaged; convert the weights again")
