"""Several corpora in one stream: which corpus a position belongs to is arithmetic, so that a position restores it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np

from data_pipelines.errors import DataError


@dataclass(frozen=True)
class Mixture:
    """Samples of several corpora, taken in turns in fixed proportions.

    The corpora are interleaved evenly: among the first n positions, each has its share of n to within the number of
    corpora; for every n, and for good. A corpus that is smaller than its share is passed more often than others.

    Attributes:
        parts: of each corpus the positions of its samples in the source, (n,) int64.
        weights: of the corpora, whole numbers of at least 1 (see `whole_weights`).

    Raises:
        DataError: if a corpus has no samples.
    """

    parts: tuple[np.ndarray, ...]
    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.weights) or min(self.weights, default=0) < 1:
            raise DataError(f"a mixture of {len(self.parts)} corpora needs as many weights above 0, not {self.weights}")
        if empty := [number for number, part in enumerate(self.parts) if not len(part)]:
            raise DataError(f"corpus {empty[0] + 1} of the mixture has no samples; its filter or the split left none")

    @classmethod
    def of(cls, indices: "np.ndarray | Mixture") -> "Mixture":
        """A mixture as it is, or of one corpus."""
        return indices if isinstance(indices, Mixture) else cls((np.asarray(indices, np.int64),), (1,))

    def locate(self, position: int) -> tuple[int, int]:
        """The corpus at a position of the stream, and how many of its samples came before.

        Of n positions the first corpus has floor(n w1 / w); the others share the rest in the same way.
        """
        rest = sum(self.weights)
        for part, weight in enumerate(self.weights):
            before = position * weight // rest
            if (position + 1) * weight // rest > before:
                return part, before
            position, rest = position - before, rest - weight
        raise AssertionError("the last corpus takes all that is left")


def whole_weights(weights: Sequence[str | float]) -> tuple[int, ...]:
    """Weights in the same proportions as the smallest whole numbers: 0.8 and 0.2 are 4 and 1.

    Raises:
        DataError: if one is no number above 0.
    """
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except (ValueError, ZeroDivisionError):
        exact = [Fraction(0)]
    if min(exact, default=Fraction(0)) <= 0:
        raise DataError(f"weights {', '.join(map(str, weights))} of a mixture must be numbers above 0, as 0.8 or 3")
    shared = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * shared) for weight in exact]
    divisor = int(np.gcd.reduce(np.array(whole, object)))
    return tuple(weight // divisor for weight in whole)
