"""One page that shows a pretraining run: losses, diagnostics, nearest neighbours against baselines, feature maps."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from terra_jax.evaluation.page import BASELINES, MODEL, column, draw_curve, draw_loss, page, say

_MAX_IMAGES = 8

Scores = Sequence[Mapping[str, Any]]


def report_png(
    path: str | os.PathLike[str],
    *,
    history: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]] = (),
    baselines: Mapping[str, Scores] | None = None,
    images: Sequence[np.ndarray] = (),
    features: Sequence[np.ndarray] = (),
    title: str = "",
    note: str = "",
) -> None:
    """Draw the report of a run and put it at `path` in one move.

    Args:
        path: PNG file to write; what stood there is replaced only by a finished page.
        history: one row a step as in the metrics CSV: `step`, `loss`, and any further columns. Columns whose names
            contain `entropy` or `centre` are drawn as diagnostics; values that are missing or empty are left out.
        evaluations: in order of steps, each {"step": int, "scores": what `knn.evaluate_knn` returns}.
        baselines: name -> scores of the same queries, drawn as horizontal lines.
        images: colour composites, (height, width, 3), uint8 or floats in 0..1.
        features: patch features of the same images, (rows, columns, dims) each, equal dims.
        title: heading of the page.
        note: said in place of the accuracies when there are no evaluations (why there are none).
    """
    baselines = baselines or {}
    count = min(len(images), len(features), _MAX_IMAGES)
    image_rows = -(-count // 4)
    fractions = [score["fraction"] for score in evaluations[-1]["scores"]] if evaluations else []
    height = 6.6 + 1.68 * image_rows + (0.35 if count else 0)
    with page(path, title or "Pretraining report", height) as figure:
        curves, pictures = figure.subfigures(2, 1, height_ratios=[6.6, max(0.01, height - 6.6)], hspace=0.03)
        grid = curves.add_gridspec(2, 12)
        draw_loss(curves.add_subplot(grid[0, :6]), history)
        _draw_diagnostic(curves.add_subplot(grid[0, 6:9]), history, "entropy", "Teacher entropy", "nats")
        _draw_diagnostic(curves.add_subplot(grid[0, 9:]), history, "centre", "Centres", "")
        if evaluations:
            shown = list(dict.fromkeys((fractions[0], fractions[-1])))
            for i, fraction in enumerate(shown):
                columns = slice(6 * i // len(shown), 6 * (i + 1) // len(shown))
                _draw_accuracy(curves.add_subplot(grid[1, columns]), evaluations, baselines, fraction)
            _draw_classes(curves.add_subplot(grid[1, 6:]), evaluations[-1], baselines, fractions[-1])
        else:
            say(curves.add_subplot(grid[1, :]), "Nearest neighbours", note or "not evaluated")
        if count:
            _draw_images(pictures, images[:count], pca_colours(features[:count]))


def pca_colours(features: Sequence[np.ndarray], percentile: float = 2.0) -> list[np.ndarray]:
    """Show feature maps as colours: the three strongest principal components over all their patches together.

    Args:
        features: maps (rows, columns, dims), of any sizes but equal dims.
        percentile: share cut off at either end of a component before it is scaled to 0..1.

    Returns:
        Arrays (rows, columns, 3) of floats in 0..1; equal colours mean alike features across maps. Components that the
        features lack (fewer than three dims or patches) are mid-grey.
    """
    patches = np.concatenate([np.asarray(f, np.float64).reshape(-1, f.shape[-1]) for f in features])
    patches = patches - patches.mean(0)
    _, _, directions = np.linalg.svd(patches, full_matrices=False)
    directions = directions[:3]
    # a component's sign is arbitrary; fix it so that pictures of one run look alike
    strongest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(len(directions)), strongest])[:, None]
    components = np.zeros((len(patches), 3))
    components[:, : len(directions)] = patches @ directions.T
    low, high = np.percentile(components, [percentile, 100 - percentile], axis=0)
    spread = high - low
    varies = spread > 1e-12
    colours = np.where(varies, np.clip((components - low) / np.where(varies, spread, 1), 0, 1), 0.5)
    ends = np.cumsum([f.shape[0] * f.shape[1] for f in features])[:-1]
    return [part.reshape(*f.shape[:2], 3) for part, f in zip(np.split(colours, ends), features, strict=True)]


def _draw_diagnostic(axis: Any, history: Sequence[Mapping[str, Any]], word: str, title: str, unit: str) -> None:
    """All columns whose names contain `word`, in one panel."""
    names = [name for name in (history[0] if history else {}) if word in name]
    curves = {name: curve for name in names if len((curve := column(history, name))[0])}
    if not curves:
        say(axis, title, "not recorded")
        return
    for (name, (steps, values)), colour in zip(curves.items(), (MODEL, *BASELINES), strict=False):
        draw_curve(axis, steps, values, colour, name.replace("_", " "), faint="none")
    axis.set(title=title, xlabel="step", ylabel=unit)
    axis.margins(y=0.08 + 0.09 * len(curves))
    axis.legend(loc="best")


def _score(scores: Scores, fraction: float) -> Mapping[str, Any] | None:
    return next((score for score in scores if np.isclose(score["fraction"], fraction)), None)


def _draw_accuracy(axis: Any, evaluations: Scores, baselines: Mapping[str, Scores], fraction: float) -> None:
    points = [(e["step"], 100 * score["accuracy"]) for e in evaluations if (score := _score(e["scores"], fraction))]
    steps, values = zip(*points, strict=True)
    axis.plot(steps, values, color=MODEL, marker="o", markersize=3.5)
    axis.annotate(f"{values[-1]:.1f}", (steps[-1], values[-1]), xytext=(3, 5), textcoords="offset points",
                  ha="right", color=MODEL, fontweight="bold")  # fmt: skip
    for (name, scores), colour in zip(baselines.items(), BASELINES, strict=False):
        score = _score(scores, fraction)
        if score is not None:
            level = 100 * score["accuracy"]
            axis.axhline(level, color=colour, linestyle="--", linewidth=1.2)
            axis.text(0.99, level, f"{name} {level:.1f}", transform=axis.get_yaxis_transform(),
                      ha="right", va="bottom", fontsize=7.5, color=colour)  # fmt: skip
    axis.set(title=f"kNN accuracy, {100 * fraction:g} % of labels", xlabel="step", ylabel="%")
    axis.margins(y=0.12)


def _draw_classes(axis: Any, evaluation: Mapping[str, Any], baselines: Mapping[str, Scores], fraction: float) -> None:
    final = _score(evaluation["scores"], fraction)
    assert final is not None
    entries = final["classes"]
    classes = sorted(entries, key=lambda name: (-entries[name]["bank"], name))
    series: dict[str, Mapping[str, Any]] = {"this encoder": final}
    series |= {name: score for name, scores in baselines.items() if (score := _score(scores, fraction)) is not None}
    width = 0.8 / len(series)
    for i, ((name, score), colour) in enumerate(zip(series.items(), (MODEL, *BASELINES), strict=False)):
        heights = [100 * score["classes"].get(c, {"accuracy": 0})["accuracy"] for c in classes]
        position = np.arange(len(classes)) + (i - (len(series) - 1) / 2) * width
        axis.bar(position, heights, width * 0.92, color=colour, label=name)
    labels = [
        f"{'* ' if c in final['rarest'] else ''}{c.replace('_', ' ')} ({entries[c]['bank']}, {entries[c]['queries']})"
        for c in classes
    ]
    axis.set_xticks(np.arange(len(classes)), labels, rotation=25, fontsize=8, ha="right", rotation_mode="anchor")
    axis.grid(False, axis="x")
    axis.set(title=f"Accuracy by class, {100 * fraction:g} % of labels; macro {100 * final['macro_accuracy']:.1f} %")
    axis.set(ylabel="%", ylim=(0, 118), yticks=range(0, 101, 20))
    axis.set_xlabel("class (samples in the bank, queries), most frequent first; * the three rarest", fontsize=8)
    axis.legend(loc="upper right", ncols=len(series))


def _draw_images(part: Any, images: Sequence[np.ndarray], colours: Sequence[np.ndarray]) -> None:
    part.suptitle(
        "Colour composites beside the first three principal components of their patch features (one basis for all)",
        fontsize=10, fontweight="bold", x=0.008, ha="left",
    )  # fmt: skip
    # a narrow empty column after each pair keeps the pairs apart
    grid = part.add_gridspec(-(-len(images) // 4), 11, width_ratios=[1, 1, 0.06] * 3 + [1, 1], wspace=0, hspace=0)
    for i, (image, colour) in enumerate(zip(images, colours, strict=True)):
        row, pair = divmod(i, 4)
        for place, picture in ((3 * pair, image), (3 * pair + 1, colour)):
            axis = part.add_subplot(grid[row, place])
            axis.imshow(picture, interpolation="nearest" if picture is colour else None)
            axis.axis("off")
