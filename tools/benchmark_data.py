"""Samples a second and a core of every format that is read, and of PyTorch's usual loaders on the same pixels.

Used by `benchmark.py data`. A sample is Sentinel-2 L2A, Sentinel-1, elevation and land cover at 224 pixels, where the
format has them; the table has its bytes. Samples are in the page cache. Each row is a fresh process on one core, once
with glibc's defaults and once with MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set. "per core" counts the
processor's time, in user and system mode and of all threads, which other programs disturb less than the clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark_process import BenchmarkError, environment, machine, say

TOOLS = Path(__file__).resolve().parent
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
BATCH = 32


@dataclass(frozen=True)
class Format:
    """One line of the table.

    Attributes:
        description: what reads what.
        data: which folder of the fixtures.
        side: "reader" (terra_jax, sample by sample), "loader" (terra_jax, batches) or "torch" (a DataLoader).
        option: of the side.
    """

    description: str
    data: str
    side: str
    option: str = ""


ROWS = {
    "records": Format("records, lz4", "records", "reader", "records"),
    "records-zstd": Format("records, zstd", "records-zstd", "reader", "records"),
    "terramesh": Format("TerraMesh tars, read directly", "terramesh", "reader", "terramesh"),
    "ssl4eo": Format("SSL4EO-S12 batches (2 modalities)", "ssl4eo", "reader", "ssl4eo"),
    "majortom": Format("Major TOM parquet (3 modalities)", "majortom", "reader", "majortom"),
    "geotiff": Format("GeoTIFF folders", "geotiff", "reader", "geotiff"),
    "tortilla": Format("tortilla (2 modalities)", "tortilla", "reader", "tortilla"),
    "xarray": Format("zarr v3 stores by xarray", "zarr", "reader", "xarray"),
    "tfds": Format("TFDS of our builder", "tfds", "reader", "tfds"),
    "loader-records": Format("Loader: records to batches of 32", "records", "loader", "records"),
    "loader-terramesh": Format("Loader: TerraMesh to batches of 32", "terramesh", "loader", "terramesh"),
    "torch-geotiff": Format("PyTorch DataLoader, rasterio, GeoTIFF", "geotiff", "torch", "geotiff"),
    "torch-zarr": Format("PyTorch DataLoader, zarr-python, zips", "zips", "torch", "zarr"),
}
QUICK = ("records", "terramesh", "loader-records", "torch-geotiff")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Take all figures."""
    names = options.rows.split(",") if options.rows else list(QUICK if options.quick else ROWS)
    check(options, names)
    rounds, seconds, samples = (1, 0.5, 6) if options.quick else (options.pairs, 3.0, 64)
    pixels = 72 if options.quick else 224
    result: dict[str, Any] = {
        "samples": samples, "pixels": pixels, "batch": BATCH, "rounds": rounds, "malloc": TUNED,
        "pixels_of": str(options.tiles or "the procedural Earth"), "machine": machine(), "rows": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        wanted = sorted({ROWS[name].data for name in names})
        say(f"writing {samples} samples as {', '.join(wanted)}")
        settings = {"root": folder, "samples": samples, "pixels": pixels, "formats": wanted}
        _process(sys.executable, "fixtures", {**settings, "tiles": str(options.tiles or "")}, {})
        for number in range(rounds):
            for name in names:
                say(f"{name}: round {number + 1} of {rounds}")
                row = result["rows"].setdefault(
                    name, {"description": ROWS[name].description, "default": [], "tuned": []}
                )
                for allocator, environ in (("default", {}), ("tuned", TUNED)):
                    row[allocator].append(_measured(ROWS[name], options, folder, seconds, pixels, environ))
    for row in result["rows"].values():
        row |= _summary(row)
    reference = [row["tuned_per_core"] for name, row in result["rows"].items() if ROWS[name].side == "torch"]
    for row in result["rows"].values():
        row["against_torch"] = row["tuned_per_core"] / max(reference) if reference else None
    result["machine"]["load_after"] = os.getloadavg()[0]
    return result


def check(options: argparse.Namespace, names: list[str]) -> None:
    """Refuse what cannot work before anything runs."""
    for name in names:
        if name not in ROWS:
            raise BenchmarkError(f"--rows: unknown row {name!r}; choose from {', '.join(ROWS)}")
    if options.pairs < 1:
        raise BenchmarkError("--pairs must be at least 1")
    if options.tiles and not (options.tiles / "S2L2A").is_dir():
        raise BenchmarkError(f"--tiles: {options.tiles} has no folder S2L2A; give a folder of GeoTIFFs by modality")
    if options.json and not options.json.absolute().parent.is_dir():
        raise BenchmarkError(f"--json: {options.json.absolute().parent} is no folder; make it first")
    if not hasattr(os, "sched_setaffinity"):
        raise BenchmarkError("processor affinity cannot be set on this system; run on Linux")
    needed = [(sys.executable, module, 'pip install "terra_jax[test]"') for module in ("terra_jax", "zarr")]
    if any(ROWS[name].side == "torch" for name in names):
        needed.append((options.torch_python, "torch", 'pip install "terra_jax[torch]", or leave rows out with --rows'))
    for python, module, cure in needed:
        done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, env=environment(1), check=False)
        if done.returncode:
            raise BenchmarkError(f"{python} cannot import {module}; {cure}")


def _measured(
    row: Format, options: argparse.Namespace, folder: str, seconds: float, pixels: int, environ: dict[str, str]
) -> dict[str, float]:
    settings = {"path": str(Path(folder, row.data)), "option": row.option, "seconds": seconds, "batch": BATCH}
    python = options.torch_python if row.side == "torch" else sys.executable
    return _process(python, row.side, {**settings, "pixels": pixels}, environ)


def _process(python: str, side: str, settings: dict[str, Any], environ: dict[str, str]) -> dict[str, Any]:
    """One side in a fresh process on one core."""
    script = TOOLS / ("benchmark_data_torch.py" if side == "torch" else "benchmark_data_jax.py")
    core = min(os.sched_getaffinity(0))
    clean = {name: value for name, value in environment(1).items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [python, str(script), side, json.dumps(settings)],
        capture_output=True, text=True, env={**clean, "BLOSC_NTHREADS": "1", **environ}, check=False,
        preexec_fn=None if side == "fixtures" else lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BenchmarkError(f"{script.name} {side} failed on {settings.get('path', 'the fixtures')}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _summary(row: dict[str, Any]) -> dict[str, float]:
    """Medians over the rounds."""
    found: dict[str, float] = {"bytes": row["default"][0]["bytes"]}
    for allocator in ("default", "tuned"):
        found |= {
            f"{allocator}_{figure}": statistics.median(one[figure] for one in row[allocator])
            for figure in ("samples_per_second", "cpu_ms", "faults")
        }
        found[f"{allocator}_per_core"] = 1e3 / found[f"{allocator}_cpu_ms"]
    return found


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    facts = result["machine"]
    malloc = " ".join(f"{name}={value}" for name, value in result["malloc"].items())
    lines = [
        f"{result['samples']} samples of {result['pixels']} pixels from {result['pixels_of']}, in the page cache; "
        f"one core of {facts['processor']}, load {facts['load_before']:.1f} to {facts['load_after']:.1f}; "
        f"median of {result['rounds']}",
        f"tuned: {malloc}",
        "",
        f"{'':<38} {'MB':>5} {'default:':>9} {'CPU ms':>7} {'faults':>7} {'tuned:':>9} {'CPU ms':>7} "
        f"{'per core':>9} {'x PyTorch':>9}",
    ]
    for row in result["rows"].values():
        ratio = "" if row["against_torch"] is None else f"{row['against_torch']:.1f}"
        lines.append(
            f"{row['description']:<38} {row['bytes'] / 1e6:>5.2f} {row['default_samples_per_second']:>7.0f}/s "
            f"{row['default_cpu_ms']:>7.2f} {row['default_faults']:>7.0f} {row['tuned_samples_per_second']:>7.0f}/s "
            f"{row['tuned_cpu_ms']:>7.2f} {row['tuned_per_core']:>9.0f} {ratio:>9}"
        )
    return "\n".join(lines)


def timed(count: int, read: Any, seconds: float) -> dict[str, float]:
    """Read at random for so long, after one pass: samples a second, processor time and page faults a sample."""
    import random
    import resource

    for i in range(count):
        read(i)
    order, done = random.Random(0), 0
    before, cpu, began = resource.getrusage(resource.RUSAGE_SELF), time.process_time(), time.perf_counter()
    while done < count or time.perf_counter() - began < seconds:
        read(order.randrange(count))
        done += 1
    passed, used = time.perf_counter() - began, time.process_time() - cpu
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before.ru_minflt
    return {"samples_per_second": done / passed, "cpu_ms": 1e3 * used / done, "faults": faults / done}
