import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.modalities import Unit
from data_pipelines.sample import Raster
from data_pipelines.transforms.series import acquisition_times, evenly_spaced, random_frames, random_sub_series

DAYS = np.datetime64("2020-01-01", "s") + np.arange(0, 360, 12) * np.timedelta64(86400, "s")


def raster(frames: int, time) -> Raster:
    return Raster({10: np.zeros((frames, 2, 3, 3), np.float16)}, Unit.DB, time)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.integers(0, 5))
def test_views_see_some_frames_in_order_once_each(seed, count, frames, jitter):
    series = random_sub_series(np.random.default_rng(seed), DAYS[:count], 3, frames, jitter)
    assert series.frames.shape == series.days.shape == series.present.shape == (3, frames)
    assert (series.present.sum(1) == min(count, frames)).all()
    for places, days, present in zip(series.frames, series.days, series.present, strict=True):
        assert (np.diff(places[present]) > 0).all() and places.max() < count
        assert not places[~present].any() and not days[~present].any()
        away = (days[present] - 12 * places[present] + 180) % 366 - 180
        assert (np.abs(away) <= jitter + 1).all()


def test_views_draw_apart_and_every_frame_has_its_turn():
    series = random_sub_series(np.random.default_rng(0), DAYS, 200, 5)
    assert len({row.tobytes() for row in series.frames}) > 190
    assert np.bincount(series.frames.ravel(), minlength=len(DAYS)).min() > 15


def test_leap_days_have_a_number():
    days = np.array(["2020-12-31", "2021-12-31"], "datetime64[s]")
    assert random_sub_series(np.random.default_rng(0), days, 1, 2).days.tolist() == [[365, 364]]


def test_no_frames_give_views_that_see_nothing():
    series = random_sub_series(np.random.default_rng(0), np.zeros(0, "datetime64[s]"), 2, 3)
    assert not series.present.any() and series.frames.shape == (2, 3)


def test_frames_are_thinned_evenly_or_at_random():
    assert evenly_spaced(9, 5).tolist() == [0, 2, 4, 6, 8]
    assert evenly_spaced(3, 5).tolist() == [0, 1, 2]
    drawn = random_frames(np.random.default_rng(0), 40, 10)
    assert len(set(drawn.tolist())) == 10 and (np.diff(drawn) > 0).all()


@pytest.mark.parametrize(
    ("frames", "time", "message"),
    [
        (2, None, "sample k: S1GRD has no date for every frame"),
        (2, np.array(["2020-01-01", "NaT"], "datetime64[s]"), "no date for every frame"),
        (3, DAYS[:2], "S1GRD has 2 dates for 3 frames"),
        (2, DAYS[[1, 0]], "S1GRD is out of order, 2020-01-01T00:00:00 comes after 2020-01-13T00:00:00; sort"),
    ],
)
def test_series_with_wrong_dates_are_named(frames, time, message):
    with pytest.raises(DataError, match=message):
        acquisition_times("k", "S1GRD", raster(frames, time))


def test_a_single_image_is_a_series_of_one():
    single = Raster({10: np.zeros((2, 3, 3), np.float16)}, Unit.DB, DAYS[3])
    assert acquisition_times("k", "S1GRD", single).tolist() == DAYS[3:4].tolist()
