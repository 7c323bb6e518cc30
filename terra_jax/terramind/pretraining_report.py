"""One page that shows a pretraining: losses beside the unigram's, zero-shot errors beside trivial ones, pictures."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from terra_jax.evaluation.page import BASELINES, MODEL, History, column, draw_loss, page, say
from terra_jax.terramind.evaluation import CEILING, GENERATED, Probe
from terra_jax.terramind.tokenizer_report import colour_pairs

_CURVES, _ROW = 3.1, 1.35  # inches
_COLOURS = (MODEL, *BASELINES)


def pretraining_report(
    path: str | os.PathLike[str],
    *,
    history: History,
    evaluations: History,
    result: Mapping[str, Any] | None,
    pictures: Mapping[str, tuple[Probe, Mapping[str, np.ndarray]]],
    title: str,
    note: str = "",
) -> None:
    """Draw the report of a run and put it at `path` in one move.

    Args:
        path: PNG file to write.
        history: one row a step, with `loss`.
        evaluations: one row an evaluation, with "val/" before the names of the figures.
        result: what the scorer found at the end, if it could be asked.
        pictures: title of a probe -> the probe, and its first images "given", "truth", "estimate".
        title: heading of the page.
        note: said in place of the figures when there are none (why there are none).
    """
    height = _CURVES + sum(_ROW + 0.3 for _ in pictures)
    with page(path, title, height) as figure:
        ratios = [_CURVES, *[_ROW + 0.3] * len(pictures)]
        parts = np.atleast_1d(figure.subfigures(len(ratios), 1, height_ratios=ratios, hspace=0.02))
        loss, time, streams, probes = (parts[0].add_subplot(1, 4, i + 1) for i in range(4))
        draw_loss(loss, history)
        if result is None:
            for axis, heading in ((time, "Validation"), (streams, "By stream"), (probes, "Zero-shot")):
                say(axis, heading, note)
        else:
            _draw_validation(time, evaluations)
            _draw_streams(streams, result["validation"])
            _draw_probes(probes, {t: p for t, p in result["zero_shot"].items() if not isinstance(p, str)})
        for part, (heading, (probe, images)) in zip(parts[1:], pictures.items(), strict=True):
            _draw_pictures(part, heading, probe, images)


def _draw_validation(axis: Any, evaluations: History) -> None:
    """The mean over streams as training goes on."""
    steps, values = column(evaluations, "val/loss")
    axis.plot(steps, values, color=MODEL, marker="o", markersize=3.5)
    axis.annotate(f"{values[-1]:.2f}", (steps[-1], values[-1]), xytext=(0, 5), textcoords="offset points",
                  ha="right", color=MODEL, fontweight="bold")  # fmt: skip
    _, trivial = column(evaluations, "val/unigram")
    axis.axhline(trivial[-1], color=BASELINES[0], linestyle="--", linewidth=1.2)
    axis.text(0.01, trivial[-1], f"unigram {trivial[-1]:.2f}", transform=axis.get_yaxis_transform(), va="bottom",
              fontsize=7.5, color=BASELINES[0])  # fmt: skip
    axis.set(title="Nats a token, unseen regions", xlabel="step")
    axis.margins(y=0.12)


def _draw_streams(axis: Any, validation: Mapping[str, Mapping[str, float]]) -> None:
    """The last loss of every stream."""
    place = np.arange(len(validation))
    for i, (key, colour) in enumerate((("loss", MODEL), ("unigram", BASELINES[0]))):
        values = [row[key] for row in validation.values()]
        bars = axis.bar(place + 0.4 * (i - 0.5), values, 0.37, color=colour, label={"loss": "model"}.get(key, key))
        axis.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=7)
    axis.set_xticks(place, list(validation), fontsize=7.5)
    axis.grid(False, axis="x")
    axis.set(title="By stream")
    axis.margins(y=0.22)
    axis.legend(loc="upper right", fontsize=7, ncols=2)


def _draw_probes(axis: Any, probes: Mapping[str, Mapping[str, Any]]) -> None:
    """Errors as shares of the trivial estimate's."""
    if not probes:
        say(axis, "Zero-shot", "no tokenizers are given that could decode")
        return
    place = np.arange(len(probes))
    for i, (name, colour) in enumerate(((GENERATED, MODEL), (CEILING, BASELINES[1]))):
        shares = [_error(probe["scores"][name]) / _error(*probe["baselines"].values()) for probe in probes.values()]
        bars = axis.bar(place + 0.4 * (i - 0.5), shares, 0.37, color=colour, label=name)
        axis.bar_label(bars, [f"{share:.2f}" for share in shares], fontsize=7)
    axis.axhline(1, color=BASELINES[0], linestyle="--", linewidth=1.2)
    labels = [title.replace(" from ", "\nfrom ") + f"\n{_worded(probe)}" for title, probe in probes.items()]
    axis.set_xticks(place, labels, fontsize=7)
    axis.grid(False, axis="x")
    axis.set(title="Zero-shot error / trivial error")
    axis.margins(y=0.25)
    axis.legend(loc="upper right", fontsize=7, ncols=2)


def _error(figures: Mapping[str, Any]) -> float:
    """Share of wrong pixels, or mean absolute error over bands."""
    return 1 - figures["accuracy"] if "accuracy" in figures else float(np.mean(figures["mae"]))


def _worded(probe: Mapping[str, Any]) -> str:
    """The generated images' figure, and the trivial one's."""
    (trivial,), generated = probe["baselines"].values(), probe["scores"][GENERATED]
    if "accuracy" in trivial:
        return f"{100 * generated['accuracy']:.0f} % ({100 * trivial['accuracy']:.0f} %)"
    reached, least = (float(np.mean(figures["mae"])) for figures in (generated, trivial))
    return f"{reached:.0f} ({least:.0f})" if least > 10 else f"{reached:.3f} ({least:.3f})"


def _draw_pictures(part: Any, heading: str, probe: Probe, images: Mapping[str, np.ndarray]) -> None:
    """One row: seen, true and drawn, sample by sample."""
    given, _ = colour_pairs(probe.given, images["given"], images["given"])
    truth, estimate = colour_pairs(probe.asked, images["truth"], images["estimate"])
    part.suptitle(f"{heading}: given, truth, generated", fontsize=10, fontweight="bold", x=0.008, ha="left")
    count = len(given)
    # a narrow empty column after each group keeps the groups apart
    grid = part.add_gridspec(1, 4 * count, width_ratios=[1, 1, 1, 0.08] * count, wspace=0, hspace=0)
    for i, group in enumerate(zip(given, truth, estimate, strict=True)):
        for place, picture in enumerate(group):
            axis = part.add_subplot(grid[0, 4 * i + place])
            axis.imshow(picture, interpolation="nearest")
            axis.axis("off")
