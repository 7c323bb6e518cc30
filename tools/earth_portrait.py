"""Draw the procedural Earth beside real tiles: pictures, histograms, class frequencies; print quantiles of both.

Example:
    python tools/earth_portrait.py --tiles ../shared/tiles --out earth.png --samples 8
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, LAND_COVER_COLOURS, modality
from data_pipelines.radiometry import to_10m
from data_pipelines.sample import Sample
from data_pipelines.sources import Source, open_source
from data_pipelines.sources.procedural import ProceduralEarth

_CLASS_COLOURS = np.array([to_rgb(colour) for colour in LAND_COVER_COLOURS])
_PANELS = ("true colour", "near infrared", "SWIR", "S1 VV, VH, ratio", "elevation", "land cover")
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_USED = ("S2L1C", "S2L2A", "S1RTC", "DEM", "LULC")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Draw the procedural Earth, beside real tiles if given, and compare their distributions.",
        epilog="example: python tools/earth_portrait.py --tiles ../shared/tiles --out earth.png --samples 8",
    )
    parser.add_argument("--tiles", help="folder <MODALITY>/<key>.tif of real tiles to compare with")
    parser.add_argument("--out", required=True, help="PNG to write")
    parser.add_argument("--samples", type=int, default=8, help="procedural samples to show (default: 8)")
    parser.add_argument("--statistics", type=int, default=200, help="samples that histograms count (default: 200)")
    parser.add_argument("--first", type=int, default=0, help="number of the first sample to show (default: 0)")
    parser.add_argument("--tile", type=int, default=224, help="side of the procedural tiles, pixels (default: 224)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the procedural Earth (default: 0)")
    options = parser.parse_args(arguments)
    try:
        portray(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def portray(options: argparse.Namespace) -> None:
    """Draw everything and print the tables.

    Raises:
        DataError: if an option or the folder of tiles is wrong.
    """
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise DataError(f"--out {out}: give it a name that ends in .png")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: the folder {out.parent} does not exist; create it first")
    if options.samples < 1 or options.statistics < 1 or options.first < 0:
        raise DataError("--samples and --statistics must be at least 1, and --first at least 0")
    count = max(options.first + options.samples, options.statistics)
    earth = ProceduralEarth(count, options.tile, options.seed, modalities=_USED)
    real = _real_tiles(options.tiles) if options.tiles else []
    drawn = [earth[options.first + i] for i in range(options.samples)]
    figure = draw(real + drawn, _pixels(earth[i] for i in range(options.statistics)), _pixels(real))
    aside = out.with_name(f".{out.name}.part")
    figure.savefig(aside, format="png")
    os.replace(aside, out)
    plt.close(figure)


def draw(samples: list[Sample], procedural: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> Figure:
    """The figure: one row of panels a sample, histograms below; prints the quantiles as it goes."""
    names = [name for name in procedural if name != "LULC"]
    histogram_rows = -(-(len(names) + 1) // 6)
    rows = len(samples) + histogram_rows
    figure, axes = plt.subplots(rows, 6, figsize=(18, 3 * rows), dpi=60)
    figure.subplots_adjust(0.01, 0.8 / (3 * rows), 0.99, 1 - 0.3 / (3 * rows), 0.06, 0.16)
    for row, sample in zip(axes, samples, strict=False):
        _panels(row, sample)
    for axis in axes[len(samples) :].ravel():
        axis.set_visible(False)
    for axis, name in zip(axes[len(samples) :].ravel(), names, strict=False):
        axis.set_visible(True)
        _histogram(axis, name, procedural[name], real.get(name))
    axis = axes[len(samples) :].ravel()[len(names)]
    axis.set_visible(True)
    _class_bars(axis, procedural["LULC"], real.get("LULC"))
    return figure


def _real_tiles(folder: str) -> list[Sample]:
    source: Source = open_source("geotiff", path=folder, modalities=_USED)
    return [source[i] for i in range(len(source))]


def _image(sample: Sample, name: str) -> np.ndarray:
    """(band, y, x) float32 at 10 m, every Sentinel-2 offset taken away."""
    image = to_10m(name, sample.rasters[name]).grids[10].astype(np.float32)
    if name == "S2L1C":
        return image - 1000 if np.median(image[10]) > 500 else image
    if name == "S2L2A" and "S2L1C" in sample.rasters:
        top = _image(sample, "S2L1C")[12].ravel()
        intercept = np.polyfit(top, image[11].ravel(), 1)[1]
        return image - 1000 if intercept > 500 else image
    return image


def _pixels(samples: Iterable[Sample]) -> dict[str, np.ndarray]:
    """Every fifth pixel of every sample: band name -> values."""
    found: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        for name in _USED:
            for band, values in zip(modality(name).band_names, _image(sample, name), strict=True):
                label = name if name in ("DEM", "LULC") else f"{name} {band}"
                found.setdefault(label, []).append(values.ravel()[::5])
    return {label: np.concatenate(parts) for label, parts in found.items()}


def _panels(row: Sequence[Axes], sample: Sample) -> None:
    surface, radar = _image(sample, "S2L2A"), _image(sample, "S1RTC")
    elevation, classes = _image(sample, "DEM")[0], _image(sample, "LULC")[0].astype(int)
    top = max(3000.0, float(np.quantile(surface[1:4], 0.98)))
    pictures = (
        np.clip(surface[[3, 2, 1]].transpose(1, 2, 0) / top, 0, 1) ** 0.7,
        np.clip(surface[[7, 3, 2]].transpose(1, 2, 0) / max(5000.0, top), 0, 1) ** 0.8,
        np.clip(surface[[10, 8, 3]].transpose(1, 2, 0) / max(5000.0, top), 0, 1) ** 0.8,
        np.clip((np.dstack([radar[0], radar[1] + 6.5, 1.5 * (radar[0] - radar[1]) - 25]) + 25) / 24, 0, 1),
        _hillshade(elevation),
        _CLASS_COLOURS[classes],
    )
    for axis, picture, title in zip(row, pictures, _PANELS, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    date = str(sample.rasters["S2L2A"].time)[:10]
    clouds = sample.attributes.get("cloud_fraction", "")
    row[0].set_title(f"{sample.key} {sample.lat:.1f}, {sample.lon:.1f} {date} {clouds}", fontsize=8)
    row[4].set_title(f"{elevation.min():.0f} to {elevation.max():.0f} m", fontsize=8)


def _hillshade(elevation: np.ndarray) -> np.ndarray:
    low, high = elevation.min(), elevation.max()
    colour = plt.get_cmap("terrain")(0.2 + 0.6 * (elevation - low) / max(high - low, 20.0))[..., :3]
    down, right = np.gradient(elevation)
    light = np.clip(0.75 + (down - right) / (4 * max(float(np.std([down, right])), 0.25)), 0.3, 1.2)
    return np.clip(colour * light[..., None], 0, 1)


def _histogram(axis: Axes, name: str, procedural: np.ndarray, real: np.ndarray | None) -> None:
    both = procedural if real is None else np.concatenate([procedural, real])
    low, high = np.nanquantile(both, [0.001, 0.995])
    edges = np.linspace(float(low), float(high), 60).tolist()
    axis.hist(procedural, edges, density=True, alpha=0.6, label="procedural")
    if real is not None:
        axis.hist(real, edges, density=True, alpha=0.6, label="real")
    axis.set_title(name, fontsize=8)
    axis.set_yticks([])
    axis.legend(fontsize=6)
    for label, values in (("procedural", procedural), ("real", real)):
        if values is not None:
            shown = " ".join(f"{value:9.1f}" for value in np.nanquantile(values, _QUANTILES))
            print(f"{name:12s} {label:10s} {shown}  mean {np.nanmean(values):8.1f} std {np.nanstd(values):8.1f}")


def _class_bars(axis: Axes, procedural: np.ndarray, real: np.ndarray | None) -> None:
    for offset, label, values in ((-0.2, "procedural", procedural), (0.2, "real", real)):
        if values is not None:
            share = np.bincount(values.astype(int), minlength=len(LAND_COVER)) / len(values)
            axis.bar(np.arange(len(LAND_COVER)) + offset, share, 0.4, label=label)
            listed = ", ".join(f"{name} {100 * part:.1f} %" for name, part in zip(LAND_COVER, share, strict=True))
            print(f"{label}: {listed}")
    axis.set_xticks(range(len(LAND_COVER)), LAND_COVER, rotation=75, fontsize=6)
    axis.legend(fontsize=6)


if __name__ == "__main__":
    sys.exit(main())
