"""A paper's ablation at nano scale: does each part of the objective earn its place?

    python tools/ablation.py terrafm --out runs/ablation --seeds 3
    python tools/ablation.py skysense --out runs/ablation_skysense --seeds 3
    python tools/ablation.py terramind --weights runs/tm --out runs/tim --seeds 3

TerraFM: four rungs, each adding one part to the one before: a single modality, views of random modalities, fusion of
several modalities in one view, dual centring. SkySense: the whole objective, and without geo-context prototypes, the
object level and alignment, one at a time. Every rung is trained with every seed; the table shows mean and spread of kNN
accuracy on unseen regions. Runs resume where they stand, so the command can be stopped and started again. TerraMind: a
pretrained model, plain and thinking in land cover, fine-tuned with few labels (`tim_ablation.py`).
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from data_pipelines.errors import DataError
from terra_jax import registry
from terra_jax.errors import TerraJaxError
from terra_jax.training.config import load_config, write_json
from terra_jax.training.loop import train

LADDER = {
    "terrafm": {
        "single modality": ["data.modalities=('S2L2A',)", "objective.alpha=1.0"],
        "+ modality augmentation": ["views.modalities_per_view=one", "objective.alpha=1.0"],
        "+ fusion": ["objective.alpha=1.0"],
        "+ dual centring": [],
    },
    "skysense": {
        "without geo-context": ["objective.geo_context=false"],
        "without object level": ["objective.levels=(pixel,image)"],
        "without alignment": ["objective.alignment_weight=0.0"],
        "everything": [],
    },
}
"""Family -> rung -> what differs from the nano config, which holds everything."""

INPUTS = {
    "terrafm": ("S2L2A", "S1RTC", "S2L2A+S1RTC"),
    "skysense": ("HR", "S2L2A", "S1GRD", "HR+S2L2A+S1GRD"),
}
"""Family -> input sets of the table's columns."""


def main() -> int:
    """Train the ladder and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python tools/ablation.py terrafm --out runs/ablation --seeds 3 --config.steps=200",
    )
    parser.add_argument("family", choices=(*LADDER, "terramind"))
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder of the runs and of ablation.json"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs per rung (default 3)")
    parser.add_argument("--weights", metavar="PATH", help="a pretrained terramind_v1_nano_encdec (terramind only)")
    options, overrides = parser.parse_known_args()
    if wrong := [item for item in overrides if not item.startswith("--config.")]:
        parser.error(f"unknown option {wrong[0]!r}; only --config.KEY=VALUE may follow")
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    if (options.family == "terramind") != bool(options.weights):
        parser.error("--weights is for terramind, and terramind needs it")
    if options.family == "terramind":
        return _thinking(options)
    try:
        results = {
            rung: [_run(options, rung, i, seed, overrides) for seed in range(options.seeds)]
            for i, rung in enumerate(LADDER[options.family])
        }
    except (TerraJaxError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(options.out / "ablation.json", results)
    print(table(results, INPUTS[options.family]))
    return 0


def _thinking(options: argparse.Namespace) -> int:
    """TerraMind's table."""
    import tim_ablation

    try:
        result = tim_ablation.compare(registry.load("terramind_v1_nano_encdec", options.weights), seeds=options.seeds)
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "ablation.json", result)
    except (TerraJaxError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(tim_ablation.table(result))
    return 0


def _run(options: argparse.Namespace, rung: str, number: int, seed: int, overrides: list[str]) -> dict:
    """kNN scores of one run: encoder and baselines."""
    changes = [f"config.{change}" for change in (*LADDER[options.family][rung], f"seed={seed}", "evaluation.every=0")]
    config = load_config(f"{options.family}/nano", [*changes, *(item.removeprefix("--") for item in overrides)])
    workdir = options.out / f"rung{number}-seed{seed}"
    print(f"{rung}, seed {seed}: {workdir}", flush=True)
    train(registry.experiment(config), config, workdir)
    return json.loads((workdir / "report.json").read_text())["knn"]


def table(results: dict[str, list[dict]], sets: tuple[str, ...]) -> str:
    """Rungs against input sets: mean and standard deviation over seeds, beside both baselines."""
    rows = {rung: [run["scores"] for run in runs] for rung, runs in results.items()}
    last = list(results.values())[-1]
    rows |= {name: [run["baselines"][name] for run in last] for name in last[0]["baselines"]}
    columns = [(inputs, i) for inputs in sets for i in range(len(last[0]["scores"][sets[0]]))]
    fractions = [score["fraction"] for score in last[0]["scores"][sets[0]]]
    lines = [f"{'kNN accuracy, %':<26}" + "".join(f"{f'{name}, {fractions[i]:.0%}':>22}" for name, i in columns)]
    for label, runs in rows.items():
        cells = [[100 * run[name][i]["accuracy"] for run in runs if name in run] for name, i in columns]
        lines.append(f"{label:<26}" + "".join(f"{_mean_and_spread(cell):>22}" for cell in cells))
    return "\n".join(lines)


def _mean_and_spread(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
