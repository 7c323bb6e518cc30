"""What the materials of the ground look like: reflectance in the Sentinel-2 bands and C-band backscatter.

Reflectances are round values of the kind that spectral libraries (USGS, ECOSTRESS) and canopy models (PROSAIL) give
for these materials at the Sentinel-2 wavelengths; backscatter is gamma nought of the kind published for C band at
30 to 45 degrees of incidence. They are starting points: every sample bends them.
"""

from dataclasses import dataclass

import numpy as np

from data_pipelines.modalities import modality
from data_pipelines.sources.procedural.places import Place

BANDS = modality("S2L1C").band_names
WAVELENGTH = np.array([band.wavelength for band in modality("S2L1C").bands], np.float32)

#                        B01    B02    B03    B04    B05    B06    B07    B08    B8A    B09    B10    B11    B12
_REFLECTANCE = {
    "green canopy":     (0.022, 0.028, 0.062, 0.034, 0.098, 0.310, 0.400, 0.425, 0.445, 0.450, 0.300, 0.215, 0.095),
    "broadleaf":        (0.016, 0.018, 0.036, 0.020, 0.066, 0.215, 0.265, 0.282, 0.297, 0.300, 0.200, 0.135, 0.057),
    "needleleaf":       (0.013, 0.015, 0.026, 0.018, 0.043, 0.125, 0.155, 0.168, 0.178, 0.182, 0.120, 0.078, 0.034),
    "leafless":         (0.035, 0.042, 0.060, 0.075, 0.098, 0.130, 0.148, 0.163, 0.176, 0.185, 0.180, 0.205, 0.130),
    "straw":            (0.052, 0.068, 0.105, 0.148, 0.185, 0.212, 0.236, 0.256, 0.278, 0.290, 0.340, 0.345, 0.245),
    "loam":             (0.058, 0.072, 0.105, 0.148, 0.172, 0.190, 0.207, 0.222, 0.240, 0.250, 0.300, 0.325, 0.265),
    "red soil":         (0.042, 0.050, 0.082, 0.155, 0.190, 0.215, 0.235, 0.250, 0.268, 0.280, 0.330, 0.350, 0.290),
    "dark soil":        (0.032, 0.038, 0.053, 0.070, 0.082, 0.094, 0.105, 0.116, 0.128, 0.135, 0.160, 0.185, 0.148),
    "sand":             (0.125, 0.170, 0.250, 0.335, 0.365, 0.380, 0.395, 0.410, 0.425, 0.430, 0.480, 0.520, 0.480),
    "rock":             (0.090, 0.105, 0.130, 0.150, 0.160, 0.168, 0.175, 0.182, 0.190, 0.195, 0.210, 0.225, 0.200),
    "bright roof":      (0.200, 0.225, 0.260, 0.290, 0.305, 0.320, 0.330, 0.340, 0.345, 0.350, 0.350, 0.350, 0.310),
    "asphalt":          (0.062, 0.072, 0.088, 0.100, 0.108, 0.118, 0.126, 0.133, 0.140, 0.145, 0.150, 0.158, 0.142),
    "clear water":      (0.022, 0.022, 0.018, 0.009, 0.007, 0.005, 0.005, 0.004, 0.004, 0.003, 0.001, 0.002, 0.001),
    "silt water":       (0.045, 0.058, 0.092, 0.085, 0.074, 0.038, 0.036, 0.028, 0.022, 0.018, 0.003, 0.006, 0.004),
    "algal water":      (0.020, 0.024, 0.046, 0.022, 0.034, 0.020, 0.020, 0.015, 0.013, 0.010, 0.002, 0.004, 0.002),
    "fresh snow":       (0.930, 0.940, 0.940, 0.930, 0.915, 0.900, 0.890, 0.870, 0.850, 0.790, 0.300, 0.110, 0.085),
    "old snow":         (0.700, 0.720, 0.720, 0.690, 0.660, 0.620, 0.590, 0.550, 0.520, 0.440, 0.080, 0.045, 0.035),
}  # fmt: skip

MATERIALS = ("grass", "tree", "litter", "soil", "dark soil", "roof", "asphalt", "water", "silt", "snow")
"""What covers a pixel, in fractions; each sample mixes its own version of each from the table."""

GRASS, TREE, LITTER, SOIL, DARK_SOIL, ROOF, ASPHALT, WATER_BODY, SILT, SNOW_COVER = range(len(MATERIALS))

_SCATTER = np.array([0.10, 0.13, 0.10, 0.13, 0.10, 0.15, 0.15, 0.25, 0.30, 0.05], np.float32)  # log brightness
_TILT = np.array([0.05, 0.05, 0.06, 0.10, 0.08, 0.08, 0.05, 0.15, 0.12, 0.02], np.float32)  # log slope over wavelength

_BACKSCATTER = {  # VV, VH in dB
    "grass": (-11.8, -17.8), "tree": (-7.6, -13.3), "litter": (-12.4, -18.8), "soil": (-13.8, -22.0),
    "dark soil": (-10.5, -19.0), "roof": (-1.5, -9.0), "asphalt": (-15.5, -24.0), "snow": (-11.0, -18.5),
}  # fmt: skip


def _mix(shares: dict[str, float]) -> np.ndarray:
    total = sum(shares.values())
    return sum(np.asarray(_REFLECTANCE[name], np.float32) * np.float32(s / total) for name, s in shares.items())  # type: ignore[return-value]


@dataclass(frozen=True)
class Palette:
    """One sample's spectra of `MATERIALS`, as they change with the season.

    Attributes:
        base: (10, 13) surface reflectance, the rows of trees and snow unset.
        bend: (10, 13) by which this sample's materials differ from the table's.
        conifers: share of needle-leaved trees.
        old_snow: parts of old snow to those of fresh snow.
    """

    base: np.ndarray
    bend: np.ndarray
    conifers: float
    old_snow: float

    def at(self, leaves: float, warmth: float) -> np.ndarray:
        """(10, 13) surface reflectance.

        Args:
            leaves: share of the leaves that deciduous trees carry, 0 to 1.
            warmth: degrees Celsius; old snow when it thaws.
        """
        deciduous = 1 - self.conifers
        now = self.base.copy()
        now[TREE] = _mix({"needleleaf": self.conifers, "broadleaf": deciduous * leaves + 1e-3,
                          "leafless": deciduous * (1 - leaves)})  # fmt: skip
        now[SNOW_COVER] = _mix(
            {"fresh snow": float(np.clip(0.75 - 0.12 * (warmth + 2), 0.05, 1)), "old snow": self.old_snow}
        )
        return np.minimum(now * self.bend, np.float32(0.98))


def draw_palette(rng: np.random.Generator, place: Place) -> Palette:
    """This sample's spectra.

    Args:
        rng: of the layer "spectra".
        place: biome, aridity and kind of water.
    """
    conifers = float(np.clip(place.climate.conifers + rng.normal(0, 0.25), 0, 1))
    dry = place.aridity
    base = np.stack([
        _mix({"green canopy": 1.0, "broadleaf": rng.uniform(0, 0.6)}),
        np.zeros(len(BANDS), np.float32),
        _mix({"straw": 1.0, "leafless": rng.uniform(0.1, 1.0)}),
        _mix({"loam": rng.gamma(1.0), "red soil": rng.gamma(0.5), "sand": rng.gamma(0.1 + 0.7 * dry),
              "rock": rng.gamma(0.05 + 0.3 * dry + min(place.relief / 150, 1))}),
        _mix({"dark soil": 1.0, "red soil": rng.uniform(0, 0.5)}),
        _mix({"bright roof": 1.0, "red soil": rng.uniform(0, 0.8), "asphalt": rng.uniform(0, 0.6)}),
        _mix({"asphalt": 1.0, "dark soil": rng.uniform(0, 0.3)}),
        _mix({"clear water": 1.0, "algal water": rng.gamma(0.5), "silt water": rng.gamma(0.2)}),
        _mix({"silt water": 1.0, "algal water": rng.gamma(0.3)}),
        np.zeros(len(BANDS), np.float32),
    ])  # fmt: skip
    old_snow = rng.uniform(0.05, 0.5)
    slope = np.log(WAVELENGTH / 0.8).astype(np.float32)
    bend = _SCATTER * rng.standard_normal(len(MATERIALS), dtype=np.float32)
    tilt = _TILT * rng.standard_normal(len(MATERIALS), dtype=np.float32)
    return Palette(base, np.exp(bend[:, None] + tilt[:, None] * slope), conifers, old_snow)


def backscatter_palette(rng: np.random.Generator, place: Place, warmth: float) -> np.ndarray:
    """This sample's gamma nought of `MATERIALS` in VV and VH: (10, 2) linear power.

    Water follows the wind, soil its moisture and roughness, trees their biome; dry snow is transparent, wet snow dark.

    Args:
        rng: of the layer "radar".
        place: biome, aridity and kind of water.
        warmth: degrees Celsius.
    """
    wind = min(rng.weibull(2.0) * (7.0 if place.water_kind >= 2 else 4.0), 16.0)
    water = (-25.5 + 11.0 * np.log10(1 + wind), -31.0 + 6.0 * np.log10(1 + wind))
    decibel = np.array([_BACKSCATTER.get(name, water) for name in MATERIALS], np.float32)
    decibel += rng.normal(0, [[1.0], [0.7], [1.0], [1.5], [1.5], [1.5], [1.0], [0.3], [0.6], [1.5]]).astype(np.float32)
    decibel[:, 1] += rng.normal(0, 0.5, len(MATERIALS)).astype(np.float32)
    decibel[[SOIL, DARK_SOIL, LITTER]] += np.float32(rng.normal(1.0, 1.5) - 2.5 * place.aridity)
    decibel[TREE] -= np.float32(1.8 * place.climate.conifers)
    if warmth > 0:
        decibel[SNOW_COVER] -= np.float32(5.0)
    elif place.climate.name == "ice":
        decibel[SNOW_COVER] += np.float32(rng.uniform(0, 6))  # ice lenses of the percolation zone
    return 10 ** (decibel / np.float32(10))
