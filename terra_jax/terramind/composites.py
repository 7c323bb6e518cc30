"""Models that are put together from registered ones: generation, Thinking in Modalities, backbones.

A generator's parts are files of their own, of the encoder-decoder and of each tokenizer. A backbone, and one that
thinks, begin as copies of an encoder-decoder and become models of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from terra_jax.errors import WeightsError
from terra_jax.nn.initialisation import with_options
from terra_jax.terramind.backbone import Backbone
from terra_jax.terramind.composite_weights import SAMPLER
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.generator import COORDINATES, Generator
from terra_jax.terramind.tim import TiM
from terra_jax.terramind.variants import MODELS, TOKENIZERS
from terra_jax.weights.files import is_weight_file, open_state
from terra_jax.weights.params_folder import is_params_folder, read_card

MODEL = "model"
"""Part that is the encoder-decoder."""

GENERATORS = {f"terramind_v1_{size}_generate": size for size in MODELS}
THINKERS = {f"terramind_v1_{size}_tim": size for size in MODELS}
BACKBONES = {f"terramind_v1_{size}": size for size in MODELS}
TOKENIZED = tuple(held.modality for name, held in TOKENIZERS.items() if not name.endswith("_nano"))
"""Modalities that have tokenizers."""

Maker = Callable[..., Callable[[nnx.Rngs], nnx.Module]]


def members(name: str) -> dict[str, str]:
    """Part -> registered model, of a composite's name."""
    size = {**GENERATORS, **THINKERS, **BACKBONES}[name]
    model = {MODEL: f"terramind_v1_{size}_encdec"}
    if name not in GENERATORS:
        return model
    suffix = "_nano" if size == "nano" else ""
    return {**model, **{held: f"terramind_v1_tokenizer_{held.lower()}{suffix}" for held in TOKENIZED}}


COMPOSITES = {name: members(name) for name in (*GENERATORS, *THINKERS, *BACKBONES)}
"""Registered name -> the registered models that it is put together from, by part."""


def generator_maker(
    name: str, member: Maker, tokenizers: Sequence[str] = TOKENIZED, **overrides: Any
) -> Callable[[nnx.Rngs], Generator]:
    """Make the constructor of a generator.

    Args:
        name: key of GENERATORS.
        member: makes constructors of its members.
        tokenizers: modalities whose tokenizers it has.
        overrides: of the encoder-decoder.
    """
    parts = COMPOSITES[name]
    model = member(parts[MODEL], **overrides)
    makers = {held: member(parts[held]) for held in tokenizers}
    return lambda rngs: Generator(model(rngs), {held: make(rngs) for held, make in makers.items()})  # type: ignore[misc, arg-type]


def given_parts(name: str, sources: Sequence[str]) -> dict[str, Path] | None:
    """Which part each source holds.

    Args:
        name: of a composite.
        sources: PART=PATH; or one PATH: a folder of parts, one model's file or folder (of the encoder-decoder), or one
            that holds the whole.

    Returns:
        Part -> path, "coords" that of a vocabulary; None where the one source holds the whole, or a backbone is read
        from anything but a folder of its encoder-decoder.

    Raises:
        WeightsError: an unknown part, one given twice, or no encoder-decoder.
    """
    if name in BACKBONES:
        return _encoder_decoder(name, sources)
    known = (*COMPOSITES[name], COORDINATES) if name in GENERATORS else tuple(COMPOSITES[name])
    given: dict[str, Path] = {}
    for text in sources:
        part, equals, rest = text.partition("=")
        if not (equals and part.isidentifier() and not Path(text).exists()):
            part, rest = MODEL, text
            if len(sources) == 1 and (held := _folder_parts(Path(text), known)):
                return held
            if len(sources) == 1 and _is_whole(name, Path(text)):
                return None
        if part not in known:
            raise WeightsError(f"{text}: the model has no part {part!r}; its parts are {', '.join(known)}")
        if part in given:
            raise WeightsError(f"{text}: the part {part!r} is given twice; give it once")
        given[part] = Path(rest)
    if MODEL not in given:
        raise WeightsError(f"no file is given for the encoder-decoder; add {MODEL}=PATH")
    return given


def compose(name: str, parts: Mapping[str, Path], load: Callable[..., Any], **overrides: Any) -> Generator | Backbone:
    """Put a composite together.

    Args:
        name: of it.
        parts: of `given_parts`.
        load: (registered name, path, **overrides) -> model.
        overrides: of a generator's encoder-decoder; else sizes, and keyword arguments of the class.

    Raises:
        ConfigError, WeightsError, CheckpointError: parts that do not load, or do not go together.
    """
    made = {part: path for part, path in parts.items() if part != COORDINATES}
    registered = COMPOSITES[name]
    if name not in GENERATORS:
        size, kind = (THINKERS[name], TiM) if name in THINKERS else (BACKBONES[name], Backbone)
        _, options = with_options(name, MODELS[size], kind, overrides)
        sizes = {key: value for key, value in overrides.items() if key not in options}
        return kind.of(load(registered[MODEL], made[MODEL], **sizes), **options)
    model = load(registered[MODEL], made.pop(MODEL), **overrides)
    tokenizers = {part: load(registered[part], path) for part, path in made.items()}
    return Generator(model, tokenizers, _vocabulary(model, parts.get(COORDINATES)))


def _vocabulary(model: Any, path: Path | None) -> CoordinateTokenizer | None:
    """The vocabulary of a file, or the built one where the model was trained with it."""
    if path is not None:
        return CoordinateTokenizer.from_json(path)
    built = CoordinateTokenizer.build()
    return built if dict(model.fingerprints).get(COORDINATES) == built.fingerprint else None


def _folder_parts(path: Path, known: Sequence[str]) -> dict[str, Path]:
    """Parts that a folder holds as folders of their own, and its vocabulary."""
    if not (path / MODEL).is_dir() or not is_params_folder(path / MODEL):
        return {}
    vocabulary = path / f"{COORDINATES}.json"
    held = {part: path / part for part in known if (path / part).is_dir()}
    return {**held, COORDINATES: vocabulary} if COORDINATES in known and vocabulary.is_file() else held


def _encoder_decoder(name: str, sources: Sequence[str]) -> dict[str, Path] | None:
    """The folder of a backbone's encoder-decoder, where the one source is one."""
    path = Path(sources[0].removeprefix(f"{MODEL}=")) if len(sources) == 1 else None
    if path is None or not path.is_dir():
        return None
    return {MODEL: path} if _model_of(path) == COMPOSITES[name][MODEL] else None


def _model_of(folder: Path) -> str:
    """The registered model that a params folder or a training folder holds."""
    if is_params_folder(folder):
        return read_card(folder).model
    from terra_jax.training.checkpoints import load_meta  # Orbax takes a second to import

    return load_meta(folder)["model"]


def _is_whole(name: str, path: Path) -> bool:
    if is_weight_file(path):
        return any(SAMPLER in key for key in open_state(path))
    return is_params_folder(path) and read_card(path).model == name
