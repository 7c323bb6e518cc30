import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import sampling
from data_pipelines.errors import DataError
from data_pipelines.modalities import OCEAN, SCENE_CLASSES
from data_pipelines.sources import Index

SCENES = st.lists(st.integers(-1, 5), min_size=1, max_size=60).map(np.asarray)


def index(size=2000, ocean=1000):
    rng = np.random.default_rng(0)
    scene = np.where(np.arange(size) < ocean, SCENE_CLASSES.index(OCEAN), 2)
    return Index.at([f"k{i}" for i in range(size)], rng.uniform(-180, 180, size), rng.uniform(-60, 60, size), scene)


def test_select_by_split_and_region():
    data = index()
    parts = [sampling.select(data, split=split) for split in ("train", "val", "test")]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(2000))
    assert not set(data.region[parts[0]]) & set(data.region[parts[1]])
    assert set(data.region[sampling.select(data, regions=[data.region[5]])]) == {data.region[5]}
    with pytest.raises(DataError, match="unknown split 'valid'"):
        sampling.select(data, split="valid")
    with pytest.raises(DataError, match="no sample is left for split 'val'"):
        sampling.select(Index.at(["a"], np.zeros(1), np.zeros(1)), split="val")


def test_ocean_is_thinned_by_key():
    data = index()
    left = sampling.thin_ocean(data, keep=0.1)
    ocean = data.scene[left] == SCENE_CLASSES.index(OCEAN)
    assert (~ocean).sum() == 1000 and 70 < ocean.sum() < 130 and (np.diff(left) > 0).all()
    order = np.random.default_rng(1).permutation(2000)
    assert set(sampling.thin_ocean(data, keep=0.1, indices=order)) == set(left)
    assert set(sampling.thin_ocean(data, keep=0.1, seed=1)) != set(left)
    assert set(sampling.thin_ocean(data, keep=0.05)) < set(left)
    assert len(sampling.thin_ocean(data, keep=0.0)) == 1000 and len(sampling.thin_ocean(data, keep=1.0)) == 2000


@given(SCENES, st.floats(0, 1), st.integers(0, 9), st.integers(0, 200))
def test_balanced_indices_meet_their_quotas(scene, power, seed, length):
    chosen = sampling.balanced_indices(scene, power, seed, length)
    assert len(chosen) == length and (np.diff(chosen) >= 0).all()
    assert np.array_equal(chosen, sampling.balanced_indices(scene, power, seed, length))
    classes, counts = np.unique(scene, return_counts=True)
    share = (counts / len(scene)) ** (1 - power)
    got = np.array([(scene[chosen] == label).sum() for label in classes])
    assert np.abs(got - length * share / share.sum()).max() < 1
    for label in classes:  # within a class, no sample is ahead of another by more than one
        uses = np.bincount(chosen, minlength=len(scene))[scene == label]
        assert uses.max() - uses.min() <= 1


def test_no_power_changes_nothing_and_nothing_cannot_be_balanced():
    scene = np.array([1, 1, 1, 2])
    assert np.array_equal(sampling.balanced_indices(scene, 0.0, 0), np.arange(4))
    assert (scene[sampling.balanced_indices(scene, 1.0, 0, 100)] == 2).sum() == 50
    with pytest.raises(DataError, match="no samples to balance"):
        sampling.balanced_indices(np.array([], int), 1.0, 0)


@given(SCENES, st.floats(0.01, 1))
def test_frequent_classes_are_the_fewest_that_cover(scene, coverage):
    chosen = sampling.frequent_classes(scene, coverage)
    known = scene[scene >= 0]
    if not len(known):
        assert chosen == ()
        return
    assert np.isin(known, chosen).mean() >= coverage - 1e-9
    assert not len(chosen) > 1 or np.isin(known, chosen[:-1]).mean() < coverage
    counts = [(known == label).sum() for label in chosen]
    assert counts == sorted(counts, reverse=True) and -1 not in chosen


def test_half_the_samples():
    assert sampling.frequent_classes(np.array([3] * 5 + [1] * 3 + [2] * 2)) == (3,)
    assert sampling.frequent_classes(np.array([3] * 4 + [1] * 4 + [2] * 2)) == (1, 3)


def test_strata_are_told_apart_by_all_their_columns():
    data = index(200, 100)
    strata = sampling.strata(data, ["scene", "climate"])
    pairs = list(zip(data.scene.tolist(), data.column("climate").tolist(), strict=True))
    assert len(set(strata.tolist())) == len(set(pairs)) == len(set(zip(pairs, strata.tolist(), strict=True)))
    assert set(sampling.strata(data, []).tolist()) == {0}


def test_frequent_classes_weigh_samples():
    scene = np.array([3] * 5 + [1] * 3)
    assert sampling.frequent_classes(scene, 0.5) == (3,)
    assert sampling.frequent_classes(scene, 0.5, np.where(scene == 1, 10.0, 1.0)) == (1,)


def test_a_filter_that_leaves_nothing_says_why():
    data = index(50, 10)
    assert sampling.select(data, split="train", matching="scene != ocean").max() < 50
    with pytest.raises(DataError, match=r"filter 'lat > 89' leaves no sample of the split 'train'; loosen it"):
        sampling.select(data, split="train", matching="lat > 89")
