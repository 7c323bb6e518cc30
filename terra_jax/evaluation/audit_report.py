"""An audit as text and as a page of plots.

Both take the plain values that `data_pipelines.audit.Audit.as_json` gives and `terra-jax audit --json` writes.
"""

import os
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.modalities import LAND_COVER, LAND_COVER_COLOURS, MODALITIES, Unit
from data_pipelines.offsets import PRODUCTS
from terra_jax.evaluation.page import BASELINES, MODEL, page

_ROWS = 40  # samples that the table lists
_COLOURS = {"0": MODEL, "1000": BASELINES[0], "unknown": BASELINES[3]}
_COVER = dict(zip(LAND_COVER, LAND_COVER_COLOURS, strict=True))
_RADAR = ("S1RTC", "S1GRD")


def audit_table(report: Mapping[str, Any]) -> str:
    """Lines: what was found of each modality, then of the samples with flags (all of them, if they are few)."""
    summary, samples = report["summary"], report["samples"]
    lines = [
        f"{summary['samples']} samples of {report['source']}: {summary['with_flags']} with flags, "
        f"in {summary['cells']} grid cells and {summary['regions']} regions",
        "",
        f"{'modality':<10}{'samples':>9}{'missing':>9}{'offset 0':>10}{'1000':>8}{'unknown':>9}{'resampled':>11}  unit",
    ]
    for name, entry in summary["modalities"].items():
        offset = entry.get("offset", {})
        cells = [offset.get(value, "") for value in ("0", "1000", "unknown")] + [entry.get("resampled", "")]
        kinds = entry["unit"]
        units = ", ".join(f"{unit} ({number})" for unit, number in kinds.items()) if len(kinds) > 1 else "".join(kinds)
        lines.append(
            f"{name:<10}{entry['samples']:>9}{entry['missing']:>9}"
            f"{cells[0]:>10}{cells[1]:>8}{cells[2]:>9}{cells[3]:>11}  {units}"
        )
    if summary["land_cover"]:
        shares = sorted(summary["land_cover"].items(), key=lambda item: -item[1])
        lines += ["", "land cover: " + ", ".join(f"{name} {share:.1%}" for name, share in shares if share > 0)]
    shown = samples if len(samples) <= _ROWS else [sample for sample in samples if any(_flags(sample))]
    if shown:
        width = max(len("sample"), *(len(sample["key"]) for sample in shown[:_ROWS]))
        lines += ["", f"{'sample':<{width}}  {'S2L1C':>7}  {'S2L2A':>7}  flags"]
        lines += [line for sample in shown[:_ROWS] for line in _rows(sample, width)]
        if len(shown) > _ROWS:
            lines.append(f"and {len(shown) - _ROWS} more with flags; --json lists them all")
    return "\n".join(lines)


def draw_audit(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a page of plots.

    Args:
        report: as of `Audit.as_json`.
        path: a .png, replaced when the page is done.
    """
    summary = report["summary"]
    title = f"Audit of {summary['samples']} samples of {report['source']}: {summary['with_flags']} with flags"
    with page(path, title, 12.5) as figure:
        grid = figure.add_gridspec(4, 3, height_ratios=(1.55, 1, 1, 1.05))
        _draw_map(figure.add_subplot(grid[0, :]), report["samples"])
        _draw_cirrus(figure.add_subplot(grid[1, 0]), report["samples"])
        _draw_short_wave(figure.add_subplot(grid[1, 1]), report["samples"])
        _draw_offsets(figure.add_subplot(grid[1, 2]), summary)
        _draw_radar(figure.add_subplot(grid[2, 0]), report["samples"])
        _draw_index(figure.add_subplot(grid[2, 1]), report["samples"])
        _draw_times(figure.add_subplot(grid[2, 2]), report["samples"])
        _draw_presence(figure.add_subplot(grid[3, 0]), summary)
        _draw_cover(figure.add_subplot(grid[3, 1]), summary)
        _draw_flags(figure.add_subplot(grid[3, 2]), summary)


# ---- text ---------------------------------------------------------------------------------------------------------


def _rows(sample: Mapping[str, Any], width: int) -> Iterator[str]:
    cells = [_verdict(sample["modalities"].get(name)) for name in PRODUCTS]
    head = f"{sample['key']:<{width}}  {cells[0]:>7}  {cells[1]:>7}  "
    text = "; ".join(_flags(sample)) or "-"
    for i, line in enumerate(textwrap.wrap(text, max(40, 118 - len(head)))):
        yield (head if i == 0 else " " * len(head)) + line


def _flags(sample: Mapping[str, Any]) -> list[str]:
    """Flags of a sample and of its modalities; of an offset that the table shows beside them, no word."""
    own = [f"{name} {flag}" for name, one in sample["modalities"].items() for flag in one["flags"]]
    unknown = [f"{n} offset unknown: {sample['modalities'][n]['reason']}" for n in PRODUCTS if _unknown(sample, n)]
    return [*sample["flags"], *(flag for flag in own if " offset: " not in flag), *unknown]


def _unknown(sample: Mapping[str, Any], name: str) -> bool:
    return name in sample["modalities"] and sample["modalities"][name]["offset"] is None


def _verdict(finding: Mapping[str, Any] | None) -> str:
    if finding is None:
        return "-"
    return "?" if finding["offset"] is None else str(finding["offset"])


# ---- plots --------------------------------------------------------------------------------------------------------


def _draw_map(axes: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    """Where the samples are, by the worst that was found of their radiometry."""
    located = [sample for sample in samples if sample["lon"] is not None]
    groups: dict[str, list[Mapping[str, Any]]] = {
        label: [] for label in ("no offset", "an offset", "unknown", "none to tell")
    }
    for sample in located:
        groups[_worst(sample)].append(sample)
    colours = (MODEL, BASELINES[0], BASELINES[3], BASELINES[1])
    for (label, members), colour in zip(groups.items(), colours, strict=True):
        if members:
            size = float(np.clip(4000 / len(located), 3, 40))
            x, y = ([sample[axis] for sample in members] for axis in ("lon", "lat"))
            axes.scatter(x, y, s=size, color=colour, label=f"{label} ({len(members)})", linewidths=0, alpha=0.8)
    axes.set(xlim=(-180, 180), ylim=(-90, 90), title="Where the samples are, and whether Sentinel-2 carries an offset")
    axes.set_xticks(
        range(-180, 181, 30), [f"{abs(x)}{'W' if x < 0 else 'E' if x > 0 else ''}" for x in range(-180, 181, 30)]
    )
    axes.set_yticks(
        range(-90, 91, 30), [f"{abs(y)}{'S' if y < 0 else 'N' if y > 0 else ''}" for y in range(-90, 91, 30)]
    )
    for latitude in (-66.6, -23.4, 0, 23.4, 66.6):
        axes.axhline(latitude, color="#b9cbdc", linewidth=0.7, linestyle=":", zorder=0)
    _legend_or_empty(axes, bool(located), None)


def _worst(sample: Mapping[str, Any]) -> str:
    values = [sample["modalities"][name]["offset"] for name in PRODUCTS if name in sample["modalities"]]
    if not values:
        return "none to tell"
    return "an offset" if 1000 in values else "unknown" if None in values else "no offset"


def _evidence(samples: Sequence[Mapping[str, Any]], name: str, figure: str) -> dict[str, list[float]]:
    """A figure of a modality's evidence, by the verdict on its offset."""
    found: dict[str, list[float]] = {"0": [], "1000": [], "unknown": []}
    for sample in samples:
        finding = sample["modalities"].get(name)
        value = finding and finding["evidence"].get(figure)
        if value is not None:
            found["unknown" if finding["offset"] is None else str(finding["offset"])].append(value)
    return found


def _draw_cirrus(axes: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    found = _evidence(samples, "S2L1C", "b10_low")
    bins = np.geomspace(1, 20_000, 60)
    for verdict, values in found.items():
        if values:
            axes.hist(
                np.clip(values, 1, None), bins, color=_COLOURS[verdict], label=f"{verdict} ({len(values)})", alpha=0.85
            )
    axes.set(
        xscale="log", title="S2L1C: darkest pixels of the cirrus band", xlabel="B10, digital numbers", ylabel="samples"
    )
    _legend_or_empty(axes, any(found.values()), "offset")


def _draw_short_wave(axes: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    found = _evidence(samples, "S2L2A", "swir_intercept")
    axes.set(title="S2L2A: what it has more than S2L1C", xlabel="intercept in B12, digital numbers")
    _draw_by_verdict(axes, found, np.linspace(-600, 1600, 56))


def _draw_by_verdict(axes: Any, found: Mapping[str, Sequence[float]], bins: np.ndarray) -> None:
    """Histogram with a colour a verdict; what lies outside is drawn at the edge."""
    for verdict, values in found.items():
        if values:
            inside = np.clip(values, bins[0], bins[-1])
            axes.hist(inside, bins, color=_COLOURS[verdict], label=f"{verdict} ({len(values)})", alpha=0.85)
    axes.set(ylabel="samples")
    _legend_or_empty(axes, any(found.values()), "offset")


def _draw_offsets(axes: Any, summary: Mapping[str, Any]) -> None:
    names = [name for name in PRODUCTS if name in summary["modalities"]]
    left = np.zeros(len(names))
    for verdict, colour in _COLOURS.items():
        counts = np.array([summary["modalities"][name]["offset"][verdict] for name in names], float)
        axes.barh(names, counts, left=left, color=colour, label=verdict)
        left += counts
    axes.set(title="Offsets found", xlabel="samples")
    axes.invert_yaxis()
    _legend_or_empty(axes, bool(names), None, above=True)


def _draw_radar(axes: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    points = [
        (finding["evidence"].get("vv_median"), finding["evidence"].get("vh_median"), finding["unit"])
        for sample in samples
        for name in _RADAR
        if (finding := sample["modalities"].get(name))
    ]
    points = [point for point in points if point[0] is not None and point[1] is not None]
    for unit, colour in ((Unit.DB.value, MODEL), (Unit.LINEAR.value, BASELINES[0])):
        chosen = [point for point in points if point[2] == unit]
        if chosen:
            axes.scatter(
                *zip(*(p[:2] for p in chosen), strict=True), s=14, color=colour, linewidths=0, alpha=0.7, label=unit
            )
    if points:
        low, high = (bound(value for point in points for value in point[:2]) for bound in (min, max))
        axes.plot([low, high], [low, high], color="#8a8a8a", linewidth=0.8, linestyle="--")
    axes.set(title="Radar: medians of VV and VH", xlabel="VV", ylabel="VH (above the line: exchanged)")
    _legend_or_empty(axes, bool(points), None)


def _draw_index(axes: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    errors = [
        error
        for sample in samples
        if (finding := sample["modalities"].get("NDVI")) and (error := finding["evidence"].get("error")) is not None
    ]
    if errors:
        axes.hist(np.clip(errors, 1e-5, 2), np.geomspace(1e-5, 2, 50), color=MODEL)
        axes.axvline(0.02, color=BASELINES[0], linewidth=1, linestyle="--")
        axes.set(xscale="log")
    axes.set(title="NDVI: stored against that of S2L2A", xlabel="mean error, without the offset", ylabel="samples")
    _legend_or_empty(axes, bool(errors), None)


def _draw_times(axes: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    months = Counter(sample["time"][:7] for sample in samples if sample["time"])
    if months:
        first, last = (np.datetime64(bound(months), "M") for bound in (min, max))
        every = np.arange(first, last + 1)
        axes.bar(every.astype("datetime64[D]").astype(object), [months[str(m)] for m in every], width=28, color=MODEL)
        axes.tick_params(axis="x", rotation=30)
    axes.set(title="When the images were taken", ylabel="samples a month")
    _legend_or_empty(axes, bool(months), None)


def _draw_presence(axes: Any, summary: Mapping[str, Any]) -> None:
    names = [name for name in MODALITIES if name in summary["modalities"]]
    there = [summary["modalities"][name]["samples"] for name in names]
    axes.barh(names, there, color=MODEL, label="there")
    missing = [summary["modalities"][name]["missing"] for name in names]
    axes.barh(names, missing, left=there, color=BASELINES[0], label="missing")
    axes.set(title="Modalities", xlabel="samples")
    axes.invert_yaxis()
    _legend_or_empty(axes, bool(names), None, above=True)


def _draw_cover(axes: Any, summary: Mapping[str, Any]) -> None:
    cover = summary["land_cover"] or {}
    names = [name.replace("_", " ") for name in cover]
    axes.barh(
        names,
        [100 * share for share in cover.values()],
        color=[_COVER[name] for name in cover],
        edgecolor="#8a8a8a",
        linewidth=0.4,
    )
    axes.set(title="Land cover", xlabel="% of pixels")
    axes.invert_yaxis()
    _legend_or_empty(axes, bool(cover), None)


def _draw_flags(axes: Any, summary: Mapping[str, Any]) -> None:
    flags = dict(list(summary["flags"].items())[:12])
    axes.barh(list(flags), list(flags.values()), color=BASELINES[0])
    axes.set(title="Flags", xlabel="samples")
    axes.invert_yaxis()
    _legend_or_empty(axes, bool(flags), None)


def _legend_or_empty(axes: Any, filled: bool, title: str | None, above: bool = False) -> None:
    """A legend, inside or beside the heading; or a word that there is nothing to see."""
    if not filled:
        axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", va="center", color="#8a8a8a")
        axes.set(xticks=[], yticks=[])
    elif above:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, columnspacing=1.0, handlelength=1.0)
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(title=title, loc="best")
