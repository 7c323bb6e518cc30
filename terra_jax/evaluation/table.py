"""Scores as text."""

from collections.abc import Mapping
from typing import Any


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
