"""TerraMind's streams: every kind of token that its encoder takes and its decoder gives (paper, section 4).

One modality may have two streams: its pixels, which only the encoder sees, and the discrete tokens that its tokenizer
makes of it, which go in and come out.
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from data_pipelines.modalities import ALIASES, modality
from terra_jax.errors import ConfigError


@dataclass(frozen=True)
class Stream:
    """One kind of token.

    Attributes:
        name: ours: the modality's name for pixels and sequences, led by "tok_" for discrete tokens of an image.
        key: the public one, part of the names of PyTorch weights.
        kind: "pixels", "tokens" (discrete, on the grid of the image's patches) or "sequence".
        modality: that it shows.
        vocabulary: number of different tokens; 0 for pixels.
        bands: of pixels, in the order of the network's input.
        length: longest sequence; positions of the decoder's tokens beyond it are the first one's.
        known: whether the public models have it.
    """

    name: str
    key: str
    kind: str
    modality: str
    vocabulary: int = 0
    bands: tuple[str, ...] = ()
    length: int = 0
    known: bool = True

    @property
    def number(self) -> int:
        """Its number in the public code."""
        return int(hashlib.sha256(self.key.encode()).hexdigest(), 16) % 2**15

    @property
    def is_image(self) -> bool:
        """Whether its tokens lie on the grid of an image's patches."""
        return self.kind != "sequence"


def _pixels(name: str, key: str) -> Stream:
    return Stream(name, f"untok_{key}@224", "pixels", name, bands=modality(name).band_names)


def _tokens(name: str, key: str, vocabulary: int = 15360) -> Stream:
    return Stream(f"tok_{name}", f"tok_{key}@224", "tokens", name, vocabulary)


STREAMS: dict[str, Stream] = {
    stream.name: stream
    for stream in (
        _pixels("S2L2A", "sen2l2a"),
        _pixels("S2L1C", "sen2l1c"),
        _pixels("S2RGB", "sen2rgb"),
        _pixels("S1GRD", "sen1grd"),
        _pixels("S1RTC", "sen1rtc"),
        _pixels("DEM", "dem"),
        _tokens("S2L2A", "sen2l2a"),
        _tokens("S1GRD", "sen1grd"),
        _tokens("S1RTC", "sen1rtc"),
        _tokens("DEM", "dem"),
        _tokens("LULC", "lulc", 4375),
        _tokens("NDVI", "ndvi"),
        Stream("coords", "coords", "sequence", "coords", 30000, length=4),
        Stream("caption", "caption", "sequence", "caption", 30000, length=256),
    )
}
"""Name -> stream. Captions belong to the models of version 0.1 only."""

INPUTS: tuple[str, ...] = tuple(name for name in STREAMS if name != "caption")
"""What the encoder of the released models takes."""

OUTPUTS: tuple[str, ...] = tuple(name for name in INPUTS if STREAMS[name].vocabulary)
"""What their decoder gives."""

PIXELS: tuple[str, ...] = tuple(name for name in INPUTS if STREAMS[name].kind == "pixels")
"""The default inputs of a backbone."""

SEQUENCE_TABLE = 512
"""Rows of the position table of every sequence, however long it may get."""

NewModalities = Mapping[str, int | Sequence[str]]
"""Name of a modality that is not in the table -> number of its channels, or names of its bands."""


def streams_of(names: Sequence[str], allowed: Sequence[str] = tuple(STREAMS)) -> tuple[Stream, ...]:
    """Streams by name.

    Args:
        names: names of streams.
        allowed: those that may be named.

    Raises:
        ConfigError: an unknown stream, or one named twice.
    """
    if repeated := [name for name in names if list(names).count(name) > 1]:
        raise ConfigError(f"{repeated[0]} is named twice; name each stream once")
    for name in names:
        if name not in allowed:
            raise ConfigError(f"TerraMind has no stream {name!r} here; did you mean {nearest(name, allowed)}?")
    return tuple(STREAMS[name] for name in names)


def input_stream(name: str) -> Stream:
    """The stream that carries a modality into the encoder: its pixels, where the table has them, else its tokens.

    Args:
        name: of a modality, an alias of it, a stream, or a public key.

    Raises:
        ConfigError: if there is none.
    """
    return _find(name, ("", "tok_"), tuple(STREAMS))


def output_stream(name: str) -> Stream:
    """The stream in which the decoder gives a modality.

    Args:
        name: of a modality, a stream, or a public key.

    Raises:
        ConfigError: if there is none.
    """
    return _find(name, ("tok_", ""), OUTPUTS)


def _find(name: str, prefixes: Sequence[str], allowed: Sequence[str]) -> Stream:
    name = ALIASES.get(name, name)
    by_key = {STREAMS[stream].key: stream for stream in allowed}
    for candidate in (*(prefix + name for prefix in prefixes), by_key.get(name, "")):
        if candidate in allowed:
            return STREAMS[candidate]
    raise ConfigError(f"TerraMind has no modality {name!r} here; did you mean {nearest(name, allowed)}?")


def new_stream(name: str, bands: int | Sequence[str]) -> Stream:
    """Pixels of a modality that the public models do not know; its weights begin at random.

    Args:
        name: of the modality: letters, digits, "_", "-" and "@".
        bands: number of its channels, or their names in order.

    Raises:
        ConfigError: a name that is taken or unfit, or no band.
    """
    if name in STREAMS or name in ALIASES:
        raise ConfigError(f"{name} is a modality of TerraMind's own; choose its bands with bands={{{name!r}: [...]}}")
    if not name or not all(letter.isalnum() or letter in "_-@" for letter in name):
        raise ConfigError(f"a new modality cannot be named {name!r}; use letters, digits, '_', '-' and '@'")
    names = tuple(f"band{i}" for i in range(bands)) if isinstance(bands, int) else tuple(bands)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"{name} of bands {bands!r} is unclear; give a number of channels or their different names")
    return Stream(name, name, "pixels", name, bands=names, known=False)


def with_bands(stream: Stream, bands: Sequence[str]) -> Stream:
    """The same stream, made of some of its bands in an order of their own.

    Raises:
        DataError, ConfigError: a band that its modality lacks, or bands that cannot be chosen.
    """
    if stream.kind != "pixels" or not stream.known:
        raise ConfigError(f"the bands of {stream.name} cannot be chosen; it has those that it was named with")
    table = modality(stream.modality)
    names = tuple(table.bands[table.band_index(band)].name for band in bands)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"{stream.name} of bands {', '.join(bands) or '(none)'} is unclear; name each once")
    if len(names) == len(stream.bands) and names != stream.bands:
        # Files could not tell the released order from this one.
        raise ConfigError(
            f"all bands of {stream.name} keep their order in the model; give images in another with bands="
        )
    return replace(stream, bands=names)


def nearest(name: str, known: Sequence[str]) -> str:
    """The names that are most like one, for a message."""
    return " or ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known))
