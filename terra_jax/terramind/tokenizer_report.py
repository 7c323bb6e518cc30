"""One page that shows a tokenizer's training: loss, error against trivial reconstructions, codebook, pictures."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from data_pipelines.modalities import LAND_COVER_COLOURS, Unit, modality
from terra_jax.evaluation.page import BASELINES, MODEL, History, column, draw_loss, page, say
from terra_jax.evaluation.report import pca_colours

_CURVES, _ROW = 3.1, 1.72  # inches


class Pictures(NamedTuple):
    """A few images and what became of them."""

    truth: Num[np.ndarray, "n y x ..."]
    """Physical units, channels last; class ids without channels."""
    estimate: Num[np.ndarray, "n y x ..."]
    """The same after a passage through tokens."""
    codes: Float[np.ndarray, "n h w k"]
    """Of the tokens."""


def tokenizer_report(
    path: str | os.PathLike[str],
    *,
    name: str,
    history: History,
    evaluations: History,
    result: Mapping[str, Any] | None,
    pictures: Pictures,
    title: str,
    note: str = "",
) -> None:
    """Draw the report of a run and put it at `path` in one move.

    Args:
        path: PNG file to write.
        name: modality.
        history: one row a step, with `loss`.
        evaluations: one row an evaluation, with "reconstruction/" before the names of `tokenizer_evaluation.figures`.
        result: what `TokenizerScorer` found at the end, if it could be asked.
        pictures: what is shown.
        title: heading of the page.
        note: said in place of the figures when there are none (why there are none).
    """
    rows = -(-len(pictures.truth) // 2)
    with page(path, title, _CURVES + _ROW * rows + 0.35) as figure:
        curves, below = figure.subfigures(2, 1, height_ratios=[_CURVES, _ROW * rows + 0.35], hspace=0.03)
        loss, error, single, codebook = (curves.add_subplot(1, 4, i + 1) for i in range(4))
        draw_loss(loss, history)
        if result is None:
            for axis, heading in ((error, "Reconstruction"), (single, "In detail"), (codebook, "Codebook")):
                say(axis, heading, note)
        else:
            _draw_error(error, evaluations, result)
            _draw_single(single, result)
            _draw_codebook(codebook, evaluations, result["codebook"])
        _draw_pictures(below, name, pictures)


def _draw_error(axis: Any, evaluations: History, result: Mapping[str, Any]) -> None:
    """The leading figure over time, beside the trivial reconstructions."""
    measure = "accuracy" if "accuracy" in next(iter(result["scores"].values())) else "mae"
    steps, values = column(evaluations, f"reconstruction/{measure}")
    axis.plot(steps, values, color=MODEL, marker="o", markersize=3.5)
    axis.annotate(f"{values[-1]:.4g}", (steps[-1], values[-1]), xytext=(0, 5), textcoords="offset points",
                  ha="right", color=MODEL, fontweight="bold")  # fmt: skip
    for (label, scores), colour in zip(result["baselines"].items(), BASELINES, strict=False):
        level = float(np.mean(scores[measure]))
        axis.axhline(level, color=colour, linestyle="--", linewidth=1.2)
        axis.text(0.01, level, f"{label} {level:.4g}", transform=axis.get_yaxis_transform(),
                  va="bottom", fontsize=7.5, color=colour)  # fmt: skip
    heading = {"accuracy": "Pixel accuracy", "mae": f"MAE, {result['unit']}"}[measure]
    axis.set(title=f"{heading}, unseen regions", xlabel="step")
    axis.margins(y=0.12)


def _draw_single(axis: Any, result: Mapping[str, Any]) -> None:
    """Each band's error, or each class' overlap."""
    series = {**result["scores"], **result["baselines"]}
    first = next(iter(series.values()))
    if "iou" in first:
        names, heading = list(first["iou"]), f"IoU by class; mean {100 * first['miou']:.1f} %"
        heights = [[scores["iou"][name] for name in names] for scores in series.values()]
    else:
        names, heading = result["names"], f"SSIM by band; mean {np.mean(first['ssim']):.3f}"
        heights = [scores["ssim"] for scores in series.values()]
    width = 0.8 / len(series)
    for i, (label, values, colour) in enumerate(zip(series, heights, (MODEL, *BASELINES), strict=False)):
        place = np.arange(len(names)) + (i - (len(series) - 1) / 2) * width
        axis.bar(place, values, width * 0.92, color=colour, label=label)
    labels = [name.replace("_", " ") for name in names]
    axis.set_xticks(np.arange(len(names)), labels, rotation=45, fontsize=7, ha="right", rotation_mode="anchor")
    axis.grid(False, axis="x")
    axis.set(title=heading, ylim=(0, 1.35), yticks=np.linspace(0, 1, 6))
    axis.legend(loc="upper right", fontsize=7)


def _draw_codebook(axis: Any, evaluations: History, codebook: Mapping[str, Any]) -> None:
    steps, values = column(evaluations, "reconstruction/codes_used")
    axis.plot(steps, 100 * values, color=MODEL, marker="o", markersize=3.5)
    axis.set(title=f"Codes in use; perplexity {codebook['perplexity']:.0f}", xlabel="step", ylabel="%", ylim=(0, 105))
    size = codebook["used"] + codebook["dead"]
    axis.text(0.98, 0.04, f"{codebook['used']} of {size} in {codebook['tokens']} tokens",
              transform=axis.transAxes, ha="right", fontsize=7.5)  # fmt: skip


def _draw_pictures(part: Any, name: str, pictures: Pictures) -> None:
    errors, scale = error_pictures(name, pictures)
    shown = zip(
        *colour_pairs(name, pictures.truth, pictures.estimate), errors, pca_colours(list(pictures.codes)), strict=True
    )
    part.suptitle(
        f"Input, reconstruction, {scale}, tokens (alike colours: alike codes)",
        fontsize=10, fontweight="bold", x=0.008, ha="left",
    )  # fmt: skip
    # a narrow empty column after each group keeps the groups apart
    grid = part.add_gridspec(-(-len(errors) // 2), 9, width_ratios=[1] * 4 + [0.08] + [1] * 4, wspace=0, hspace=0)
    for i, group in enumerate(shown):
        row, side = divmod(i, 2)
        for place, picture in enumerate(group):
            axis = part.add_subplot(grid[row, 5 * side + place])
            axis.imshow(picture, interpolation="nearest")
            axis.axis("off")


def colour_pairs(
    name: str, truth: Num[np.ndarray, "n y x ..."], estimate: Num[np.ndarray, "n y x ..."]
) -> tuple[Float[np.ndarray, "n y x rgb"], Float[np.ndarray, "n y x rgb"]]:
    """Images and their estimates as colours in 0..1, stretched alike: between percentiles of each true image."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    table = modality(name)
    if table.unit is Unit.CLASS:
        palette = np.array([to_rgb(colour) for colour in LAND_COVER_COLOURS])
        return palette[truth], palette[estimate]
    bands = {Unit.DN10000: ("B04", "B03", "B02"), Unit.DB: ("VV", "VH", "VV")}.get(table.unit)
    chosen = [table.band_index(band) for band in bands] if bands else [0]
    low, high = np.percentile(truth[..., chosen], (2, 98), axis=(1, 2), keepdims=True)
    # an image without contrast is not stretched until its noise shows
    spread = np.maximum(high - low, 0.05 * table.statistics_for("terramind_v1")[1][chosen])
    stretched = [np.clip((images[..., chosen] - (low + high) / 2) / spread + 0.5, 0, 1) for images in (truth, estimate)]
    if bands:
        return stretched[0], stretched[1]
    colours = colormaps["RdYlGn" if table.unit is Unit.INDEX else "gist_earth"]
    return colours(stretched[0][..., 0]), colours(stretched[1][..., 0])


def error_pictures(name: str, pictures: Pictures) -> tuple[Float[np.ndarray, "n y x rgb"], str]:
    """Where estimates are wrong, as colours, and what the colours mean."""
    from matplotlib import colormaps

    if modality(name).unit is Unit.CLASS:
        wrong = (pictures.truth != pictures.estimate)[..., None]
        return np.where(wrong, (0.75, 0.1, 0.1), 0.93), "wrong pixels (red)"
    error = np.abs(pictures.estimate - pictures.truth).mean(-1)
    most = max(float(np.percentile(error, 99)), 1e-9)
    scale = f"mean absolute error over bands (black 0, yellow {most:.3g} {modality(name).unit})"
    return colormaps["inferno"](np.clip(error / most, 0, 1)), scale
