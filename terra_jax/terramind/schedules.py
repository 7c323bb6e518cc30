"""How many tokens each step of a generation decides, and at which temperature (4M, Mizrahi et al. 2023, appendix)."""

import math
from collections.abc import Sequence
from itertools import pairwise

from terra_jax.errors import ConfigError

SCHEDULES = ("linear", "cosine")
"""Tokens per step: as equal as they come, the larger ones first; or few at the ends and many in the middle."""

COOLING = ("constant", "linear", "onex")
"""Temperature over the steps: one value, in proportion to the tokens left, or a falling power: "onex:LEAST:POWER"."""

_ONEX_RANGE = 100.0


def token_schedule(schedule: str, steps: int, tokens: int) -> tuple[int, ...]:
    """Tokens to decide at each step.

    linear(10, 196) is 20 six times, then 19 four times; cosine(8, 196) is 7, 21, 32, 38, 38, 32, 21, 7.

    Args:
        schedule: a word of `SCHEDULES`.
        steps: number of steps.
        tokens: to decide in all.

    Returns:
        One number a step, each at least 1, that sum to `tokens`.

    Raises:
        ConfigError: an unknown schedule, or a number of steps outside 1..tokens.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"unknown schedule {schedule!r}; choose {' or '.join(SCHEDULES)}")
    if not 1 <= steps <= tokens:
        raise ConfigError(f"steps={steps} cannot share {tokens} tokens; choose 1 to {tokens}")
    if schedule == "linear":
        shares = [1 / steps] * steps
    else:
        waves = [(1 - math.cos(math.pi * i / steps)) / 2 for i in range(steps + 1)]
        shares = [after - before for before, after in pairwise(waves)]
    return _apportioned(shares, tokens)


def _apportioned(shares: Sequence[float], total: int) -> tuple[int, ...]:
    """Whole numbers nearest to the shares of a total: what rounding down leaves goes to the largest remainders."""
    exact = [round(share * total, 9) for share in shares]
    counts = [math.floor(number) for number in exact]
    by_remainder = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    while 0 in counts:  # a step that decides nothing would be wasted
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return tuple(counts)


def temperatures(temperature: float, cooling: str, counts: Sequence[int]) -> tuple[float, ...]:
    """Temperature of each step.

    Args:
        temperature: at the first step; 0 takes the most probable tokens throughout.
        cooling: "constant"; "linear", which falls in proportion to the tokens left; or "onex:LEAST:POWER", which falls
            to LEAST as x ** -POWER does while x grows from 1 to 100 with the tokens decided.
        counts: tokens that each step decides.

    Raises:
        ConfigError: an unknown cooling, or a temperature that is negative or below LEAST.
    """
    if not temperature >= 0 or math.isinf(temperature):
        raise ConfigError(f"temperature={temperature:g} is impossible; use 0 or more")
    kind, _, rest = cooling.partition(":")
    if kind not in COOLING or (kind != "onex") == bool(rest):
        raise ConfigError(
            f"unknown cooling {cooling!r}; use constant, linear or onex:LEAST:POWER, such as onex:0.5:0.5"
        )
    total = sum(counts)
    done = [sum(counts[:i]) / total for i in range(len(counts))]
    if kind == "constant":
        return (float(temperature),) * len(counts)
    if kind == "linear":
        return tuple(temperature * (1 - share) for share in done)
    least, power = _onex(rest, temperature)
    last = _ONEX_RANGE**-power
    falls = [((1 + (_ONEX_RANGE - 1) * share) ** -power - last) / (1 - last) for share in done]
    return tuple(least + (temperature - least) * fall for fall in falls)


def _onex(text: str, temperature: float) -> tuple[float, float]:
    try:
        least, power = (float(number) for number in text.split(":"))
    except ValueError as error:
        raise ConfigError(f"cooling=onex:{text} is unclear; write onex:LEAST:POWER, such as onex:0.5:0.5") from error
    if not (0 <= least <= temperature and 0 < power < math.inf):
        raise ConfigError(f"cooling=onex:{text}: LEAST lies in 0..{temperature:g}, the temperature; POWER is above 0")
    return least, power
