import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.evaluation import knn


def naive_knn(bank, labels, queries, k=20, temperature=0.07):
    """One query, one neighbour at a time, as the definition reads."""
    predicted = []
    for query in queries.astype(np.float64):
        similarity = [float(query @ b / np.linalg.norm(query) / np.linalg.norm(b)) for b in bank.astype(np.float64)]
        votes = {}
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[labels[i]] = votes.get(labels[i], 0.0) + np.exp(similarity[i] / temperature)
        predicted.append(max(sorted(votes), key=votes.get))
    return np.array(predicted)


def clouds(seed, n=120, m=40, dims=8, classes=4):
    """Overlapping clusters: neither trivial nor pure chance."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, dims))
    labels, query_labels = rng.integers(0, classes, n), rng.integers(0, classes, m)
    bank = centres[labels] + rng.standard_normal((n, dims))
    queries = centres[query_labels] + rng.standard_normal((m, dims))
    return bank.astype(np.float32), labels, queries.astype(np.float32), query_labels


@pytest.mark.parametrize("k", [1, 5, 20, 1000])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_equals_the_definition(k, chunk):
    bank, labels, queries, _ = clouds(0)
    expected = naive_knn(bank, labels, queries, k=k)
    np.testing.assert_array_equal(knn.knn_predict(bank, labels, queries, k=k, chunk=chunk), expected)


def test_a_near_neighbour_outweighs_several_far_ones():
    bank = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    query = np.array([[1.0, 0.1]], np.float32)
    assert knn.knn_predict(bank, np.array([0, 1, 1, 1]), query, k=4) == [0]
    assert knn.knn_predict(bank, np.array([0, 1, 1, 1]), query, k=4, temperature=100.0) == [1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_lengths_of_features_do_not_matter(seed, bank_scale, query_scale):
    bank, labels, queries, _ = clouds(seed, n=50, m=20)
    scales = np.random.default_rng(seed).uniform(0.1, 10, (50, 1)) * bank_scale
    scaled = knn.knn_predict(bank * scales, labels, queries * query_scale)
    np.testing.assert_array_equal(scaled, knn.knn_predict(bank, labels, queries))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_order_of_the_bank_does_not_matter(seed, k):
    bank, labels, queries, _ = clouds(seed, n=50, m=20)
    order = np.random.default_rng(seed).permutation(50)
    shuffled = knn.knn_predict(bank[order], labels[order], queries, k=k)
    np.testing.assert_array_equal(shuffled, knn.knn_predict(bank, labels, queries, k=k))


@pytest.mark.parametrize(
    ("bank", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "no samples"),
        (np.ones((3, 2)), np.zeros(2, int), "3 integers"),
        (np.ones((3, 2)), np.array([0, 1, -1]), "without a class"),
        (np.ones((3, 5)), np.zeros(3, int), "equal dims"),
        (np.full((3, 2), np.nan), np.zeros(3, int), "diverged"),
    ],
)
def test_refuses_what_it_cannot_score(bank, labels, message):
    with pytest.raises(ValueError, match=message):
        knn.knn_predict(bank, labels, np.ones((1, 2)))


def test_accuracies_by_hand():
    labels = np.array([0, 0, 0, 2, 5])
    predicted = np.array([0, 0, 1, 2, 0])
    assert knn.accuracy(predicted, labels) == pytest.approx(3 / 5)
    assert knn.per_class_accuracy(predicted, labels) == {0: pytest.approx(2 / 3), 2: 1.0, 5: 0.0}
    assert knn.macro_accuracy(predicted, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_rarest_classes_are_those_that_can_be_scored():
    bank = np.array([0] * 9 + [1] * 4 + [2] * 2 + [3] + [4] * 2)
    assert knn.rarest_classes(bank) == [(3, 1), (2, 2), (4, 2)]
    assert knn.rarest_classes(bank, among=np.array([0, 1, 2])) == [(2, 2), (1, 4), (0, 9)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=300),
    st.floats(0.001, 1.0),
    st.floats(0.001, 1.0),
    st.integers(0, 100),
)
def test_label_fraction_is_stratified_nested_and_repeatable(labels, one, other, seed):
    labels = np.array(labels)
    few, many = (knn.label_fraction(labels, fraction, seed) for fraction in sorted((one, other)))
    assert set(labels[few]) == set(labels)
    assert set(few) <= set(many)
    for c in np.unique(labels):
        count = np.sum(labels == c)
        assert np.sum(labels[few] == c) == max(1, round(min(one, other) * count))
    np.testing.assert_array_equal(few, knn.label_fraction(labels, min(one, other), seed))


def test_all_labels_are_all_labels():
    np.testing.assert_array_equal(knn.label_fraction(np.array([3, 1, 3, 0]), 1.0), np.arange(4))
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        knn.label_fraction(np.array([0]), 0.0)


def test_evaluation_reports_what_json_can_hold():
    bank, labels, queries, query_labels = clouds(3, n=400)
    names = ["water", "trees", "crops", "built"]
    few, all_labels = knn.evaluate_knn(bank, labels, queries, query_labels, names=names)
    assert (few["fraction"], all_labels["fraction"]) == (0.01, 1.0)
    assert few["bank"] == 4 and all_labels["bank"] == 400
    assert all_labels["accuracy"] == knn.accuracy(knn.knn_predict(bank, labels, queries), query_labels)
    assert all_labels["accuracy"] > few["accuracy"]
    assert set(all_labels["classes"]) <= set(names) and len(all_labels["rarest"]) == 3
    assert sum(entry["queries"] for entry in all_labels["classes"].values()) == len(queries)
    assert json.loads(json.dumps(all_labels)) == all_labels


def test_band_statistics_of_any_modalities_and_grids():
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 3000, (3, 4, 12, 12)).astype(np.int16)
    radar = rng.standard_normal((3, 2, 12, 12)).astype(np.float16)
    radar[0, 1, :6] = np.nan
    radar[1] = np.nan
    features = knn.band_statistics({"S2L2A/10": fine, "S1GRD": radar})
    assert features.shape == (3, 12) and features.dtype == np.float32
    np.testing.assert_allclose(features[0, 1], radar[0, 1, 6:].astype(float).mean(), rtol=1e-4)
    np.testing.assert_array_equal(features[1, :4], 0)  # no valid pixel
    np.testing.assert_allclose(features[:, 4:8], fine.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(features[:, 8:], fine.std((2, 3)), rtol=1e-5)


def test_band_statistics_need_rasters():
    with pytest.raises(ValueError, match="at least one"):
        knn.band_statistics({})
    with pytest.raises(ValueError, match="NDVI"):
        knn.band_statistics({"NDVI": np.zeros((4, 4))})


def test_standardised_by_the_banks_own_figures():
    rng = np.random.default_rng(0)
    bank = np.concatenate([rng.normal(500, 20, (100, 3)), np.full((100, 1), 7.0)], axis=1)
    queries = bank[:5] + np.array([20, 0, 0, 1])
    unit, moved = knn.standardised(bank, queries)
    np.testing.assert_allclose(unit[:, :3].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(unit[:, :3].std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(moved[:, 0] - unit[:5, 0], 20 / bank[:, 0].std(), rtol=1e-4)
    assert not unit[:, 3].any() and not moved[:, 3].any()
