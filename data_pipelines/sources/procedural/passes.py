"""When the satellites pass over a year: dates with gaps, two radar orbits, one day for the high-resolution image."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural.acquisition import Acquisition, growing_season, sun_position, sun_positions
from data_pipelines.sources.procedural.places import Place
from data_pipelines.sources.procedural.world import temperature

_FIRST, _LAST = np.datetime64("2017-01-01"), np.datetime64("2023-12-31")  # of the days on which a year begins
_YEAR = 365
_LOWEST_SUN = 72.0  # largest zenith angle of Sentinel-2 pictures, as archives have them
_FEWEST = 0.75  # of the frames asked for, where gaps leave some out
_REVISIT_OPTICAL, _REVISIT_RADAR = 5, 12  # days
_ASCENDING, _DESCENDING = (18.0, 80.0), (6.0, 280.0)  # local solar time, azimuth of the look


@dataclass(frozen=True)
class Passes:
    """The acquisitions of one sample, in order of time.

    Attributes:
        optical: of Sentinel-2.
        radar: of Sentinel-1.
        ascending: (radar passes,) bool, which orbit each belongs to.
        image: of the high-resolution satellite: a clear day with high sun, green where the place ever is.
    """

    optical: list[Acquisition]
    radar: list[Acquisition]
    ascending: np.ndarray
    image: Acquisition


def draw_passes(rng: np.random.Generator, place: Place, optical: int, radar: int) -> Passes:
    """Draw a year of passes.

    Sentinel-2 comes every five days, Sentinel-1 every twelve on each of its orbits. Low sun, an outage of weeks and
    lost scenes leave gaps; of what remains an archive holds 75 to 100 % of the frames asked for.

    Args:
        rng: of the layer "passes".
        place: where.
        optical, radar: most frames of either series, at least one each.
    """
    first = _FIRST + rng.integers(0, int((_LAST - _FIRST).astype(int)) + 1)
    outage = int(rng.integers(0, _YEAR)), min(rng.exponential(25), 90)
    days = np.arange(rng.integers(_REVISIT_OPTICAL), _YEAR, _REVISIT_OPTICAL)
    high = sun_positions(place.lat, _of_year(first + days))[0]
    days = days[high < _LOWEST_SUN] if (high < _LOWEST_SUN).sum() >= 3 else days[np.argsort(high)[: len(days) // 3]]
    kept = _keep(rng, np.sort(days), outage, optical)
    wobble = rng.normal(0, 900, len(kept))
    optical_passes = [
        _acquisition(rng, place, first + day, 10.5, float(shift), 0.0, 0.0)
        for day, shift in zip(kept, wobble, strict=True)
    ]
    radar_passes, ascending = _radar_passes(rng, place, first, outage, radar)
    return Passes(optical_passes, radar_passes, ascending, _fine_day(rng, place, first))


def _radar_passes(
    rng: np.random.Generator, place: Place, first: np.datetime64, outage: tuple[int, float], frames: int
) -> tuple[list[Acquisition], np.ndarray]:
    """Passes of one or both orbits; each orbit looks at the place under its own angle, always the same."""
    incidence = rng.uniform(31, 45, 2)
    starts = rng.integers(0, _REVISIT_RADAR, 2)
    single = rng.random() < 0.2
    orbits = [int(rng.integers(2))] if single else [0, 1]
    days = np.concatenate([np.arange(starts[orbit], _YEAR, _REVISIT_RADAR) for orbit in orbits])
    orbit_of = np.concatenate([np.full(len(range(starts[o], _YEAR, _REVISIT_RADAR)), o) for o in orbits])
    # Two passes of one day stay apart: the descending one is at dawn.
    slot = days * 2 + (orbit_of == 0)
    kept = _keep(rng, np.sort(slot), (2 * outage[0], 2 * outage[1]), frames)
    passes = []
    for at in kept:
        hour, look = _ASCENDING if at % 2 else _DESCENDING
        angle = float(incidence[0 if at % 2 else 1])
        passes.append(_acquisition(rng, place, first + at // 2, hour, 0.0, angle, look))
    return passes, kept % 2 == 1


def _keep(rng: np.random.Generator, days: np.ndarray, outage: tuple[int, float], frames: int) -> np.ndarray:
    """Which of the possible days an archive holds: at most `frames`, in order."""
    usable = days[(rng.random(len(days)) < 0.75) & ~((days >= outage[0]) & (days < outage[0] + outage[1]))]
    wanted = max(1, round(frames * rng.uniform(_FEWEST, 1.0)))
    if len(usable) < wanted:  # an archive that lost much: what was dropped comes back
        usable = days
    return np.sort(rng.permutation(usable)[:wanted])


def _fine_day(rng: np.random.Generator, place: Place, first: np.datetime64) -> Acquisition:
    choices = first + rng.integers(0, _YEAR, 6)
    zenith = sun_positions(place.lat, _of_year(choices))[0]
    return _acquisition(rng, place, choices[int(np.argmin(zenith))], 10.5, 0.0, 0.0, 0.0)


def _acquisition(
    rng: np.random.Generator,
    place: Place,
    date: np.datetime64,
    hour: float,
    late: float,
    incidence: float,
    look: float,
) -> Acquisition:
    """One pass at a local solar time, `late` by some seconds."""
    day = float(_of_year(np.asarray(date)))
    seconds = np.timedelta64(int((hour - place.lon / 15) * 3600 + late), "s")
    time = date.astype("datetime64[s]") + seconds
    warmth = temperature(place.lat, place.altitude, day, place.climate.swing) + float(rng.normal(0, 2.5))
    leaves, green = growing_season(place, day, warmth)
    return Acquisition(time, time, day, *sun_position(place.lat, day), incidence, look, warmth, leaves, green)


def _of_year(dates: np.ndarray) -> np.ndarray:
    """Days of the year from 1, float64."""
    return (dates - dates.astype("datetime64[Y]")).astype(np.float64) + 1
