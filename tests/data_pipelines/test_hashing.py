import numpy as np

from data_pipelines.hashing import hash_ints, hash_strings, to_unit


def test_hashes_are_fixed_for_ever():
    # Splits and thinning follow from these: a change would move samples between training and evaluation.
    assert hash_ints(np.array([0, 1, -1])).tolist() == [5197578548964807871, 12035550249420947055, 17896504823353187392]
    assert hash_strings(["282D_485L_3_3"]).tolist() == [18005862599581696112]


def test_hashes_are_uniform_and_seeds_independent():
    a, b = (to_unit(hash_ints(np.arange(20_000), seed)) for seed in (0, 1))
    assert a.min() >= 0 and a.max() < 1 and abs(a.mean() - 0.5) < 0.01
    assert np.abs(np.histogram(a, 10, (0, 1))[0] - 2000).max() < 200
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02 and abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.02
