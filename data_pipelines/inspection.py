"""What one sample shows of its radiometry, units, bands, gaps and doubles; `audit` puts many together."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data_pipelines import fingerprints
from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, MODALITIES, Unit
from data_pipelines.offsets import OFFSET, PRODUCTS, Offset, bands, find_offsets, frames, index_error
from data_pipelines.radiometry import check_plausible
from data_pipelines.sample import Raster, Sample

NOT_CARRIED = "only Sentinel-2's digital numbers can carry one"
"""Why other modalities have no offset."""

RADAR = ("S1GRD", "S1RTC")
"""Flavours of radar: a sample has one of them."""

_OPTICAL = ("S2L1C", "S2L2A", "S2RGB", "NDVI")
_APART = np.timedelta64(10, "D")  # more than this between radar and optical image is worth a word
_INDEX_ERROR = 0.02  # of a stored NDVI: above what rounding to float16 and DN does
_ZONES = 60
_LATTICE = 60  # metres: tiles whose corners are closer are of one place


@dataclass(frozen=True)
class ModalityFinding:
    """What was found of one raster.

    Attributes:
        offsets: of each frame; empty where the modality cannot carry one.
        unit: that the numbers look like; None where there are none.
        replicated: whether coarse bands are copies of native pixels; None where there are no coarse bands.
        flags: each a word, a colon and what exactly.
        evidence: figures that the finding rests on.
        note: why there is no offset to speak of.
    """

    offsets: tuple[Offset, ...] = ()
    unit: Unit | None = None
    replicated: bool | None = None
    flags: tuple[str, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)
    note: str = NOT_CARRIED

    @property
    def offset(self) -> int | None:
        """Offset of all frames; None where they differ or one is unknown."""
        values = {one.value for one in self.offsets}
        return values.pop() if len(values) == 1 else None

    @property
    def reason(self) -> str:
        """Why `offset` is None; "" where it is not."""
        if self.offset is not None:
            return ""
        if not self.offsets:
            return self.note
        values = [one.value for one in self.offsets]
        if len(set(values)) > 1:
            return f"frames differ: {', '.join('unknown' if value is None else str(value) for value in values)}"
        return self.offsets[0].reason

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        entry: dict[str, Any] = {"offset": self.offset}
        if self.offset is None:
            entry["reason"] = self.reason
        entry |= {"unit": self.unit and self.unit.value, "flags": list(self.flags)}
        if len(self.offsets) > 1:
            entry["frames"] = [one.value for one in self.offsets]
        if self.replicated is not None:
            entry["replicated"] = self.replicated
        return entry | {"evidence": {name: rounded(value) for name, value in self.evidence.items()}}


@dataclass(frozen=True)
class SampleFinding:
    """What was found of one sample.

    Attributes:
        key: of the sample.
        modalities: name -> finding.
        flags: of the sample as a whole.
        lon, lat: centre, degrees; NaN where unknown.
        time: of the first optical image, else of any.
        place: what two tiles of one place share; None where unknown.
        digest: of the pixels; None where nothing could be read.
        land_cover: pixels of each class of `modalities.LAND_COVER`; None without LULC.
    """

    key: str
    modalities: Mapping[str, ModalityFinding]
    flags: tuple[str, ...] = ()
    lon: float = float("nan")
    lat: float = float("nan")
    time: np.datetime64 | None = None
    place: tuple[int, ...] | None = None
    digest: str | None = None
    land_cover: np.ndarray | None = None

    @property
    def all_flags(self) -> list[str]:
        """Flags of the sample and of its modalities, which are named."""
        return [*self.flags, *(f"{name} {flag}" for name, one in self.modalities.items() for flag in one.flags)]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "key": self.key,
            "lon": rounded(self.lon, 6),
            "lat": rounded(self.lat, 6),
            "time": None if self.time is None else str(self.time),
            "modalities": {name: one.as_json() for name, one in self.modalities.items()},
            "flags": list(self.flags),
        }


def inspect(sample: Sample, known: Mapping[str, Sequence[str]] | None = None) -> SampleFinding:
    """Look at one sample.

    Args:
        sample: as read.
        known: modality -> flags that reading it gave; of modalities that could not be read at all, too.
    """
    known = known or {}
    sound, modalities = {}, {}
    for name in MODALITIES:
        if name in sample.rasters:
            finding = _inspect_raster(name, sample.rasters[name])
            modalities[name] = replace(finding, flags=(*known.get(name, ()), *finding.flags))
            if finding.unit is sample.rasters[name].unit:
                sound[name] = sample.rasters[name]
        elif name in known:
            modalities[name] = ModalityFinding(flags=tuple(known[name]), note="it cannot be read")
    healthy = replace(sample, rasters=sound)
    for name, found in find_offsets(_optical_numbers(healthy)).items():
        finding = replace(modalities[name], offsets=found)
        raised = [f"offset: {OFFSET} to take off"] if any(one.value for one in found) else []
        evidence = {**finding.evidence, **found[0].evidence}
        modalities[name] = replace(finding, flags=(*finding.flags, *raised), evidence=evidence)
    for name, flags, evidence in _across(healthy, modalities):
        finding = modalities[name]
        modalities[name] = replace(finding, flags=(*finding.flags, *flags), evidence={**finding.evidence, **evidence})
    return SampleFinding(
        key=sample.key,
        modalities=modalities,
        flags=tuple(_flags_of_whole(sample)),
        lon=sample.lon,
        lat=sample.lat,
        time=_time(sample, (*_OPTICAL, *RADAR)),
        place=_place(sample),
        digest=_digest(sample),
        land_cover=_land_cover(healthy),
    )


def _inspect_raster(name: str, raster: Raster) -> ModalityFinding:
    unit, flags = fingerprints.unit(name, raster)
    if unit is None:
        return ModalityFinding(flags=tuple(flags), note="it has no numbers to judge by")
    flags += fingerprints.no_data(name, raster)
    replicated: bool | None = None
    if unit is raster.unit:
        try:
            check_plausible(name, raster)
        except DataError as error:
            flags.append(f"range: {error}")
        flags += fingerprints.saturation(name, raster)
    if name in PRODUCTS:
        order = fingerprints.optical_order(name, raster)
        replicated, resampled = fingerprints.replicated(name, raster)
        flags += order or resampled
    elif name in RADAR:
        flags += fingerprints.radar_order(raster)
    note = f"its numbers look like {unit.value}" if unit is not raster.unit else NOT_CARRIED
    return ModalityFinding((), unit, replicated, tuple(flags), _levels(name, raster), note)


def _levels(name: str, raster: Raster) -> dict[str, float]:
    """Median of each band of radar, elevation and index: what a page of plots shows."""
    if name not in (*RADAR, "DEM", "NDVI"):
        return {}
    medians = {}
    for band, pixels in fingerprints.each_band(name, raster):
        values = pixels[np.isfinite(pixels)]
        if len(values):
            medians[f"{band.lower()}_median"] = float(np.median(values.astype(np.float32)))
    return medians


def _optical_numbers(sample: Sample) -> Sample:
    """The sample with Sentinel-2 products only where an offset can be looked for."""
    kept = {n: r for n, r in sample.rasters.items() if n not in PRODUCTS or r.unit in (Unit.DN10000, Unit.REFLECTANCE)}
    return replace(sample, rasters=kept)


def _across(
    sample: Sample, modalities: Mapping[str, ModalityFinding]
) -> Iterator[tuple[str, list[str], dict[str, float]]]:
    """What one raster says of another: order of bands, and whether the index is that of the bands."""
    rasters = sample.rasters
    if "S2L2A" not in rasters:
        return
    surface, whole = rasters["S2L2A"], modalities["S2L2A"]
    if not any(
        flag.startswith("band_order") for name in PRODUCTS if name in modalities for flag in modalities[name].flags
    ):
        if "S2L1C" in rasters and frames(rasters["S2L1C"]) == frames(surface):
            yield "S2L2A", fingerprints.pair_order(rasters["S2L1C"], surface), {}
        if "S2RGB" in rasters:
            yield "S2RGB", fingerprints.colour_order(rasters["S2RGB"], surface), {}
    if "NDVI" in rasters and frames(rasters["NDVI"]) == frames(surface) == 1:
        yield "NDVI", *_index_finding(sample, whole)


def _index_finding(sample: Sample, surface: ModalityFinding) -> tuple[list[str], dict[str, float]]:
    found, index = bands(sample, "S2L2A"), sample.rasters["NDVI"].grids[10].reshape(sample.shape)
    if found["B04"].shape != index.shape:
        return [], {}
    lift = surface.offset or 0
    as_stored = index_error(index, found["B04"], found["B08"])
    true = index_error(index, found["B04"] - lift, found["B08"] - lift)
    evidence = {"error_from_bands_as_stored": as_stored, "error": true}
    if np.isnan(true) or true <= _INDEX_ERROR:
        return [], evidence
    cause = "was made of S2L2A with its offset still on" if as_stored <= _INDEX_ERROR else "is not that of S2L2A"
    return [f"ndvi: {cause}: {true:.2f} off on average"], evidence


def _flags_of_whole(sample: Sample) -> Iterator[str]:
    optical, radar = _time(sample, _OPTICAL), _time(sample, RADAR)
    if optical is not None and radar is not None and abs(optical - radar) > _APART:
        days = abs(optical - radar).astype("timedelta64[D]").astype(int)
        yield f"times: radar and optical image are {days} days apart"
    family, zone = divmod(sample.epsg, 100)
    if family in (326, 327) and 1 <= zone <= _ZONES and np.isfinite(sample.lon):
        away = abs((sample.lon - (6 * zone - 183) + 180) % 360 - 180)
        if away > 9 or (sample.lat < -1 and family == 326 and sample.transform[5] > 9_500_000):
            yield f"place: EPSG:{sample.epsg} does not suit lon {sample.lon:.2f}, lat {sample.lat:.2f}"


def _time(sample: Sample, names: Sequence[str]) -> np.datetime64 | None:
    times = (sample.rasters[name].time for name in names if name in sample.rasters)
    return next((np.atleast_1d(np.asarray(t)).astype("datetime64[s]")[0] for t in times if t is not None), None)


def _place(sample: Sample) -> tuple[int, ...] | None:
    left, top = sample.transform[2], sample.transform[5]
    if not sample.rasters or not (np.isfinite(left) and np.isfinite(top)):
        return None
    return sample.epsg, round(left / _LATTICE), round(top / _LATTICE)


def _digest(sample: Sample) -> str | None:
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(sample.rasters):
        for gsd, grid in sorted(sample.rasters[name].grids.items()):
            digest.update(f"{name}/{gsd} {grid.dtype} {grid.shape};".encode())
            digest.update(np.ascontiguousarray(grid).view(np.uint8).data if grid.size else b"")
    return digest.hexdigest() if sample.rasters else None


def _land_cover(sample: Sample) -> np.ndarray | None:
    if "LULC" not in sample.rasters:
        return None
    classes = sample.rasters["LULC"].grids[10].reshape(-1)
    known = classes[(classes >= 0) & (classes < len(LAND_COVER))].astype(np.int64)
    return np.bincount(known, minlength=len(LAND_COVER))


def rounded(value: float, digits: int = 4) -> float | None:
    """A number for JSON; None where there is none."""
    return round(float(value), digits) if np.isfinite(value) else None
