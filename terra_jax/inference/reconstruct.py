"""A raster to tokens and back: what a tokenizer keeps of an image, where it lies on Earth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from terra_jax.errors import ConfigError
from terra_jax.inference.rasters import SUFFIXES, Georeference, read_image, read_place, write_image
from terra_jax.weights.atomic import file_aside

TOKENS = ".npz"
LARGEST = 1024
"""Pixels per side that are decoded at once: attention and memory grow with the square of the area."""


class Variant(Protocol):
    """What must be known of a tokenizer's sizes."""

    modality: str
    patch: int
    multiple: int
    codebook: int


class Tokenizer(Protocol):
    """What turns images into tokens and back, such as `terramind.tokenizer.Tokenizer`."""

    variant: Any
    clip: str

    def tokenize(self, x: Any) -> Any:
        """(b, y, x, c) in physical units -> (b, h, w)."""

    def decode_tokens(self, ids: Any, steps: int, *, key: Any, clip: str | None) -> Any:
        """(b, h, w) -> (b, y, x, c) in physical units, or (b, y, x) class ids."""


@dataclass(frozen=True)
class TokenMap:
    """Tokens of one raster.

    Attributes:
        ids: (h, w).
        model, fingerprint: of the tokenizer that made them.
        crs: coordinate system of the raster as well-known text, "" if it has none.
        transform: its affine (a, b, c, d, e, f).
    """

    ids: np.ndarray
    model: str
    fingerprint: str
    crs: str
    transform: tuple[float, ...]


def reconstruct(
    tokenizer: Tokenizer,
    source: str | Path,
    target: str | Path,
    *,
    model: str,
    fingerprint: str,
    steps: int = 10,
    seed: int = 0,
    clip: str | None = None,
    overwrite: bool = False,
) -> None:
    """Tokenise a GeoTIFF, or read tokens, and write the tokens or the raster that they stand for.

    Args:
        tokenizer: of the raster's modality.
        source: a .tif with all bands of the modality, in order and in its unit; or a .npz that this function wrote.
        target: a .tif: the reconstruction, in the source's coordinate system; or a .npz: the tokens.
        model, fingerprint: of the tokenizer; written down, and compared with those of a source of tokens.
        steps: of the diffusion.
        seed: of its noise.
        clip: bound of the predicted image; None: the tokenizer's own.
        overwrite: whether to replace what lies at the target.

    Raises:
        ConfigError, DataError: a source that is unreadable, of other bands, unit or tokenizer, or too large; a target
            that exists.
    """
    source, target = Path(source), Path(target)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed} is out of range; use 0..{2**32 - 1}")
    _check_paths(source, target, overwrite)
    if _is_tokens(source):
        tokens = read_tokens(source)
        _check_tokens(source, tokens, tokenizer.variant, fingerprint)
    else:
        tokens = tokenise_raster(tokenizer, source, model, fingerprint)
    if _is_tokens(target):
        write_tokens(target, tokens)
        return
    decoded = tokenizer.decode_tokens(tokens.ids[None], steps, key=jax.random.key(seed), clip=clip)
    tags = {"model": model, "fingerprint": fingerprint, "steps": steps, "seed": seed, "clip": clip or tokenizer.clip}
    place = Georeference(tokens.crs, tokens.transform)
    write_image(target, np.asarray(decoded)[0], tokenizer.variant.modality, place, tags)


def tokenise_raster(tokenizer: Tokenizer, path: Path, model: str, fingerprint: str) -> TokenMap:
    """Tokens of a GeoTIFF; arguments and errors as of `reconstruct`."""
    variant = tokenizer.variant
    place, sides = read_place(path)
    _check_sides(path, sides, variant)
    ids = tokenizer.tokenize(read_image(path, variant.modality)[None])
    return TokenMap(np.asarray(ids)[0], model, fingerprint, place.crs, place.transform)


def write_tokens(path: Path, tokens: TokenMap) -> None:
    """Write a .npz."""
    with file_aside(path) as aside, aside.open("wb") as stream:
        np.savez_compressed(stream, **vars(tokens))


def read_tokens(path: Path) -> TokenMap:
    """Read a .npz.

    Raises:
        ConfigError: if it is unreadable or none that `write_tokens` wrote.
    """
    try:
        with np.load(path, allow_pickle=False) as held:
            ids, transform = held["ids"], tuple(held["transform"].tolist())
            model, fingerprint, crs = (str(held[name]) for name in ("model", "fingerprint", "crs"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error}); give a .npz of terra-jax") from error
    except Exception as error:  # NumPy and zipfile raise errors of many kinds for foreign and damaged files
        raise ConfigError(f"{path} holds no tokens or is damaged; give a .npz of `terra-jax reconstruct`") from error
    return TokenMap(ids, model, fingerprint, crs, transform)


def _is_tokens(path: Path) -> bool:
    return path.suffix.lower() == TOKENS


def _check_paths(source: Path, target: Path, overwrite: bool) -> None:
    for path in (source, target):
        if path.suffix.lower() not in (*SUFFIXES, TOKENS):
            raise ConfigError(f"{path} is neither a raster nor tokens; name a {SUFFIXES[0]} or {TOKENS} file")
    if _is_tokens(source) and _is_tokens(target):
        raise ConfigError(f"{source} and {target} are both tokens; one of them must be a {SUFFIXES[0]}")
    if not source.is_file():
        raise ConfigError(f"{source} does not exist; give a {SUFFIXES[0]} or {TOKENS} file")
    if target.exists() and (target.samefile(source) or not target.is_file()):
        raise ConfigError(f"{target} is {'the input' if target.is_file() else 'a folder'}; choose another output")
    if target.exists() and not overwrite:
        raise ConfigError(f"{target} exists; choose another output or pass --overwrite")


def _check_sides(path: Path, sides: tuple[int, int], variant: Variant) -> None:
    height, width = sides
    if height % variant.multiple or width % variant.multiple:
        raise ConfigError(
            f"{path} is {width} x {height} pixels; the {variant.modality} tokenizer takes sides divisible by "
            f"{variant.multiple}: cut or pad it"
        )
    if max(sides) > LARGEST:
        raise ConfigError(f"{path} is {width} x {height} pixels; cut it into tiles of at most {LARGEST} a side")


def _check_tokens(path: Path, tokens: TokenMap, variant: Variant, fingerprint: str) -> None:
    if tokens.fingerprint != fingerprint:
        raise ConfigError(
            f"{path} has tokens of {tokens.model} {tokens.fingerprint}, the weights given are {fingerprint}; "
            "tokens of different tokenizers do not mix: give the weights that made them"
        )
    if tokens.ids.ndim != 2 or tokens.ids.dtype.kind not in "iu" or not tokens.ids.size:
        raise ConfigError(
            f"{path} has ids of shape {tokens.ids.shape} and type {tokens.ids.dtype}; expected (h, w) integers"
        )
    height, width = (side * variant.patch for side in tokens.ids.shape)
    _check_sides(path, (height, width), variant)
    low, high = int(tokens.ids.min()), int(tokens.ids.max())
    if low < 0 or high >= variant.codebook:
        largest = variant.codebook - 1
        raise ConfigError(
            f"{path} has tokens {low}..{high}, those of {variant.modality} are 0..{largest}; make it again"
        )
