"""What every report page shares: its look, its curves, and that it appears at once or not at all."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# a muted palette that stays apart in print and for most colour-blind readers
MODEL, BASELINES = "#1f4e79", ("#b5651d", "#5f7f5f", "#7a6a8a", "#777777")
_RAW, _TEXT, _GRID = "#b9cbdc", "#2b2b2b", "#e4e4e4"
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": _TEXT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
}

History = Sequence[Mapping[str, Any]]
"""One row a step as in the metrics CSV: `step` and any further columns; empty and missing values are left out."""


@contextmanager
def page(path: str | os.PathLike[str], title: str, height: float) -> Iterator[Any]:
    """A figure to draw on, put at `path` in one move when the block ends well.

    Args:
        path: PNG file to write; what stood there is replaced only by a finished page.
        title: heading of the page.
        height: inches; the width is 13.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    with rc_context(_STYLE):
        figure = Figure(figsize=(13, height), dpi=110, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=13, fontweight="bold", x=0.008, ha="left")
        yield figure
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            figure.savefig(temporary, format="png")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def column(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a column."""
    pairs = [(float(row["step"]), float(row[name])) for row in history if row.get(name) not in (None, "")]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    finite = np.isfinite(values)
    return steps[finite], values[finite]


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average; towards the ends over the part of the window that there is."""
    values = np.asarray(values, np.float64)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start, stop = np.maximum(index - window // 2, 0), np.minimum(index + window // 2 + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)


def draw_curve(axis: Any, steps: np.ndarray, values: np.ndarray, colour: str, label: str, faint: str = _RAW) -> None:
    """A curve, smoothed where it is long, over its faint raw values."""
    window = max(1, len(values) // 25)
    if window > 2:
        axis.plot(steps, values, color=faint, linewidth=0.8)
        values = smoothed(values, window)
    axis.plot(steps, values, color=colour, label=label)


def draw_loss(axis: Any, history: History) -> None:
    """The column `loss`."""
    steps, values = column(history, "loss")
    if not len(values):
        say(axis, "Loss", "no steps recorded")
        return
    draw_curve(axis, steps, values, MODEL, "loss")
    axis.set(title="Loss", xlabel="step", xlim=(steps[0], max(steps[-1], steps[0] + 1)))
    low, high = np.percentile(values, [0, 99.5])
    margin = 0.06 * max(high - low, 1e-6)
    axis.set_ylim(low - margin, high + margin)


def say(axis: Any, title: str, message: str) -> None:
    """Words where a drawing would be."""
    axis.set_title(title)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.text(0.5, 0.5, message, ha="center", va="center", transform=axis.transAxes, color="#666666")
