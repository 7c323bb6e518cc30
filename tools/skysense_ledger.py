"""Print SkySense's parameters part by part, beside those of the papers.

    python tools/skysense_ledger.py
    python tools/skysense_ledger.py --config skysense/small --config.objective.prototype_width=256

The public parts are fixed by the released files; heads, projections and prototypes are a config's choice. Nothing is
built: shapes are enough.
"""

import argparse
import sys
from math import prod
from typing import Any

import jax
from flax import nnx

from terra_jax.errors import TerraJaxError
from terra_jax.nn.initialisation import abstract
from terra_jax.skysense.experiment import make_objective
from terra_jax.skysense.variants import PARTS
from terra_jax.training.config import load_config
from terra_jax.weights.rules import size_of, table

PAPERS: dict[str, tuple[str, float | None, float | None]] = {
    "hr": ("HR encoder", 654, None),
    "s2": ("Sentinel-2 encoder", 302, None),
    "s1": ("Sentinel-1 encoder", 302, None),
    "fusion": ("fusion and alignment heads", 398, 398.20),
    "geo": ("geo-context prototypes", 215, None),
    "others": ("self-supervised heads", 189, None),
}
"""Row -> name, millions in SkySense's appendix (table J12) and in SkySense V2's table, where that tells them apart."""

TOTAL = (2060.0, 2062.85)
ENCODERS_V2, OTHERS_V2 = 1260.52, 404.13
HUGE = "skysense/huge"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=HUGE, metavar="NAME", help=f"default {HUGE}")
    options, overrides = parser.parse_known_args()
    if unknown := [item for item in overrides if not item.startswith("--config.")]:
        parser.error(f"unknown option {unknown[0]!r}")
    try:
        changes = [item.removeprefix("--config.") for item in overrides]
        print(ledger(options.config, changes))
    except TerraJaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def ledger(name: str, changes: list[str]) -> str:
    """The table of a config."""
    counts, parts = counted(name, changes)
    papers = name == HUGE
    lines = [f"{'part':<32}{'parameters':>15}" + (f"{'SkySense':>12}{'V2 paper':>12}" if papers else "")]
    for row, (title, first, second) in PAPERS.items():
        beside = "".join(f"{f'{m:g} M' if m else '':>12}" for m in (first, second)) if papers else ""
        lines.append(f"{title:<32}{counts[row]:>15,}{beside}".rstrip())
        if row == "fusion":
            lines += [f"  {part:<30}{parts[part]:>15,}" for part in ("fusion", "head_s2", "head_s1")]
        if row == "geo":
            lines += [f"  {part:<30}{parts[part]:>15,}" for part in ("prototypes", "projections")]
    public = sum(parts[part] for part in PARTS)
    total = "".join(f"{f'{m:g} M':>12}" for m in TOTAL) if papers else ""
    lines += [
        f"{'date positions':<32}{parts['dates']:>15,}",
        f"{'all':<32}{sum(counts.values()) + parts['dates']:>15,}{total}",
        f"{'  of these in the public files':<32}{public:>15,}",
    ]
    if papers:
        lines.append(f"V2 paper: encoders together {ENCODERS_V2} M, prototypes and heads {OTHERS_V2} M")
    return "\n".join(lines)


def counted(name: str, changes: list[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters of the papers' rows, and of the parts that make them."""
    objective = make_objective(load_config(name, changes), batch_spec={})  # no batch changes a shape
    graphdef, params = abstract(objective.build)
    maps = nnx.merge(graphdef, nnx.State(params)).encoder.weight_map  # type: ignore[attr-defined]
    parts = {part: size_of(table(maps[part], params["encoder"][part])) for part in PARTS}
    parts["dates"] = _size(params["encoder"]["s2"].get("dates", {}))
    parts["prototypes"] = objective.regions * objective.region_prototypes * objective.prototype_width
    parts["prototypes"] *= objective.geo_context
    parts["projections"] = _size(params.get("geo_context", {}))
    rows = {
        "hr": parts["hr"],
        "s2": parts["s2"],
        "s1": parts["s1"],
        "fusion": parts["fusion"] + parts["head_s2"] + parts["head_s1"],
        "geo": parts["prototypes"] + parts["projections"],
        "others": _size({key: tree for key, tree in params.items() if key not in ("encoder", "geo_context")}),
    }
    return rows, parts


def _size(tree: Any) -> int:
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    sys.exit(main())
