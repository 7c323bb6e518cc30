"""Several corpora as one source, and the text by which configs name them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.mixture import Mixture, whole_weights
from data_pipelines.sample import Sample
from data_pipelines.sources import SOURCES, Index, Source

_ENTRY = re.compile(r"(?P<weight>\S+)\s+(?P<source>\w+)(?:\s+(?!where\s)(?P<path>.*?))?(?:\s+where\s+(?P<filter>.*))?")
_EXAMPLE = "0.8 terramesh DIR; 0.2 records DIR where cloud < 20"


@dataclass(frozen=True)
class MixtureEntry:
    """A corpus of a mixture as a config names it: share, source, path and filter."""

    weight: str
    source: str
    path: str = ""
    filter: str = ""


def parse_mixture(text: str) -> tuple[MixtureEntry, ...]:
    """Corpora of a text: `WEIGHT SOURCE [PATH] [where FILTER]`, separated by semicolons.

    Raises:
        DataError: quoting the entry that cannot be read, names no known source, or has no proper weight.
    """
    entries = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise DataError(f"mixture: {part!r} is not WEIGHT SOURCE [PATH] [where FILTER]; write as in {_EXAMPLE}")
        entry = MixtureEntry(**{name: (value or "").strip() for name, value in match.groupdict().items()})
        if entry.source not in SOURCES:
            raise DataError(f"mixture: {part!r} names no source; choose from {', '.join(SOURCES)}")
        whole_weights([entry.weight])
        entries.append(entry)
    if not entries:
        raise DataError(f"mixture {text!r} names no corpus; write as in {_EXAMPLE}")
    return tuple(entries)


class MixedSource:
    """Corpora end to end; samples keep their keys, in the index they are led by the corpus: "terramesh/KEY".

    Args:
        corpora: the sources.
        weights: of the corpora, see `mixture.whole_weights`.

    Attributes:
        corpora: as given.
        names: of the corpora; of two that read the same format the second is "records2".
        starts: (corpora + 1,) number of the first sample of each, and of all samples.
    """

    name = "mixture"

    def __init__(self, corpora: Sequence[Source], weights: Sequence[str | float]):
        self.corpora = tuple(corpora)
        self._weights = whole_weights(weights)
        kinds = [corpus.name for corpus in corpora]
        before = [kinds[:n].count(kind) for n, kind in enumerate(kinds)]
        self.names = tuple(kind + (str(n + 1) if n else "") for kind, n in zip(kinds, before, strict=True))
        self.starts = np.cumsum([0, *(len(corpus) for corpus in corpora)])
        self.index = _joined([corpus.index for corpus in corpora], self.names)

    def __len__(self) -> int:
        """Samples of all corpora."""
        return int(self.starts[-1])

    def __getitem__(self, i: int) -> Sample:
        """Read sample `i`, counted over all corpora."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        i %= len(self)
        corpus = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.corpora[corpus][i - int(self.starts[corpus])]

    def mixture(self, indices: np.ndarray) -> Mixture:
        """Samples by their numbers, as a mixture in the corpora's proportions.

        Raises:
            DataError: if a corpus is left without samples.
        """
        corpus = np.searchsorted(self.starts, indices, side="right") - 1
        return Mixture(tuple(indices[corpus == n] for n in range(len(self.corpora))), self._weights)

    def shares(self, indices: np.ndarray) -> np.ndarray:
        """How often each of some samples occurs in the stream of their mixture; all together 1."""
        mixture = self.mixture(indices)
        corpus = np.searchsorted(self.starts, indices, side="right") - 1
        one = np.array([w / sum(mixture.weights) / len(p) for w, p in zip(mixture.weights, mixture.parts, strict=True)])
        return one[corpus]


def _joined(indices: Sequence[Index], names: Sequence[str]) -> Index:
    """Indices end to end, with the further columns that all have."""
    shared = [name for name in indices[0].further if all(name in index.further for index in indices)]
    own = {name: np.concatenate([index.own[name] for index in indices]) for name in indices[0].own}
    keys = [np.char.add(f"{name}/", index.keys) for name, index in zip(names, indices, strict=True)]
    further = {name: np.concatenate([index.further[name] for index in indices]) for name in shared}
    return Index(**{**own, "keys": np.concatenate(keys)}, further=further)
