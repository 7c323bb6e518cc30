"""Statistics of a corpus, exact whatever the order and number of workers, saved as a set that configs name.

Every stored number has at most 16 bits, so that counting each of the 65,536 possible ones loses nothing: counts of
several workers add up, and mean, deviation and quantiles follow from them once, in exact arithmetic.
"""

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, MODALITIES, Modality, Statistics, Unit, modality
from data_pipelines.sample import Raster, Sample, grid_bands
from data_pipelines.sources import Source
from data_pipelines.work import Progress, run_ahead

FORMAT, VERSION = "terra_jax.statistics", 1

_CODES = 1 << 16
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_HALF = 1 << 24  # every finite float16 is a whole number of these parts
_BROKEN = 32  # samples in a row that cannot be read, after which the data count as broken


class Counts:
    """How often each number occurs in each band of each modality.

    Attributes:
        samples: counted.
        left_out: key -> reason, of those that could not be.
        numbers: modality -> (bands, 65536) int64, by the bits of the stored number.
        absent: modality -> (bands,) pixels without data.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.left_out: dict[str, str] = {}
        self.numbers: dict[str, np.ndarray] = {}
        self.absent: dict[str, np.ndarray] = {}

    def add(self, sample: Sample) -> None:
        """Count a sample's pixels, each band on its own grid.

        No data are NaN, fill values of the modality table, and Sentinel-2 that is 0 in all bands of a grid.

        Raises:
            DataError: if a raster is not in its modality's unit, or its numbers do not fit the stored dtype.
        """
        bands = {name: dict(_codes(sample.key, name, raster)) for name, raster in sample.rasters.items()}
        for name, codes in bands.items():
            table = modality(name)
            numbers = self.numbers.setdefault(name, np.zeros((len(table.bands), _CODES), np.int64))
            absent = self.absent.setdefault(name, np.zeros(len(table.bands), np.int64))
            for band, (seen, missing) in codes.items():
                numbers[band] += np.bincount(seen, minlength=_CODES)
                absent[band] += missing
        self.samples += 1

    def merge(self, other: "Counts") -> None:
        """Add another worker's counts to these."""
        for mine, theirs in ((self.numbers, other.numbers), (self.absent, other.absent)):
            for name, array in theirs.items():
                mine[name] = mine[name] + array if name in mine else array.copy()
        self.samples += other.samples
        self.left_out |= other.left_out

    def describe(self) -> dict[str, Any]:
        """Plain values of every modality: per band mean, deviation, extremes, quantiles, pixels; shares of classes."""
        return {name: self._describe(modality(name)) for name in MODALITIES if name in self.numbers}

    def _describe(self, table: Modality) -> dict[str, Any]:
        numbers = self.numbers[table.name]
        entry: dict[str, Any] = {"unit": table.unit.value, "bands": list(table.band_names)}
        entry |= {"pixels": numbers.sum(axis=1).tolist(), "no_data": self.absent[table.name].tolist()}
        if table.unit is Unit.CLASS:
            counts = numbers[0, : len(LAND_COVER)]
            shares = counts / max(counts.sum(), 1)
            return entry | {"frequencies": dict(zip(LAND_COVER, shares.tolist(), strict=True))}
        columns = [_band_figures(counts, table.dtype) for counts in numbers]
        return entry | {figure: [column[figure] for column in columns] for figure in columns[0]}

    def save(self, path: Path, origin: Mapping[str, Any]) -> None:
        """Write the counts and what they are of, aside first, so that another process can merge them."""
        arrays: dict[str, np.ndarray] = {}
        for name, numbers in self.numbers.items():
            band, code = np.nonzero(numbers)
            arrays |= {f"{name}/band": band.astype(np.uint8), f"{name}/code": code.astype(np.uint16)}
            arrays |= {f"{name}/count": numbers[band, code], f"{name}/absent": self.absent[name]}
        stated = {"origin": dict(origin), "samples": self.samples, "left_out": self.left_out}
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        with aside.open("wb") as stream:
            np.savez_compressed(stream, stated=np.array(json.dumps(stated)), **arrays)  # type: ignore[arg-type]
        os.replace(aside, path)

    @classmethod
    def load(cls, path: Path, origin: Mapping[str, Any]) -> "Counts":
        """Read what `save` wrote.

        Raises:
            DataError: if the file is damaged or of something else.
        """
        counts = cls()
        try:
            with np.load(path, allow_pickle=False) as archive:
                stated = json.loads(str(archive["stated"]))
                counts.samples, counts.left_out = int(stated["samples"]), dict(stated["left_out"])
                for name in {entry.partition("/")[0] for entry in archive.files if "/" in entry}:
                    numbers = np.zeros((len(modality(name).bands), _CODES), np.int64)
                    numbers[archive[f"{name}/band"], archive[f"{name}/code"]] = archive[f"{name}/count"]
                    counts.numbers[name], counts.absent[name] = numbers, archive[f"{name}/absent"]
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is damaged; remove it and count that share again") from error
        if stated["origin"] != json.loads(json.dumps(dict(origin))):
            raise DataError(f"{path} is a share of another count; remove it or choose another --out")
        return counts


def count(
    source: Source,
    positions: Sequence[int] | None = None,
    *,
    threads: int = 4,
    strict: bool = False,
    say: Callable[[str], Any] = print,
) -> Counts:
    """Count the samples of a source.

    Args:
        source: read once.
        positions: of the samples to count; None takes all.
        threads: that read and count, each for itself.
        strict: stop at a sample that cannot be read instead of leaving it out.
        say: takes lines on progress.

    Raises:
        DataError: if nothing can be read, or a sample cannot and `strict` is set.
    """
    positions = range(len(source)) if positions is None else positions
    workers = [Counts() for _ in range(max(threads, 1))]
    idle = list(workers)

    def work(i: int) -> None:
        counts = idle.pop()  # a list's pop and append are atomic, and there are as many counters as threads
        try:
            counts.add(source[i])
        except DataError as error:
            if strict:
                raise
            counts.left_out[str(source.index.keys[i])] = str(error)
        finally:
            idle.append(counts)

    with ThreadPoolExecutor(len(workers)) as pool, Progress(len(positions), 0, say) as progress:
        for done, future in enumerate(run_ahead(pool, work, positions, 4 * len(workers)), 1):
            future.result()
            progress.add(1)
            if done == _BROKEN and not any(worker.samples for worker in workers):
                reason = next(iter(workers[0].left_out.values()), "")
                raise DataError(f"{reason} (none of the first {done} samples could be read)")
    total = Counts()
    for worker in workers:
        total.merge(worker)
    if positions and not total.samples:
        raise DataError(f"{next(iter(total.left_out.values()))} (no sample could be read)")
    return total


def count_share(
    source: Source,
    path: str | Path,
    origin: Mapping[str, Any],
    share: tuple[int, int] = (0, 1),
    *,
    threads: int = 4,
    strict: bool = False,
    say: Callable[[str], Any] = print,
) -> Counts | None:
    """Count one of several equal shares of a source; whoever completes them gets the whole.

    Args:
        source: every process opens the same.
        path: where the statistics will lie; shares that are done lie beside it, and are not counted again.
        origin: what is counted, as plain values.
        share: number of this one and of all.
        threads: see `count`.
        strict: see `count`.
        say: takes lines.

    Returns:
        Counts of all shares; None while others are missing.

    Raises:
        DataError: see `count`; or if a share beside `path` is damaged or of something else.
    """
    index, number = share
    options: dict[str, Any] = {"threads": threads, "strict": strict, "say": say}
    if number == 1:
        return count(source, **options)
    target = Path(path)
    parts = [target.with_name(f".{target.name}.{i}-of-{number}.npz") for i in range(number)]
    if parts[index].exists():
        Counts.load(parts[index], origin)
        say(f"{target}: share {index} of {number} was counted before")
    else:
        count(source, range(index, len(source), number), **options).save(parts[index], origin)
    total = Counts()
    try:
        for part in parts:
            total.merge(Counts.load(part, origin))
    except FileNotFoundError:  # not counted yet, or merged by another process at this moment
        return None
    return total


def remove_shares(path: str | Path) -> None:
    """Clear away the shares that a set was merged from."""
    target = Path(path)
    for part in target.parent.glob(f".{target.name}.*-of-*.npz"):
        part.unlink(missing_ok=True)


def write_set(path: str | Path, name: str, counts: Counts, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Save a named set of statistics, which configs take by the path of its file; returns what was written.

    Args:
        path: a .json, replaced if it exists.
        name: of the set.
        counts: of the corpus.
        origin: what was counted, as plain values.

    Raises:
        DataError: if the file cannot be written.
    """
    path = Path(path)
    content = {"format": FORMAT, "version": VERSION, "name": name, "origin": dict(origin), "samples": counts.samples}
    content |= {"left_out": counts.left_out, "modalities": counts.describe()}
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(aside, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
    return content


def statistics_table(content: Mapping[str, Any]) -> str:
    """Lines on a set: each band's mean, deviation, median and extremes.

    Args:
        content: as `write_set` returned it.
    """
    left_out = f", {len(content['left_out'])} left out" if content["left_out"] else ""
    lines = [f"{content['name']}: {content['samples']} samples{left_out}"]
    lines.append(f"{'':<20}{'mean':>12}{'deviation':>12}{'1 %':>10}{'median':>10}{'99 %':>10}{'no data':>9}")
    for name, entry in content["modalities"].items():
        if "frequencies" in entry:
            shares = sorted(entry["frequencies"].items(), key=lambda item: -item[1])
            lines.append(f"{name:<10}" + ", ".join(f"{label} {share:.1%}" for label, share in shares if share))
            continue
        for i, band in enumerate(entry["bands"]):
            if not entry["pixels"][i]:
                lines.append(f"{name:<10}{band:<10}no data")
                continue
            low, middle, high = (entry["quantiles"][i][q] for q in ("0.01", "0.5", "0.99"))
            absent = entry["no_data"][i] / (entry["pixels"][i] + entry["no_data"][i])
            figures = f"{entry['mean'][i]:>12.5g}{entry['std'][i]:>12.5g}{low:>10.4g}{middle:>10.4g}{high:>10.4g}"
            lines.append(f"{name:<10}{band:<10}" + f"{figures}{absent:>9.2%}")
    return "\n".join(lines)


def read_set(path: str | Path) -> Mapping[str, Statistics]:
    """Modality -> statistics of a set that `write_set` saved.

    Raises:
        DataError: if the file is none of a set, or was made with other bands or units.
    """
    path = Path(path)
    try:
        return _read_set(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read as statistics; write it with `terra-jax stats --out {path}`") from error


@lru_cache(maxsize=16)
def _read_set(path: Path, _: int) -> Mapping[str, Statistics]:
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT or content["version"] > VERSION:
            raise ValueError("another format")
        found = {}
        for name, entry in content["modalities"].items():
            table = modality(name)
            if tuple(entry["bands"]) != table.band_names or entry["unit"] != table.unit.value:
                raise DataError(f"{path}: {name} has other bands or another unit than this release; count again")
            if "mean" in entry:
                found[name] = Statistics(tuple(map(float, entry["mean"])), tuple(map(float, entry["std"])))
        return found
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no statistics; write it with `terra-jax stats --out {path}`") from error


def _codes(key: str, name: str, raster: Raster) -> list[tuple[int, tuple[np.ndarray, int]]]:
    """Band number -> 16-bit codes of the pixels with data, and how many have none."""
    table = modality(name)
    if raster.unit is not table.unit:
        raise DataError(
            f"sample {key}: {name} is in {raster.unit.value}, statistics are of {table.unit.value}; convert"
        )
    codes = []
    for gsd, names in grid_bands(name, raster.grids).items():
        grid = _stored(key, table, raster.grids[gsd])
        present = _present(table, grid)
        for i, band in enumerate(names):
            pixels, seen = grid[..., i, :, :], present[..., i, :, :]
            bits = pixels[seen].view(f"u{grid.dtype.itemsize}")
            codes.append((table.band_names.index(band), (bits, int(seen.size - seen.sum()))))
    return codes


def _stored(key: str, table: Modality, grid: np.ndarray) -> np.ndarray:
    """A grid in the table's dtype; decibels and indices are rounded to it as records do."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = grid.astype(table.dtype)
    if stored.dtype.kind != "f" and not np.array_equal(stored, grid):
        raise DataError(f"sample {key}: {table.name} holds {grid.dtype} numbers that {table.dtype} cannot; convert it")
    return stored


def _present(table: Modality, grid: np.ndarray) -> np.ndarray:
    if grid.dtype.kind == "f":
        return np.isfinite(grid)
    if table.unit is Unit.DN10000:
        return np.broadcast_to((grid != 0).any(axis=-3, keepdims=True), grid.shape)
    return np.ones(grid.shape, bool) if table.nodata is None else grid != table.nodata


def _band_figures(counts: np.ndarray, dtype: str) -> dict[str, Any]:
    """Mean, deviation, extremes and quantiles of one band from the counts of its numbers."""
    kind = np.dtype(dtype)
    codes = np.flatnonzero(counts)
    values = codes.astype(f"u{kind.itemsize}").view(kind).astype(np.float64)
    order = np.argsort(values, kind="stable")
    values, seen = values[order], counts[codes[order]]
    if not len(values):
        return {"mean": 0.0, "std": 1.0, "min": None, "max": None, "quantiles": None}
    scale = _HALF if kind.kind == "f" else 1
    whole = [int(value * scale) for value in values]
    total = int(seen.sum())
    first = sum(v * int(c) for v, c in zip(whole, seen, strict=True))
    second = sum(v * v * int(c) for v, c in zip(whole, seen, strict=True))
    variance = Fraction(second * total - first * first, total * total * scale * scale)
    places = np.searchsorted(np.cumsum(seen), np.ceil(np.asarray(_QUANTILES) * total).clip(1))
    quantiles = {f"{q:g}": float(values[i]) for q, i in zip(_QUANTILES, places, strict=True)}
    figures = {"mean": float(Fraction(first, total * scale)), "std": float(variance) ** 0.5}
    return figures | {"min": float(values[0]), "max": float(values[-1]), "quantiles": quantiles}
