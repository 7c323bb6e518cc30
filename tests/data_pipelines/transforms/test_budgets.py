import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.transforms.budgets import Component, choose_component, draw_budget


@st.composite
def sharing(draw):
    alphas = draw(st.lists(st.sampled_from([0.0, 1e-12, 0.01, 0.5, 10.0, 1000.0]), min_size=1, max_size=9))
    most = draw(st.lists(st.integers(0, 200), min_size=len(alphas), max_size=len(alphas)))
    return alphas, most, draw(st.integers(0, 300)), draw(st.integers(0, 2**32))


@settings(max_examples=300, deadline=None)
@given(sharing())
def test_a_budget_is_never_exceeded(case):
    alphas, most, total, seed = case
    budget = draw_budget(np.random.default_rng(seed), alphas, total, most)
    assert budget.dtype == np.int64 and (budget >= 0).all() and (budget <= most).all() and budget.sum() <= total
    again = draw_budget(np.random.default_rng(seed), alphas, total, most)
    assert np.array_equal(budget, again)


@settings(max_examples=100, deadline=None)
@given(sharing())
def test_where_there_is_room_everything_is_given_and_only_to_streams_with_a_share(case):
    alphas, _, total, seed = case
    budget = draw_budget(np.random.default_rng(seed), alphas, total, [total] * len(alphas))
    assert budget.sum() == total
    if max(alphas) >= 0.01:
        assert (budget[np.array(alphas) < 1e-6] == 0).all()


def test_shares_are_as_a_dirichlet_distribution_says():
    rng = np.random.default_rng(0)
    alphas = np.array([0.5, 1.0, 2.5])
    shares = np.array([draw_budget(rng, alphas, 1000, [1000] * 3) for _ in range(4000)]) / 1000
    mean = alphas / alphas.sum()
    variance = mean * (1 - mean) / (alphas.sum() + 1)
    np.testing.assert_allclose(shares.mean(0), mean, atol=0.015)
    np.testing.assert_allclose(shares.var(0), variance, rtol=0.08)


def test_what_is_left_over_goes_to_the_largest_shares_of_fresh_draws():
    counts = sum(draw_budget(np.random.default_rng(seed), [1000.0, 1000.0, 1000.0], 2, [9] * 3) for seed in range(900))
    assert counts.sum() == 1800 and counts.min() > 520  # floors of 2/3 give nothing: all is left over


def test_a_least_number_is_drawn_for_until_it_is_there():
    for seed in range(50):
        budget = draw_budget(np.random.default_rng(seed), [0.5, 0.5], 10, [10, 10], least=[3, 0])
        assert budget[0] >= 3
    assert draw_budget(np.random.default_rng(0), [1.0, 0.0], 10, [10, 10], least=[0, 5])[1] == 0  # given up


def test_components_are_chosen_by_weight_among_those_that_can_be_served():
    mixture = [
        Component({"a": 1.0}, {"t": 1.0}, weight=3.0),
        Component({"b": 1.0}, {"t": 1.0}),
        Component({"a": 0.0, "c": 1.0}, {"t": 1.0}, weight=100.0),
        Component({"a": 1.0}, {"u": 1.0}, weight=100.0),
    ]
    rng = np.random.default_rng(0)
    drawn = [mixture.index(choose_component(rng, mixture, ("a", "b"), ("t",))) for _ in range(2000)]
    assert set(drawn) == {0, 1} and 0.7 < drawn.count(0) / 2000 < 0.8
    assert choose_component(rng, mixture, ("c",), ("u",)) is None


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (({"a": -1.0}, {"t": 1.0}), "0 or more"),
        (({"a": 1.0}, {"t": 1.0}, -2.0), "0 or more"),
        (({"a": 0.0}, {"t": 1.0}), "no stream a share of the inputs"),
        (({"a": 1.0}, {}), "no stream a share of the targets"),
    ],
)
def test_impossible_components_are_refused(component, words):
    with pytest.raises(DataError, match=words):
        Component(*component)
