from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.radiometry import to_10m
from data_pipelines.recipes.tiles import tile_arrays
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import open_source
from data_pipelines.transforms.cuts import LATTICE, cut, lattice_phase, random_cut


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


def off_lattice(down: int, right: int, size: int = 72) -> tuple[Sample, Sample]:
    """A sample on native grids, and what is left of it at 10 m without its first rows and columns."""
    whole = open_source("procedural", samples=1, tile=size, modalities=("S2L2A", "S1RTC"))[0]
    fine = {name: to_10m(name, raster) for name, raster in whole.rasters.items()}
    rasters = {name: Raster({10: r.grids[10][:, down:, right:]}, r.unit, r.time) for name, r in fine.items()}
    return whole, replace(whole, rasters=rasters)


@pytest.mark.parametrize("down, right", [(0, 0), (2, 0), (5, 3), (1, 4)])
def test_samples_off_the_60_m_lattice_are_cut_on_it(down, right):
    whole, sample = off_lattice(down, right)
    assert lattice_phase(sample) == (-down % LATTICE, -right % LATTICE) and lattice_phase(whole) == (0, 0)
    tile = random_cut(sample, 60, np.random.default_rng(1))
    arrays = tile_arrays(tile, ("S2L2A", "S1RTC"), 60)
    moved = (tile.transform[2] - sample.transform[2]) / 10, -(tile.transform[5] - sample.transform[5]) / 10
    expected = tile_arrays(cut(whole, int(moved[1]) + down, int(moved[0]) + right, 60), ("S2L2A", "S1RTC"), 60)
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)


def test_a_sample_without_room_to_move_onto_the_lattice_is_named():
    _, sample = off_lattice(5, 3)  # 67 x 69 pixels that begin 1 x 3 pixels before the next whole ones
    with pytest.raises(DataError, match=r"begins 1 x 3 pixels off the 60 m lattice, .*data.tile=66 or less"):
        random_cut(sample, 67, np.random.default_rng(0))
    assert tile_arrays(random_cut(sample, 66, np.random.default_rng(0)), ("S2L2A",), 66)["S2L2A/60"].shape[-1] == 11


def test_bands_that_are_no_copies_and_nan_are_refused_by_name():
    _, sample = off_lattice(0, 0)
    blurred = sample.rasters["S2L2A"].grids[10].copy()
    blurred[5] += np.arange(72, dtype=np.int16)
    raster = sample.rasters["S2L2A"]
    bad = replace(sample, rasters={"S2L2A": Raster({10: blurred}, raster.unit, raster.time)})
    with pytest.raises(DataError, match=rf"sample {sample.key}: S2L2A band B06 is not a 2 x 2 copy"):
        tile_arrays(bad, ("S2L2A",), 72)
    radar = sample.rasters["S1RTC"].grids[10].copy()
    radar[1, :9, :8] = np.nan
    bad = replace(sample, rasters={"S1RTC": Raster({10: radar}, sample.rasters["S1RTC"].unit)})
    with pytest.raises(DataError, match=rf"sample {sample.key}: S1RTC has no data \(NaN\) in 1.39% of band VH"):
        tile_arrays(bad, ("S1RTC",), 72)
