"""Time a model family, or the data path, against an independent PyTorch implementation doing the same work.

    python tools/benchmark.py terrafm --json terrafm.json
    python tools/benchmark.py tokenizers --json tokenizers.json
    python tools/benchmark.py skysense --json skysense.json
    python tools/benchmark.py data --json data.json
    python tools/benchmark.py terramind --json terramind.json

Every figure comes from a fresh process, the two sides take turns and are never in memory together, both have the same
number of threads and compute in float32. PyTorch runs eagerly and through torch.compile, each with its fused
attention; the faster one counts. A ratio is terra_jax / PyTorch of neighbouring runs: below 1 terra_jax is faster.
Of data, the samples that one core reads in a second from every format stand beside a PyTorch DataLoader's.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmark_data
from benchmark_process import BenchmarkError, environment, machine, say

TOOLS = Path(__file__).resolve().parent
VARIANTS = ("eager", "compile")
DEPTHS = (12, 24)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        description: what is timed.
        repeats: timed runs in one process.
        settings: of both sides, beside the command line's.
        trial: settings of the nano size that replace those.
    """

    description: str
    repeats: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    trial: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """What is timed of a family.

    Attributes:
        rows: name -> row.
        sizes: of its models.
        usual: those that are timed by default, with their batches.
        quick: rows of a trial.
        trains: whether a row is a training step; then the time to compile it and its Python time are taken too.
        summary: what follows from the rows together.
    """

    rows: Mapping[str, Row]
    sizes: tuple[str, ...]
    usual: Mapping[str, int]
    quick: tuple[str, ...]
    trains: bool = False
    summary: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda rows: {}


def training_step(rows: Mapping[str, Any]) -> dict[str, Any]:
    """TerraMind's step in short.

    Memory is counted above parameters, gradients and AdamW's two moments, which are the same on both sides: four
    float32 numbers a parameter.
    """
    result: dict[str, Any] = {}
    if step := rows.get("step"):
        above = {}
        for which in ("jax", "torch"):
            figures = [pair[which] for pair in step["pairs"]]
            above[which] = max(figure["array_bytes"] - 16 * figure["parameters"] for figure in figures)
        result |= {
            "ours_step_s": step["seconds"]["jax"],
            "torch_step_s": step["seconds"]["torch"],
            "ratio": step["ratio"]["median"],
            "ours_memory_above_state_bytes": above["jax"],
            "torch_memory_above_state_bytes": above["torch"],
            "memory_ratio": above["jax"] / above["torch"],
        }
    for name in ("gradients", "update"):
        if row := rows.get(name):
            result |= {f"ours_{name}_s": row["seconds"]["jax"], f"torch_{name}_s": row["seconds"]["torch"]}
    if "few" in rows and "all" in rows:
        seconds = {which: [rows[name]["seconds"][which] for name in ("few", "all")] for which in ("jax", "torch")}
        result |= {f"{side}_13_over_3_modalities": seconds[key][1] / seconds[key][0] for key, side in SIDES.items()}
    return result


SIDES = {"jax": "ours", "torch": "torch"}
TOKENS = {"modalities": 10, "tokens": 128}
FEWER = {"tokens": 16}

FAMILIES = {
    "terrafm": Family(
        {
            "forward": Row("encoder, no gradients", 7, {"local_views": 0}),
            "step": Row("2 global views, head, DINO loss, teacher, AdamW", 3, {"local_views": 0}),
            "multicrop": Row("the step with 8 local views beside", 2, {"local_views": 8}),
        },
        sizes=("nano", "small", "base", "large"),
        usual={"base": 8},
        quick=("forward", "step"),
        trains=True,
    ),
    "tokenizers": Family(
        {
            "encode1": Row("one S2L2A image to tokens", 7, {"batch": 1}),
            "encode8": Row("eight S2L2A images to tokens", 3, {"batch": 8}),
            "decode1": Row("tokens to one S2L2A image, 10 steps of DDIM", 1, {"batch": 1, "steps": 10}),
        },
        sizes=("nano", "base"),
        usual={"base": 8},
        quick=("encode1", "encode8", "decode1"),
    ),
    "skysense": Family(
        {
            "fusion": Row(
                "fusion transformer, forward and backward: 4,096 positions x 31 tokens at width 256, 2 layers",
                2,
                {"positions": 4096, "frames": 31, "width": 256, "depth": 2, "heads": 4},
                {"positions": 64, "width": 32, "heads": 2},
            ),
            "stages": Row(
                "two Swin V2 stages of the huge size, forward and backward: 2 images of 256 pixels",
                3,
                {"widths": (352, 704), "depths": (2, 2), "stage_heads": (8, 16), "images": 2, "pixels": 256},
                {"widths": (16, 32), "stage_heads": (2, 4), "images": 1, "pixels": 64},
            ),
        },
        sizes=("nano", "huge"),
        usual={"huge": 8},
        quick=("fusion", "stages"),
    ),
    "terramind": Family(
        {
            "step": Row("128 + 128 tokens, 5 pixel and 5 token modalities: loss, gradients, AdamW", 3, TOKENS, FEWER),
            "gradients": Row("the same without AdamW", 3, TOKENS, FEWER),
            "update": Row("AdamW alone, which is most of all the tables' update", 5, TOKENS, FEWER),
            "few": Row("loss and gradients, 3 modalities at the same budgets", 3, {**TOKENS, "modalities": 3}, FEWER),
            "all": Row("loss and gradients, 13 modalities at the same budgets", 3, {**TOKENS, "modalities": 13}, FEWER),
        },
        sizes=("nano", "tiny", "small", "base", "large"),
        usual={"tiny": 16, "base": 4},
        quick=("step", "update"),
        summary=training_step,
    ),
}
LOCAL_PIXELS = {"nano": 8}
TOKENIZER_PIXELS = {"nano": 64}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The full run takes about an hour on two quiet cores; figures of a busy machine mean little.",
    )  # fmt: skip
    parser.add_argument("family", choices=[*FAMILIES, "data"], help="what to time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument("--pairs", type=int, default=5, help="alternating runs of both sides per row (default 5)")
    sizes = sorted({size for family in FAMILIES.values() for size in family.sizes})
    parser.add_argument("--size", choices=sizes, help="default base, of skysense huge, of terramind tiny and base")
    parser.add_argument(
        "--batch", type=int, help="examples, where the row leaves it open (default 8, of terramind 16 tiny or 4 base)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of either side (default 2)")
    parser.add_argument(
        "--remat", default="dots", choices=["none", "dots", "full"], help="terra_jax's rematerialisation (default dots)"
    )
    parser.add_argument(
        "--rows", help="some of " + "; ".join(f"{n}: {','.join(family.rows)}" for n, family in FAMILIES.items())
    )
    parser.add_argument("--quick", action="store_true", help="a trial: nano, 1 pair, no torch.compile")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PYTHON", help="interpreter with PyTorch (default: this one)"
    )
    parser.add_argument("--tiles", type=Path, metavar="DIR", help="of data: samples made of these tiles, not drawn")
    options = parser.parse_args()
    if options.family == "data":
        return finish(options, benchmark_data.run, benchmark_data.table)
    family = FAMILIES[options.family]
    options.rows = options.rows or ",".join(family.rows)
    sizes = [options.size] if options.size else [*family.usual]
    batch = options.batch
    if options.quick:
        sizes, options.pairs, batch, options.rows = ["nano"], 1, 2, ",".join(family.quick)

    def take(options: argparse.Namespace) -> dict[str, Any]:
        results = {}
        for options.size in sizes:
            options.batch = family.usual.get(options.size, 8) if batch is None else batch
            results[options.size] = run(options)
        return {"family": options.family, "sizes": results} if len(sizes) > 1 else results[sizes[0]]

    def show(result: dict[str, Any]) -> str:
        return "\n\n".join(map(table, result["sizes"].values() if len(sizes) > 1 else [result]))

    return finish(options, take, show)


def finish(options: argparse.Namespace, take: Callable[..., dict[str, Any]], show: Callable[..., str]) -> int:
    """Take the figures, print them and write them."""
    try:
        result = take(options)
        print(show(result))
        if options.json:
            temporary = options.json.with_name(options.json.name + ".tmp")
            temporary.write_text(json.dumps(result, indent=1) + "\n")
            os.replace(temporary, options.json)
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Take all figures."""
    check(options)
    variants = VARIANTS[:1] if options.quick else VARIANTS
    result: dict[str, Any] = {
        "family": options.family, "size": options.size, "batch": options.batch, "threads": options.threads,
        "dtype": "float32", "remat": options.remat,
        "machine": machine(), "rows": {}, "versions": {"python": platform.python_version()},
    }  # fmt: skip
    family = FAMILIES[options.family]
    for name in options.rows.split(","):
        result["rows"][name] = measure_row(name, family.rows[name], options, variants, result["versions"])
    if family.trains:
        say("compile time and Python time")
        repeats = 20 if options.quick else 200
        result["compile_seconds"] = {
            depth: side("jax", options, {"row": "compile", "depth": depth, "local_views": 0}) for depth in DEPTHS
        }
        result["python"] = side("jax", options, {"row": "python", "repeats": repeats, "local_views": 0})
    result |= family.summary(result["rows"])
    result["machine"]["load_after"] = os.getloadavg()[0]
    return result


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work before anything runs."""
    family = FAMILIES[options.family]
    for name in options.rows.split(","):
        if name not in family.rows:
            raise BenchmarkError(f"--rows: unknown row {name!r}; choose from {', '.join(family.rows)}")
    if options.size not in family.sizes:
        raise BenchmarkError(f"--size: {options.family} has no {options.size}; choose from {', '.join(family.sizes)}")
    for name in ("pairs", "batch", "threads"):
        if getattr(options, name) < 1:
            raise BenchmarkError(f"--{name} must be at least 1")
    if options.json and not options.json.absolute().parent.is_dir():
        raise BenchmarkError(f"--json: {options.json.absolute().parent} is no folder; make it first")
    if not hasattr(os, "sched_setaffinity"):
        raise BenchmarkError("processor affinity cannot be set on this system; run on Linux")
    if len(os.sched_getaffinity(0)) < options.threads:
        raise BenchmarkError(f"--threads {options.threads}: only {len(os.sched_getaffinity(0))} cores are free to use")
    for python, module, cure in (
        (sys.executable, "terra_jax", "pip install -e ."),
        (options.torch_python, "torch", 'pip install "terra_jax[torch]", or name an interpreter with --torch-python'),
    ):
        found = subprocess.run([python, "-c", f"import {module}"], capture_output=True, env=environment(2), check=False)
        if found.returncode:
            raise BenchmarkError(f"{python} cannot import {module}; {cure}")


def measure_row(
    name: str, row: Row, options: argparse.Namespace, variants: tuple[str, ...], versions: dict
) -> dict[str, Any]:
    """Choose PyTorch's faster variant, then alternate the two sides."""
    settings = {"row": name, "repeats": row.repeats, **row.settings, **(row.trial if options.size == "nano" else {})}
    trials: dict[str, Any] = {}
    for variant in variants if len(variants) > 1 else ():
        say(f"{name}: trial of PyTorch {variant}")
        try:
            trials[variant] = side("torch", options, {**settings, "variant": variant})
        except BenchmarkError as error:
            trials[variant] = {"error": str(error)}
    ran = {variant: trial["seconds"] for variant, trial in trials.items() if "seconds" in trial}
    faster = min(ran, key=ran.__getitem__) if ran else variants[0]
    pairs = []
    for number in range(options.pairs):
        say(f"{name}: pair {number + 1} of {options.pairs} (PyTorch {faster})")
        order = ("torch", "jax") if number % 2 == 0 else ("jax", "torch")
        pairs.append({which: side(which, options, {**settings, "variant": faster}) for which in order})
    for which in ("torch", "jax"):
        versions |= pairs[0][which].pop("versions")
    ratios = [pair["jax"]["seconds"] / pair["torch"]["seconds"] for pair in pairs]
    return {
        "description": row.description,
        "torch_variant": faster,
        "torch_trials": trials,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "all": ratios},
        "seconds": {which: statistics.median(pair[which]["seconds"] for pair in pairs) for which in ("torch", "jax")},
        "peak_bytes": {which: max(pair[which]["peak_bytes"] for pair in pairs) for which in ("torch", "jax")},
        "pairs": pairs,
    }


def side(name: str, options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Run one side in a fresh process and return what it reports."""
    settings = {
        "size": options.size,
        "batch": options.batch,
        "threads": options.threads,
        "remat": options.remat,
        "prototypes": 256 if options.quick else 65536,
        "local_pixels": LOCAL_PIXELS.get(options.size, 96),
        "pixels": TOKENIZER_PIXELS.get(options.size, 224),
        **settings,
    }
    script = TOOLS / f"benchmark_{options.family}_{name}.py"
    python = options.torch_python if name == "torch" else sys.executable
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    done = subprocess.run(
        [python, str(script), json.dumps(settings)],
        capture_output=True, text=True, env=environment(options.threads), check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BenchmarkError(f"{script.name} failed on row {settings['row']}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    facts, versions = result["machine"], result["versions"]
    lines = [
        f"{result['family']} {result['size']}, {result['dtype']}, {result['threads']} threads{_options(result)}; "
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load_before']:.1f} to {facts['load_after']:.1f}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items()),
        "",
        f"{'row':<10} {'ratio':>6} {'spread':>13} {'terra_jax s':>12} {'PyTorch s':>10} "
        f"{'terra_jax GB':>13} {'PyTorch GB':>11}  PyTorch ran as",
    ]
    for name, row in result["rows"].items():
        ratio, seconds, peak = row["ratio"], row["seconds"], row["peak_bytes"]
        tried = "; ".join(
            f"{variant} " + (f"{trial['seconds']:.3g} s" if "seconds" in trial else f"failed ({trial['error']})")
            for variant, trial in row["torch_trials"].items()
        )
        lines.append(
            f"{name:<10} {ratio['median']:>6.2f} {ratio['min']:>6.2f}-{ratio['max']:<6.2f} {seconds['jax']:>12.3f} "
            f"{seconds['torch']:>10.3f} {peak['jax'] / 1e9:>13.2f} {peak['torch'] / 1e9:>11.2f}  "
            f"{row['torch_variant']}" + (f" (trials: {tried})" if tried else "")
        )
    for depth, times in result.get("compile_seconds", {}).items():
        traced, compiled = times["trace_seconds"], times["compile_seconds"]
        lines.append(f"depth {depth}: step traced in {traced:.1f} s, compiled in {compiled:.1f} s")
    if python := result.get("python"):
        lines.append(f"Python: {python['milliseconds']:.2f} ms a step ({python['arrays']} arrays in the state)")
    for name, value in FAMILIES[result["family"]].summary(result["rows"]).items():
        lines.append(f"{name}: " + (f"{value / 1e9:.2f} GB" if name.endswith("bytes") else f"{value:.3f}"))
    return "\n".join(lines)


def _options(result: Mapping[str, Any]) -> str:
    """Those that only training has."""
    return f", batch {result['batch']}, remat {result['remat']}" if FAMILIES[result["family"]].trains else ""


if __name__ == "__main__":
    sys.exit(main())
