"""Draw triple samples: the high-resolution image, its land cover, dates of the Sentinel-2 and Sentinel-1 series.

Example:
    python tools/series_portrait.py --out series.png --samples 4
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from data_pipelines.errors import DataError
from data_pipelines.grid import day_of_year
from data_pipelines.modalities import LAND_COVER, LAND_COVER_COLOURS
from data_pipelines.radiometry import to_native_grids
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources import open_source
from data_pipelines.transforms.series import evenly_spaced

_CLASSES = ListedColormap(LAND_COVER_COLOURS)
_OPTICAL, _RADAR = 5, 3  # dates shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Draw triple samples of a source: HR image, land cover, dates of both series, and their course.",
        epilog="example: python tools/series_portrait.py --out series.png --samples 4",
    )
    parser.add_argument("--out", required=True, help="PNG to write")
    parser.add_argument("--path", default="", help="folder of GeoTIFF series; without it the procedural Earth is drawn")
    parser.add_argument("--samples", type=int, default=4, help="samples to show (default: 4)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: 0)")
    parser.add_argument("--tile", type=int, default=16, help="side of procedural tiles, 10 m pixels (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the procedural Earth (default: 0)")
    options = parser.parse_args(arguments)
    try:
        portray(options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def portray(options: argparse.Namespace) -> None:
    """Draw and write the figure.

    Raises:
        DataError: an option or the folder is wrong.
    """
    out = Path(options.out)
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise DataError(f"--out {out}: give a name that ends in .png, in a folder that exists")
    count = options.first + options.samples
    if options.path:
        source = open_source("geotiff_series", path=options.path)
    else:
        source = open_source("procedural_series", samples=count, tile=options.tile, seed=options.seed)
    if not 0 <= options.first < count <= len(source):
        raise DataError(f"--first {options.first} --samples {options.samples}: the source has {len(source)} samples")
    figure = draw([source[i] for i in range(options.first, count)])
    aside = out.with_name(f".{out.name}.part")
    figure.savefig(aside, format="png")
    os.replace(aside, out)
    plt.close(figure)


def draw(samples: Sequence[Sample]) -> Figure:
    """One row a sample."""
    columns = 3 + _OPTICAL + _RADAR
    widths = [3, 1.5] + [1.5] * (_OPTICAL + _RADAR) + [2.2]
    figure, axes = plt.subplots(
        len(samples), columns, figsize=(2 * sum(widths) / 2, 3 * len(samples)), dpi=75, squeeze=False,
        gridspec_kw={"width_ratios": widths},
    )  # fmt: skip
    figure.subplots_adjust(0.005, 0.12 / len(samples), 0.985, 1 - 0.15 / len(samples), 0.05, 0.15)
    for row, sample in zip(axes, samples, strict=True):
        for axis in row[:-1]:
            axis.axis("off")
        _row(row, sample)
    return figure


def _row(row: Sequence[Axes], sample: Sample) -> None:
    if "HR" in sample.rasters:
        row[0].imshow(sample.rasters["HR"].grids[10].transpose(1, 2, 0), interpolation="nearest")
        row[0].set_title(f"{sample.key} {sample.lat:.1f}, {sample.lon:.1f}  {_date(sample.rasters['HR'])}", fontsize=8)
    if "LULC" in sample.rasters:
        classes = sample.rasters["LULC"].grids[10][0]
        row[1].imshow(classes, cmap=_CLASSES, vmin=-0.5, vmax=9.5, interpolation="nearest")
        row[1].set_title("\n".join(wrap(", ".join(LAND_COVER[i] for i in np.unique(classes)), 28)), fontsize=6)
    if "S2L2A" in sample.rasters:
        _optical(row[2 : 2 + _OPTICAL], row[-1], to_native_grids("S2L2A", sample.rasters["S2L2A"]))
    if "S1GRD" in sample.rasters:
        _radar(row[2 + _OPTICAL : -1], row[-1].twinx(), sample.rasters["S1GRD"])


def _optical(panels: Sequence[Axes], course: Axes, raster: Raster) -> None:
    """True colour on some dates; the course of the vegetation index, cloudy dates hollow."""
    fine, times = raster.grids[10].astype(np.float32), _times(raster)
    clouds = raster.frames.get("cloud_fraction", np.zeros(len(fine)))
    top = max(2500.0, float(np.quantile(fine[clouds <= 0.1][:, :3], 0.99)) if (clouds <= 0.1).any() else 0)
    for axis, i in zip(panels, evenly_spaced(len(fine), len(panels)), strict=False):
        axis.imshow(np.clip(fine[i, [2, 1, 0]].transpose(1, 2, 0) / top, 0, 1) ** 0.6, interpolation="nearest")
        axis.set_title(f"S2 {str(times[i])[:10]} {100 * clouds[i]:.0f} %", fontsize=7)
    index = ((fine[:, 3] - fine[:, 2]) / (fine[:, 3] + fine[:, 2])).mean((1, 2))
    course.plot(day_of_year(times), index, "o", mfc="none", color="tab:green", ms=4)
    course.plot(day_of_year(times)[clouds < 0.1], index[clouds < 0.1], "o", color="tab:green", ms=4)
    course.set_ylim(-0.3, 1)
    course.set_xlim(0, 367)
    course.tick_params(labelsize=6)
    course.set_title("NDVI (green), VV dB by orbit", fontsize=7)


def _radar(panels: Sequence[Axes], course: Axes, raster: Raster) -> None:
    """VV, VH and their ratio in colour on some dates; the course of VV, orbits apart."""
    power, times = raster.grids[10].astype(np.float32), _times(raster)
    ascending = raster.frames.get("ascending", np.ones(len(power), bool))
    for axis, i in zip(panels, evenly_spaced(len(power), len(panels)), strict=False):
        vv, vh = power[i]
        picture = (np.dstack([vv, vh + 6.5, 1.5 * (vv - vh) - 25]) + 25) / 24
        axis.imshow(np.clip(picture, 0, 1), interpolation="nearest")
        axis.set_title(f"S1 {str(times[i])[:10]} {'up' if ascending[i] else 'down'}", fontsize=7)
    mean = power[:, 0].mean((1, 2))
    for orbit, marker in ((True, "^"), (False, "v")):
        chosen = ascending == orbit
        course.plot(day_of_year(times)[chosen], mean[chosen], marker, color="tab:purple", ms=4)
    course.set_ylim(-25, 0)
    course.tick_params(labelsize=6)


def _times(raster: Raster) -> np.ndarray:
    """(frames,) when they were taken; NaT where that is not known."""
    return np.atleast_1d(np.asarray("NaT" if raster.time is None else raster.time, "datetime64[s]"))


def _date(raster: Raster) -> str:
    return "" if raster.time is None else str(_times(raster)[0])[:10]


if __name__ == "__main__":
    sys.exit(main())
