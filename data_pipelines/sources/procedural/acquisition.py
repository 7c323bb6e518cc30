"""When the satellites pass: dates, the sun's place, the radar's look, and the season on the ground."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.procedural.places import Place
from data_pipelines.sources.procedural.world import temperature

_FIRST, _LAST = np.datetime64("2017-01-01"), np.datetime64("2024-12-31")
_LOWEST_SUN = 72.0  # largest zenith angle that archives hold much of


@dataclass(frozen=True)
class Season:
    """State of the ground on one day, or on many at once: arrays of one shape, () or (days,).

    Attributes:
        day: of the year.
        warmth: degrees Celsius.
        green: share of ground between trees that green plants cover where soil and rain are average.
    """

    day: np.ndarray
    warmth: np.ndarray
    green: np.ndarray


@dataclass(frozen=True)
class Acquisition:
    """One pass of each satellite.

    Attributes:
        optical_time, radar_time: UTC; the radar passes within three days of the optical sensor.
        day: of the year of the optical pass.
        sun_zenith, sun_azimuth: degrees, azimuth clockwise from north.
        incidence: of the radar beam on level ground, degrees.
        look: azimuth that the beam travels to, degrees clockwise from north.
        warmth: degrees Celsius.
        leaves: share of the leaves on deciduous trees.
        green: share of ground between trees that green plants cover where soil and rain are average.
    """

    optical_time: np.datetime64
    radar_time: np.datetime64
    day: float
    sun_zenith: float
    sun_azimuth: float
    incidence: float
    look: float
    warmth: float
    leaves: float
    green: float

    @property
    def season(self) -> Season:
        """What the ground depends on."""
        return Season(np.asarray(self.day), np.asarray(self.warmth), np.asarray(self.green))


def seasons(passes: Sequence[Acquisition]) -> Season:
    """The seasons of several passes as one."""
    return Season(*(np.array([getattr(seen, name) for seen in passes]) for name in ("day", "warmth", "green")))


def acquire(rng: np.random.Generator, place: Place) -> Acquisition:
    """Draw the passes over a place: Sentinel-2 at 10:30 local solar time of a day with enough sun.

    Args:
        rng: of the layer "acquisition".
        place: where.
    """
    days = _FIRST + rng.integers(0, int((_LAST - _FIRST).astype(int)) + 1, 8)
    of_year = (days - days.astype("datetime64[Y]")).astype(int) + 1
    suns = [sun_position(place.lat, float(day)) for day in of_year]
    pick = next((i for i, sun in enumerate(suns) if sun[0] < _LOWEST_SUN), int(np.argmin([sun[0] for sun in suns])))
    day = float(of_year[pick])
    seconds = int((10.5 - place.lon / 15) * 3600 + rng.normal(0, 900))
    optical = days[pick].astype("datetime64[s]") + np.timedelta64(seconds, "s")
    ascending = rng.random() < 0.5
    apart = np.timedelta64(int(rng.integers(-3, 4)), "D")
    dawn = int(((18.0 if ascending else 6.0) - place.lon / 15) * 3600)
    radar = (days[pick] + apart).astype("datetime64[s]") + np.timedelta64(dawn, "s")
    warmth = temperature(place.lat, place.altitude, day, place.climate.swing) + float(rng.normal(0, 2.5))
    leaves, green = growing_season(place, day, warmth)
    look = 80.0 if ascending else 280.0
    incidence = float(rng.uniform(31, 45))
    return Acquisition(optical, radar, day, *suns[pick], incidence, look, warmth, leaves, green)


def sun_position(lat: float, day: float) -> tuple[float, float]:
    """Zenith and azimuth of the sun at 10:30 local solar time, degrees, on a day of the year."""
    zenith, azimuth = sun_positions(lat, np.asarray(day))
    return min(float(zenith), 84.0), float(azimuth)


def sun_positions(lat: float, day: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`sun_position` on many days, the sun as low as it stands."""
    declination = np.deg2rad(-23.44) * np.cos(2 * np.pi * (day + 10) / 365.25)
    latitude, hour = np.deg2rad(lat), np.deg2rad(-22.5)
    up = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour)
    east = -np.cos(declination) * np.sin(hour)
    north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * np.cos(declination) * np.cos(hour)
    zenith = np.rad2deg(np.arccos(np.clip(up, -1, 1)))
    return zenith, np.rad2deg(np.arctan2(east, north)) % 360


def growing_season(place: Place, day: float, warmth: float) -> tuple[float, float]:
    """Leaves on the trees and greenness of the ground, 0 to 1."""
    growth = 1 / (1 + np.exp(-(warmth - 7.0) / 2.5))
    moist = 1.0
    if place.climate.wet_season:
        peak = place.climate.wet_season + (0 if place.lat >= 0 else 182)
        rain = 0.5 + 0.5 * np.cos(2 * np.pi * (day - peak) / 365.25)
        moist = 1 - 0.85 * np.clip(abs(place.lat) / 10, 0.3, 1) * (1 - rain)
    leaves = (0.35 + 0.65 * moist) / (1 + np.exp(-(warmth - 8.0) / 1.5))
    return float(leaves), float(growth * moist * (1 - 0.8 * place.aridity))
