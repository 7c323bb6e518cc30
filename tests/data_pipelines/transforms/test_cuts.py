import numpy as np

from data_pipelines.radiometry import to_10m
from data_pipelines.sources import open_source
from data_pipelines.transforms.cuts import LATTICE, cut, random_cut


def test_a_cut_is_the_window_of_the_10_m_tile():
    sample = open_source("procedural", samples=2, tile=64, modalities=("S2L2A",))[0]
    window = cut(sample, 12, 18, 34)
    whole = to_10m("S2L2A", sample.rasters["S2L2A"]).grids[10]
    part = to_10m("S2L2A", window.rasters["S2L2A"]).grids[10]
    assert np.array_equal(part, whole[:, 12:46, 18:52])
    a, _, c, _, e, f = sample.transform
    assert window.transform[2] == c + 18 * a and window.transform[5] == f + 12 * e
    assert sample.shape == (64, 64) and window.shape == (34, 34)


def test_random_cuts_lie_on_the_lattice_and_reach_the_far_edge():
    sample = open_source("procedural", samples=1, tile=60, modalities=("S1RTC",))[0]
    rng = np.random.default_rng(0)
    corners = {random_cut(sample, 48, rng).transform[2] - sample.transform[2] for _ in range(60)}
    assert corners == {10.0 * LATTICE * i for i in range(3)}
    assert random_cut(sample, 60, rng) is sample
