"""The coordinate tokenizer: places on a grid of a quarter degree as three tokens, latitude, longitude and end.

Every value of the grid is a word of its own in the vocabulary, so that no word has to be split, and reading the
released vocabulary (the JSON of the `tokenizers` library) takes no more than looking its words up.
"""

import hashlib
import json
from collections.abc import Mapping
from itertools import count, takewhile
from pathlib import Path

import numpy as np

from terra_jax.errors import ConfigError
from terra_jax.weights.atomic import file_aside

STEPS = 4
"""Grid values per degree."""

LIMITS = {"lat": 90, "lon": 180}
SPECIAL = ("[PAD]", "[UNK]", "[SOS]", "[EOS]")
SENTINELS = 200
"""Words [S_0], [S_1], ... that stand for masked spans; the number is the one of 4M's vocabularies."""

EOS = "[EOS]"


class CoordinateTokenizer:
    """Longitude and latitude to token ids and back.

    Args:
        words: word -> id; must have "[EOS]" and grid values such as "lat=-12.25" and "lon=30.00".
        origin: what messages call the vocabulary.

    Attributes:
        vocabulary_size: one more than the largest id.
        eos: id of the end of a sequence.
        sentinels: ids of [S_1], [S_2] and so on, as far as the vocabulary goes, which stand for masked spans.
        fingerprint: of the words that matter here and their ids: equal where, and only where, the tokens mean the same.

    Raises:
        ConfigError: if the vocabulary has no end or no place, or gives two words one id.
    """

    def __init__(self, words: Mapping[str, int], origin: str = "the vocabulary"):
        self._origin = origin
        ids = {axis: np.array([words.get(word, -1) for word in _words(axis)], np.int64) for axis in LIMITS}
        if EOS not in words or not all((known >= 0).any() for known in ids.values()):
            raise ConfigError(
                f"{origin} lacks {EOS} or words such as {_words('lat')[0]}; give a vocabulary of coordinates"
            )
        self._ids, self._words = ids, dict(words)
        self.vocabulary_size = 1 + max(words.values())
        self.eos = words[EOS]
        numbered = takewhile(words.__contains__, (f"[S_{i}]" for i in count(1)))
        self.sentinels = tuple(words[word] for word in numbered)
        self._values = {axis: _inverse(known, self.vocabulary_size, axis, origin) for axis, known in ids.items()}
        relevant = {word: words[word] for axis in LIMITS for word in _words(axis) if word in words}
        text = json.dumps({**relevant, EOS: self.eos}, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]

    @classmethod
    def build(cls) -> "CoordinateTokenizer":
        """A vocabulary equivalent to the released one: special words, sentinels, every grid value."""
        sentinels = [f"[S_{i}]" for i in range(SENTINELS)]
        words = [*SPECIAL, *sentinels, *_words("lat"), *_words("lon")]
        return cls({word: i for i, word in enumerate(words)}, "the built vocabulary")

    @classmethod
    def from_json(cls, path: str | Path) -> "CoordinateTokenizer":
        """Read a vocabulary in the JSON format of the `tokenizers` library.

        Raises:
            ConfigError: if the file is missing, no such vocabulary, or not one of coordinates.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            added = {entry["content"]: int(entry["id"]) for entry in content.get("added_tokens") or ()}
            words = {**{word: int(i) for word, i in content["model"]["vocab"].items()}, **added}
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); give a vocabulary's JSON file") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no vocabulary in the JSON of `tokenizers`; give the released file") from error
        return cls(words, str(path))

    def to_json(self, path: str | Path) -> None:
        """Write the vocabulary in the format that `from_json` reads."""
        model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = [{"id": i, "content": word, **flags} for word, i in self._words.items()]
        content = {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "BertNormalizer", "lowercase": True},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {**model, "max_input_chars_per_word": 100, "vocab": self._words},
        }
        with file_aside(Path(path)) as aside:
            aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def tokenize(self, lon: np.ndarray | float, lat: np.ndarray | float) -> np.ndarray:
        """Token ids of places, the nearest grid values (halves go to the even one, as the public code rounds).

        Args:
            lon, lat: degrees, of one shape.

        Returns:
            int32 (..., 3): latitude, longitude, end.

        Raises:
            ConfigError: if a coordinate is out of range or NaN, or the vocabulary lacks its word.
        """
        ids = [self._axis_ids("lat", lat), self._axis_ids("lon", lon)]
        end = np.full(ids[0].shape, self.eos)
        return np.stack([*np.broadcast_arrays(*ids), end], axis=-1).astype(np.int32)

    def decode(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Longitude and latitude, degrees, of `tokenize`'s ids (..., 2 or more: what follows is ignored).

        Raises:
            ConfigError: if an id is none of a latitude, or of a longitude, where one belongs.
        """
        ids = np.asarray(ids)
        if ids.ndim == 0 or ids.shape[-1] < 2:
            raise ConfigError(f"coordinate tokens have shape {ids.shape}; expected (..., 3): latitude, longitude, end")
        return self._axis_values("lon", ids[..., 1]), self._axis_values("lat", ids[..., 0])

    def grammar(self, size: int) -> np.ndarray:
        """Which tokens a place may have: bool (3, size), of latitude, longitude and end.

        Args:
            size: of a model's vocabulary.

        Raises:
            ConfigError: if the model's vocabulary is smaller than this one.
        """
        if size < self.vocabulary_size:
            raise ConfigError(
                f"{self._origin} has {self.vocabulary_size} tokens, the model {size}; give the model's own"
            )
        allowed = np.zeros((3, size), bool)
        for row, axis in zip(allowed, ("lat", "lon"), strict=False):
            row[self._ids[axis][self._ids[axis] >= 0]] = True
        allowed[2, self.eos] = True
        return allowed

    def _axis_ids(self, axis: str, degrees: np.ndarray | float) -> np.ndarray:
        degrees, limit = np.asarray(degrees, np.float64), LIMITS[axis]
        if not (np.abs(degrees) <= limit).all():  # NaN too
            wrong = degrees[~(np.abs(degrees) <= limit)].flat[0]
            raise ConfigError(f"{axis}={wrong:g} is no coordinate; give degrees within -{limit}..{limit}")
        steps = np.rint(degrees * STEPS).astype(np.int64) + limit * STEPS  # integers: there is no -0.00
        found = self._ids[axis][steps]
        if (found < 0).any():
            raise ConfigError(
                f"{self._origin} lacks {_words(axis)[steps[found < 0].flat[0]]!r}; give a whole vocabulary"
            )
        return found

    def _axis_values(self, axis: str, ids: np.ndarray) -> np.ndarray:
        known = (ids >= 0) & (ids < self.vocabulary_size)
        values = self._values[axis][np.where(known, ids, 0)]
        if not (known & np.isfinite(values)).all():
            wrong = ids[~(known & np.isfinite(values))].flat[0]
            raise ConfigError(f"token {wrong} is no {axis} of {self._origin}; decode with the vocabulary that made it")
        return values


def _words(axis: str) -> list[str]:
    """All grid values of an axis, ascending."""
    last = LIMITS[axis] * STEPS
    return [f"{axis}={step / STEPS:.2f}" for step in range(-last, last + 1)]


def _inverse(ids: np.ndarray, size: int, axis: str, origin: str) -> np.ndarray:
    """Id -> degrees; NaN where the id is another word's."""
    known = np.flatnonzero(ids >= 0)
    if len(np.unique(ids[known])) < len(known):
        raise ConfigError(f"{origin} gives two values of {axis} one id; it is damaged: fetch it again")
    values = np.full(size, np.nan)
    values[ids[known]] = known / STEPS - LIMITS[axis]
    return values
