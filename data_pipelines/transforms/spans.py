"""Sequences with hidden spans: a sentinel stands for each, and the target tells what it stands for.

    ids       a b c d e        hidden: b c, e
    inputs    a [S_1] d [S_2]
    targets   [S_1] b c [S_2] e [S_3]

Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020; drawn
as 4M's public masking code does (Mizrahi et al. 2023).
"""

from collections.abc import Sequence

import numpy as np

_SHRINK = 0.9


def mask_spans(
    rng: np.random.Generator, ids: np.ndarray, sentinels: Sequence[int], budget: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hide a random part of a sequence.

    Each token stays with a probability that is drawn first, uniform in 0..1, and lowered until what stays fits. If
    nothing may stay, all is one hidden span and the inputs are empty.

    Args:
        rng: source of randomness.
        ids: tokens, ending with the end of the sequence.
        sentinels: ids of [S_1], [S_2], ...; more than there are tokens.
        budget: most tokens of the inputs.
        most: most tokens of the targets beside the sentinel that begins them; longer ones are cut: they begin with a
            random span's sentinel and end where the room does.

    Returns:
        Inputs and targets, int64.
    """
    keep = rng.random() if budget else 0.0
    hidden = rng.random(len(ids)) >= keep
    inputs, targets = hide(ids, hidden, sentinels)
    while budget and len(inputs) > budget:
        keep *= _SHRINK
        inputs, targets = hide(ids, rng.random(len(ids)) >= keep, sentinels)
    return (inputs if budget else inputs[:0]), _shortened(rng, targets, sentinels, most)


def hide(ids: np.ndarray, hidden: np.ndarray, sentinels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a sequence, some tokens of which are hidden.

    Args:
        ids: (n,) tokens.
        hidden: (n,) bool.
        sentinels: ids of [S_1], [S_2], ...
    """
    inputs: list[int] = []
    targets: list[int] = []
    spans = 0
    for i, (token, is_hidden) in enumerate(zip(ids, hidden, strict=True)):
        if not is_hidden:
            inputs.append(token)
            continue
        if i == 0 or not hidden[i - 1]:
            inputs.append(sentinels[spans])
            targets.append(sentinels[spans])
            spans += 1
        targets.append(token)
    return np.array(inputs, np.int64), np.array([*targets, sentinels[spans]], np.int64)


def merge_spans(inputs: np.ndarray, targets: np.ndarray, sentinels: Sequence[int]) -> np.ndarray:
    """The sequence that `hide` took apart: what each sentinel of the inputs stands for put in its place.

    Args:
        inputs: visible tokens and sentinels; none, where all is hidden.
        targets: spans, each led by its sentinel; spans that are missing stay away.
        sentinels: ids of [S_1], [S_2], ...
    """
    known = set(sentinels)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in targets:
        if token in known:
            current = spans.setdefault(int(token), [])
        else:
            current.append(int(token))
    whole: list[int] = []
    for token in inputs if len(inputs) else sentinels[:1]:
        whole += spans.get(int(token), []) if token in known else [int(token)]
    return np.array(whole, np.int64)


def _shortened(rng: np.random.Generator, targets: np.ndarray, sentinels: Sequence[int], most: int) -> np.ndarray:
    if len(targets) <= most + 1:
        return targets
    starts = np.flatnonzero(np.isin(targets, sentinels))[:-1]  # nothing comes after the last
    start = int(rng.choice(starts))
    return targets[start : start + most + 1]
