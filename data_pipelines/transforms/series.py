"""Time series: which frames of a series are shipped, which of them a view sees, and on which days of the year."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.grid import day_of_year
from data_pipelines.sample import Raster


@dataclass(frozen=True)
class SubSeries:
    """The frames of some views, padded to a fixed number.

    Attributes:
        frames: (views, frames) int32 places in the series, in the order of their dates; 0 where padded.
        days: (views, frames) int32 days of the year, 0 to 365; 0 where padded.
        present: (views, frames) bool, False where padded.
    """

    frames: np.ndarray
    days: np.ndarray
    present: np.ndarray


def acquisition_times(key: str, name: str, raster: Raster) -> np.ndarray:
    """(frames,) datetime64[s] of a series, or of a single image taken as a series of one.

    Raises:
        DataError: naming the sample and modality, if dates are absent, of another number than frames, or out of order.
    """
    frames = [grid.shape[0] if grid.ndim == 4 else 1 for grid in raster.grids.values()]
    times = np.atleast_1d(np.asarray("NaT" if raster.time is None else raster.time, "datetime64[s]"))
    if np.isnat(times).any():
        raise DataError(f"sample {key}: {name} has no date for every frame; name or tag each file with its date")
    if {len(times)} != set(frames):
        raise DataError(f"sample {key}: {name} has {len(times)} dates for {frames[0]} frames; give one to each")
    late = np.flatnonzero(np.diff(times) < np.timedelta64(0, "s"))
    if len(late):
        raise DataError(
            f"sample {key}: {name} is out of order, {times[late[0] + 1]} comes after {times[late[0]]}; sort the frames"
        )
    return times


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Places of at most `most` frames, spread evenly over a series of `count`."""
    if count <= most:
        return np.arange(count)
    return np.round(np.linspace(0, count - 1, most)).astype(np.int64)


def random_frames(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
    """Places of at most `most` frames, drawn from a series of `count` and in order."""
    return np.arange(count) if count <= most else np.sort(rng.permutation(count)[:most])


def random_sub_series(
    rng: np.random.Generator, times: np.ndarray, views: int, frames: int, jitter: int = 0
) -> SubSeries:
    """An independent random sub-series for each view.

    Args:
        rng: source of randomness.
        times: (n,) datetime64, in order; n = 0 gives views that see nothing.
        views: number of views.
        frames: of a view; shorter series are padded.
        jitter: most days by which each date of each view is moved, earlier or later.
    """
    if not len(times):
        nothing = np.zeros((views, frames), np.int32)
        return SubSeries(nothing, nothing.copy(), np.zeros((views, frames), bool))
    order = rng.random((views, len(times))).argsort(axis=1)[:, :frames]
    chosen = np.sort(order, axis=1)
    moved = times.astype("datetime64[D]")[chosen] + rng.integers(-jitter, jitter + 1, chosen.shape)
    pad = ((0, 0), (0, frames - chosen.shape[1]))
    return SubSeries(
        np.pad(chosen, pad).astype(np.int32),
        np.pad(day_of_year(moved) - 1, pad).astype(np.int32),
        np.pad(np.ones(chosen.shape, bool), pad),
    )
