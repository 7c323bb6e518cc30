"""Universal Transverse Mercator coordinates of a point, without a projection library."""

import numpy as np

_RADIUS, _FLATTENING, _SCALE = 6378137.0, 1 / 298.257223563, 0.9996  # WGS 84


def utm_zone(lon: float, lat: float) -> int:
    """EPSG code of the plain six-degree zone (without the exceptions about Norway)."""
    zone = min(int((lon + 180) % 360 // 6) + 1, 60)
    return (32600 if lat >= 0 else 32700) + zone


def to_utm(lon: float, lat: float, epsg: int) -> tuple[float, float]:
    """Easting and northing in metres, to a millimetre within the zone.

    Source: Krueger's series to the third order in the third flattening (Karney 2011, equations 7 to 12 and 35).
    """
    n = _FLATTENING / (2 - _FLATTENING)
    radius = _RADIUS / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    alpha = (n / 2 - 2 * n**2 / 3 + 5 * n**3 / 16, 13 * n**2 / 48 - 3 * n**3 / 5, 61 * n**3 / 240)
    longitude = np.deg2rad((lon - (epsg % 100 * 6 - 183) + 180) % 360 - 180)
    sine, e = np.sin(np.deg2rad(lat)), 2 * np.sqrt(n) / (1 + n)
    conformal = np.sinh(np.arctanh(sine) - e * np.arctanh(e * sine))
    xi = np.arctan2(conformal, np.cos(longitude))
    eta = np.arctanh(np.sin(longitude) / np.hypot(1, conformal))
    north = xi + sum(a * np.sin(2 * j * xi) * np.cosh(2 * j * eta) for j, a in enumerate(alpha, 1))
    east = eta + sum(a * np.cos(2 * j * xi) * np.sinh(2 * j * eta) for j, a in enumerate(alpha, 1))
    false_north = 0.0 if epsg < 32700 else 10_000_000.0
    return float(500_000 + _SCALE * radius * east), float(false_north + _SCALE * radius * north)


def corner_on_lattice(lon: float, lat: float, epsg: int, pixels: int) -> tuple[float, float]:
    """Upper left corner of a square of `pixels` at 10 m about a point, moved to the nearest multiple of 60 m."""
    easting, northing = to_utm(lon, lat, epsg)
    half = pixels * 5
    return round((easting - half) / 60) * 60.0, round((northing + half) / 60) * 60.0
