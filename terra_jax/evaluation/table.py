"""Scores of several input sets: as text, as flat figures, and back."""

from collections.abc import Mapping
from typing import Any

from terra_jax.evaluation.knn import FRACTIONS

Scores = dict[str, list[dict[str, Any]]]
"""Input set ("S2L2A", "S2L2A+S1RTC", "S2L2A, cloudy" ...) -> what `knn.evaluate_knn` returns."""

FIGURES = ("accuracy", "macro_accuracy")


def figures(scores: Scores) -> dict[str, float]:
    """Scores as flat figures: "S2L2A/0.01/accuracy"."""
    return {
        f"{name}/{score['fraction']:g}/{figure}": score[figure]
        for name, results in scores.items()
        for score in results
        for figure in FIGURES
    }


def scores_at(row: Mapping[str, Any], inputs: str) -> dict[str, Any]:
    """A row of evaluations.csv, whose evaluator was named "knn", as `report.report_png` draws it."""
    return {
        "step": int(float(row["step"])),
        "scores": [
            {
                "fraction": fraction,
                **{name: float(row[f"knn/{inputs}/{fraction:g}/{name}"]) for name in FIGURES},
            }
            for fraction in FRACTIONS
        ],
    }


def scores_table(result: Mapping[str, Any]) -> str:
    """Lines that set an encoder's kNN scores beside its baselines'.

    Args:
        result: "scores": input set -> what `knn.evaluate_knn` returns; "baselines": name -> the same.
    """
    columns = {"encoder": result["scores"], **result["baselines"]}
    lines = [f"{'kNN accuracy (macro accuracy), %':<38}" + "".join(f"{name:>26}" for name in columns)]
    for inputs, scores in result["scores"].items():
        for i, score in enumerate(scores):
            label = f"{inputs}, {score['fraction']:.0%} of labels"
            cells = (columns[name][inputs][i] for name in columns)
            values = (f"{100 * cell['accuracy']:.1f} ({100 * cell['macro_accuracy']:.1f})" for cell in cells)
            lines.append(f"{label:<38}" + "".join(f"{value:>26}" for value in values))
    full = result["scores"][result["headline"]][-1]
    rare = ", ".join(f"{name} {100 * full['classes'][name]['accuracy']:.1f}" for name in full["rarest"])
    return "\n".join([*lines, f"rarest classes ({result['headline']}, all labels): {rare}"])
