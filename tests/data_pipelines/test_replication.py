import numpy as np
import pytest
from fakes import plausible
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import radiometry
from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit, modality
from data_pipelines.replication import coarse_pixels, native_or_fine
from data_pipelines.sample import Raster


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 3, 6]), st.sampled_from(["i2", "f2", "u1", "f8"]))
@settings(max_examples=60, deadline=None)
def test_blocks_are_seen_and_one_stray_pixel_too(height, width, step, dtype):
    rng = np.random.default_rng([height, width, step])
    coarse = rng.permutation(-(-height // step) * -(-width // step)).reshape(-(-height // step), -1)
    fine = coarse.repeat(step, 0).repeat(step, 1)[:height, :width].astype(dtype)
    assert np.array_equal(coarse_pixels(fine, step), coarse.astype(dtype))
    assert coarse_pixels(np.stack([fine, fine]), step).shape == (2, *coarse.shape)
    y, x = rng.integers(height), rng.integers(width)
    stray = fine.copy()
    stray[y, x] += 1
    alone = (y // step, x // step) == ((height - 1) // step, (width - 1) // step)
    if not (alone and (height - 1) % step == 0 == (width - 1) % step):  # a block of one pixel may hold anything
        assert coarse_pixels(stray, step) is None


@pytest.mark.parametrize("name", ["S2L1C", "S2L2A"])
@pytest.mark.parametrize("pixels", [24, 37, 264])
def test_it_agrees_with_the_strict_conversion(name, pixels):
    raster = Raster({10: plausible(name, pixels)}, Unit.DN10000)
    native = native_or_fine(name, raster)
    strict = radiometry.to_native_grids(name, raster)
    assert {g: a.tolist() for g, a in native.grids.items()} == {g: a.tolist() for g, a in strict.grids.items()}
    assert all(grid.flags.c_contiguous for grid in native.grids.values())
    for band, place in (("B09", (-1, -2)), ("B12", (1, 0))):
        spoilt = raster.grids[10].copy()
        spoilt[(modality(name).band_index(band), *place)] += 1
        if pixels != 37:  # where cut-off blocks are one pixel wide at the edge
            assert native_or_fine(name, Raster({10: spoilt}, Unit.DN10000)).grids.keys() == {10}
            with pytest.raises(DataError, match=band):
                radiometry.to_native_grids(name, Raster({10: spoilt}, Unit.DN10000))


def test_series_and_single_grids():
    series = np.stack([plausible("S2L2A", 12, seed) for seed in range(3)])
    assert native_or_fine("S2L2A", Raster({10: series}, Unit.DN10000)).grids[60].shape == (3, 2, 2, 2)
    radar = Raster({10: plausible("S1RTC", 12)}, Unit.DB)
    assert native_or_fine("S1RTC", radar) is radar
