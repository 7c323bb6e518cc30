"""How many tokens of each stream the encoder sees and the decoder must give: shares drawn from Dirichlet mixtures.

Source: Mizrahi et al., 4M: Massively Multimodal Masked Modeling, 2023, and its public masking code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import DataError

_LEAST_ALPHA = 1e-9
_TRIES = 100


@dataclass(frozen=True)
class Component:
    """One way of sharing tokens out.

    Attributes:
        inputs, targets: stream -> concentration of its share: large ones give even shares, small ones give nearly all
            to one stream, 0 gives a stream nothing. Streams that are not named have 0.
        weight: how often the component is taken, relative to the others.

    Raises:
        DataError: if a number is negative, or all streams of a side have 0.
    """

    inputs: Mapping[str, float]
    targets: Mapping[str, float]
    weight: float = 1.0

    def __post_init__(self) -> None:
        for side, alphas in (("inputs", self.inputs), ("targets", self.targets)):
            if any(alpha < 0 for alpha in alphas.values()) or self.weight < 0:
                raise DataError(f"a mixture's weights and concentrations are 0 or more, not {dict(alphas)}")
            if not any(alphas.values()):
                raise DataError(f"a component of the mixture gives no stream a share of the {side}; name one")


def choose_component(
    rng: np.random.Generator, mixture: Sequence[Component], inputs: Sequence[str], targets: Sequence[str]
) -> Component | None:
    """Draw one of the components that can be served.

    Args:
        rng: source of randomness.
        mixture: what there is.
        inputs, targets: streams that the sample has.

    Returns:
        The component; None if none gives these streams a share of both sides.
    """
    weights = np.array(
        [
            part.weight * any(part.inputs.get(s) for s in inputs) * any(part.targets.get(s) for s in targets)
            for part in mixture
        ]
    )
    if not weights.sum():
        return None
    return mixture[int(rng.choice(len(mixture), p=weights / weights.sum()))]


def draw_budget(
    rng: np.random.Generator,
    alphas: Sequence[float] | np.ndarray,
    total: int,
    most: Sequence[int] | np.ndarray,
    least: Sequence[int] | np.ndarray | int = 0,
) -> np.ndarray:
    """Share `total` tokens out among streams.

    A draw from the Dirichlet distribution gives the shares, rounded down; each token that is left over goes to the
    largest share of a fresh draw, so that streams of tiny concentration stay without. What exceeds a stream's most is
    lost. A draw that leaves a stream with less than its least is repeated up to a hundred times, then taken as it is.

    Args:
        rng: source of randomness.
        alphas: concentration of each stream; those below 1e-9 count as that.
        total: tokens.
        most, least: of each stream.

    Returns:
        int64, one number a stream, in sum at most `total`.
    """
    alphas, most = np.maximum(alphas, _LEAST_ALPHA), np.asarray(most, np.int64)
    budget = np.zeros(len(alphas), np.int64)
    for _ in range(_TRIES):
        budget = np.floor(rng.dirichlet(alphas) * total).astype(np.int64)
        winners = rng.dirichlet(alphas, total - budget.sum()).argmax(-1)
        budget = np.minimum(budget + np.bincount(winners, minlength=len(alphas)), most)
        if (budget >= np.asarray(least)).all():
            break
    return budget
