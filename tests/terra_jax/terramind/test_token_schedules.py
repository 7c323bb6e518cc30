from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terra_jax.errors import ConfigError
from terra_jax.terramind.schedules import SCHEDULES, temperatures, token_schedule


def test_splits_are_those_of_the_public_code():
    assert token_schedule("linear", 10, 196) == (20,) * 6 + (19,) * 4
    assert token_schedule("cosine", 8, 196) == (7, 21, 32, 38, 38, 32, 21, 7)
    assert token_schedule("linear", 1, 196) == token_schedule("cosine", 1, 196) == (196,)


@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.data())
def test_every_token_is_decided_and_every_step_decides_some(schedule, tokens, data):
    steps = data.draw(st.integers(1, tokens))
    counts = token_schedule(schedule, steps, tokens)
    assert len(counts) == steps and sum(counts) == tokens and min(counts) >= 1
    if schedule == "linear":
        assert list(counts) == sorted(counts, reverse=True) and max(counts) - min(counts) <= 1


def test_temperatures_fall_as_named():
    counts = (4, 3, 2, 1)
    assert temperatures(2.0, "constant", counts) == (2.0,) * 4
    assert temperatures(2.0, "linear", counts) == pytest.approx((2.0, 1.2, 0.6, 0.2))
    falling = temperatures(6.0, "onex:0.5:0.5", (1,) * 50)
    assert falling[0] == 6.0 and all(a > b > 0.5 for a, b in pairwise(falling))
    # Halfway x is 50.5 on its way from 1 to 100.
    halfway = (50.5**-0.5 - 0.1) / 0.9
    assert falling[25] == pytest.approx(0.5 + 5.5 * halfway)
    assert temperatures(0.0, "constant", (5, 5)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: token_schedule("quadratic", 2, 9), "unknown schedule 'quadratic'; choose linear or cosine"),
        (lambda: token_schedule("linear", 10, 9), "steps=10 cannot share 9 tokens; choose 1 to 9"),
        (lambda: token_schedule("linear", 0, 9), "steps=0"),
        (lambda: temperatures(-1.0, "constant", (9,)), "temperature=-1 is impossible"),
        (lambda: temperatures(float("nan"), "constant", (9,)), "temperature=nan is impossible"),
        (lambda: temperatures(1.0, "constant:3", (9,)), "unknown cooling"),
        (lambda: temperatures(1.0, "onex", (9,)), "unknown cooling"),
        (lambda: temperatures(1.0, "onex:0.5", (9,)), "write onex:LEAST:POWER"),
        (lambda: temperatures(1.0, "onex:2:0.5", (9,)), r"LEAST lies in 0\.\.1"),
    ],
)
def test_impossible_wishes_are_refused(call, words):
    with pytest.raises(ConfigError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
