import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.transforms.spans import hide, mask_spans, merge_spans

SENTINELS = tuple(range(1000, 1100))
EOS = 3


def sequences(longest=30):
    return st.lists(st.integers(10, 90), max_size=longest).map(lambda ids: np.array([*ids, EOS]))


def test_the_example_of_the_docstring():
    inputs, targets = hide(np.array([11, 12, 13, 14, 15]), np.array([False, True, True, False, True]), SENTINELS)
    assert inputs.tolist() == [11, 1000, 14, 1001]
    assert targets.tolist() == [1000, 12, 13, 1001, 15, 1002]


@settings(max_examples=200, deadline=None)
@given(sequences(), st.data())
def test_merging_restores_the_sequence(ids, data):
    hidden = np.array(data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    inputs, targets = hide(ids, hidden, SENTINELS)
    assert np.array_equal(merge_spans(inputs, targets, SENTINELS), ids)
    assert np.isin(targets, SENTINELS).sum() == np.isin(inputs, SENTINELS).sum() + 1
    if hidden.all():
        assert np.array_equal(merge_spans(inputs[:0], targets, SENTINELS), ids)


@settings(max_examples=300, deadline=None)
@given(sequences(), st.integers(0, 35), st.integers(0, 40), st.integers(0, 2**32))
def test_budgets_hold_whatever_is_drawn(ids, budget, most, seed):
    inputs, targets = mask_spans(np.random.default_rng(seed), ids, SENTINELS, budget, most)
    assert len(inputs) <= budget and 1 <= len(targets) <= most + 1 and targets[0] in SENTINELS
    if most >= 2 * len(ids):  # nothing had to be cut
        assert np.array_equal(merge_spans(inputs, targets, SENTINELS), ids)


def test_without_a_budget_everything_is_hidden_and_asked_for():
    inputs, targets = mask_spans(np.random.default_rng(0), np.array([50, 60, EOS]), SENTINELS, 0, 4)
    assert len(inputs) == 0 and targets.tolist() == [1000, 50, 60, EOS, 1001]


def test_targets_that_are_cut_begin_at_any_span():
    ids, first = np.arange(10, 40), set()
    for seed in range(60):
        _, targets = mask_spans(np.random.default_rng(seed), ids, SENTINELS, 30, 4)
        first.add(int(targets[0]))
    assert len(first) > 3 and min(first) == SENTINELS[0]


def test_every_share_of_a_sequence_is_kept_now_and_then():
    ids = np.arange(10, 30)
    asked = [mask_spans(np.random.default_rng(seed), ids, SENTINELS, 40, 60)[1] for seed in range(200)]
    hidden = [np.isin(ids, targets).sum() for targets in asked]
    assert np.histogram(hidden, bins=4, range=(0, 20))[0].min() > 25
