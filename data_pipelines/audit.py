"""What is wrong with a corpus: findings of every sample, and what only all of them together show.

`Audit.as_json` is what `terra-jax audit --json` writes.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.grid import cell_name, region_of
from data_pipelines.inspection import RADAR, SampleFinding, inspect, rounded
from data_pipelines.modalities import LAND_COVER, MODALITIES, Unit
from data_pipelines.offsets import OFFSET, PRODUCTS
from data_pipelines.sample import Sample
from data_pipelines.sources import Source
from data_pipelines.work import Progress, run_ahead

FORMAT, VERSION = "terra_jax.audit", 1


@runtime_checkable
class Unchecked(Protocol):
    """A source that can also hand out what it would refuse, so that an audit can say more than that it is refused."""

    def unchecked(self, i: int) -> tuple[Sample, dict[str, list[str]]]:
        """Sample `i` with all that can be read at all, and flags of what is wrong with it, by modality."""


@dataclass(frozen=True)
class Audit:
    """Findings of a corpus.

    Attributes:
        source: name of the source.
        samples: in the order of the source.
        duplicates: kind ("pixels" or "place") -> lists of keys that share it.
    """

    source: str
    samples: tuple[SampleFinding, ...]
    duplicates: Mapping[str, Sequence[Sequence[str]]]

    def summary(self) -> dict[str, Any]:
        """Counts over all samples."""
        present = [name for name in MODALITIES if any(name in s.modalities for s in self.samples)]
        located = [s for s in self.samples if np.isfinite(s.lon)]
        times = sorted(s.time for s in self.samples if s.time is not None)
        covers = [s.land_cover for s in self.samples if s.land_cover is not None]
        pixels = np.sum(covers, axis=0) if covers else np.zeros(len(LAND_COVER))
        shares = pixels / max(pixels.sum(), 1)
        flags = Counter(code for s in self.samples for code in {_code(flag) for flag in s.all_flags})
        cells = Counter(cell_name(s.lon, s.lat) for s in located if abs(s.lat) <= 85)
        return {
            "samples": len(self.samples),
            "with_flags": sum(bool(s.all_flags) for s in self.samples),
            "modalities": {name: self._of_modality(name) for name in present},
            "flags": dict(flags.most_common()),
            "land_cover": {n: rounded(v) for n, v in zip(LAND_COVER, shares, strict=True)} if covers else None,
            "duplicates": {kind: [list(keys) for keys in groups] for kind, groups in self.duplicates.items()},
            "cells": len(cells),
            "most_in_a_cell": max(cells.values(), default=0),
            "regions": len({int(region_of(s.lon, s.lat)) for s in located}),
            "bounds": _bounds(located),
            "times": [str(times[0]), str(times[-1])] if times else None,
        }

    def as_json(self) -> dict[str, Any]:
        """Plain values: what `terra-jax audit --json` writes."""
        head = {"format": FORMAT, "version": VERSION, "source": self.source}
        return {**head, "summary": self.summary(), "samples": [s.as_json() for s in self.samples]}

    def offsets(self) -> dict[str, dict[str, list[int | None]]]:
        """Key -> product -> offset of each frame, as `harmonise.harmonised` takes them."""
        return {
            s.key: {n: [o.value for o in one.offsets] for n, one in s.modalities.items() if one.offsets}
            for s in self.samples
        }

    def _of_modality(self, name: str) -> dict[str, Any]:
        found = [s.modalities[name] for s in self.samples if name in s.modalities]
        entry: dict[str, Any] = {"samples": len(found), "missing": len(self.samples) - len(found)}
        entry["unit"] = dict(Counter(one.unit.value if one.unit else "unknown" for one in found))
        if name in PRODUCTS:
            tally = Counter("unknown" if one.offset is None else str(one.offset) for one in found)
            entry["offset"] = {value: tally[value] for value in ("0", str(OFFSET), "unknown")}
            entry["resampled"] = sum(one.replicated is False for one in found)
        return entry


def audit(source: Source, *, threads: int = 4, say: Callable[[str], Any] = print) -> Audit:
    """Look at every sample of a source; what cannot be read is a finding, too.

    Args:
        source: read once, in order.
        threads: that read and look.
        say: takes lines on progress.
    """

    def look(i: int) -> SampleFinding:
        try:
            return inspect(*source.unchecked(i)) if isinstance(source, Unchecked) else inspect(source[i])
        except DataError as error:
            index = source.index
            flags = (f"unreadable: {error}",)
            return SampleFinding(str(index.keys[i]), {}, flags, float(index.lon[i]), float(index.lat[i]))

    findings = []
    with ThreadPoolExecutor(max(threads, 1)) as pool, Progress(len(source), 0, say) as progress:
        for future in run_ahead(pool, look, range(len(source)), 4 * max(threads, 1)):
            findings.append(future.result())
            progress.add(1)
    return _together(source.name, findings)


def read_offsets(path: str | Path) -> dict[str, dict[str, list[int | None]]]:
    """Offsets that `terra-jax audit --json` wrote, as `harmonise.harmonised` takes them.

    Raises:
        DataError: if the file is none of an audit.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content["format"] != FORMAT or content["version"] > VERSION:
            raise ValueError("another format")
        return {
            sample["key"]: {
                name: entry.get("frames", [entry["offset"]])
                for name, entry in sample["modalities"].items()
                if name in PRODUCTS and entry["unit"] in (Unit.DN10000.value, Unit.REFLECTANCE.value)
            }
            for sample in content["samples"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no audit of this release; write it with `terra-jax audit --json {path}`") from error


def _together(name: str, findings: Sequence[SampleFinding]) -> Audit:
    """Add what only all samples together show."""
    pixels, places = defaultdict(list), defaultdict(list)
    for finding in findings:
        if finding.digest:
            pixels[finding.digest].append(finding.key)
        if finding.place:
            places[(finding.place, finding.time)].append(finding.key)
    duplicates = {
        kind: [keys for keys in groups.values() if len(keys) > 1]
        for kind, groups in (("pixels", pixels), ("place", places))
    }
    first = {kind: {key: keys[0] for keys in groups for key in keys[1:]} for kind, groups in duplicates.items()}
    usual = {name for name in MODALITIES if any(name in finding.modalities for finding in findings)}
    whole = []
    for finding in findings:
        flags = list(finding.flags)
        if finding.modalities and (lacking := _missing(usual, set(finding.modalities))):
            flags.append(f"missing: {', '.join(lacking)}")
        if finding.key in first["pixels"]:
            flags.append(f"duplicate: the pixels of {first['pixels'][finding.key]}")
        elif finding.key in first["place"]:
            flags.append(f"duplicate: place and time of {first['place'][finding.key]}")
        whole.append(replace(finding, flags=tuple(flags)))
    return Audit(name, tuple(whole), duplicates)


def _missing(usual: set[str], there: set[str]) -> list[str]:
    """What other samples have and this one lacks; one flavour of radar stands for the other."""
    lacking = usual - there
    if there & set(RADAR):
        lacking -= set(RADAR)
    return [name for name in MODALITIES if name in lacking]


def _bounds(located: Sequence[SampleFinding]) -> list[float] | None:
    if not located:
        return None
    lon, lat = [s.lon for s in located], [s.lat for s in located]
    return [round(value, 6) for value in (min(lon), min(lat), max(lon), max(lat))]


def _code(flag: str) -> str:
    """The word of a flag, with its modality if it has one."""
    return flag.partition(":")[0]
