"""Plan runs on TPUs that are not there: the best settings for a pod, and how a run grows with its chips.

    python tools/tpu/plan.py tune --config terrafm/base --pod v5e:16x16 --pod v6e:16x16 --cache plans.json
    python tools/tpu/plan.py scale --config terrafm/base --generation v5e --cache plans.json --png scaling.png
    python tools/tpu/plan.py table --cache plans.json

`tune` guesses step times of every mesh, remat policy and number of micro-batches from the traced program, and compiles
the most promising, at most --compiles of them, until one fits. `scale` compiles the config at 8, 16, 64 and 256 chips
with the same batch a chip. Results are kept by the hash of what was compiled, so that a second run goes on where the
first one stopped. `table` prints what is in the cache. Compiling a base-size model takes minutes of one CPU.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.errors import DataError
from terra_jax import registry
from terra_jax.errors import ConfigError, TerraJaxError
from terra_jax.parallel.aot import Target, lower
from terra_jax.parallel.apart import compile_apart
from terra_jax.parallel.estimate import candidates, measured
from terra_jax.parallel.fitting import with_change
from terra_jax.training.config import load_config, write_json

Report = dict[str, Any]
SIZES = {
    "v5e": ("2x4", "4x4", "8x8", "16x16"),
    "v6e": ("2x4", "4x4", "8x8", "16x16"),
    "v5p": ("2x2x2", "2x2x4", "4x4x4", "4x8x8"),
}
"""Generation -> slices of 8, 16, 64 and 256 chips."""


class Cache:
    """Reports by what was compiled, in a JSON file that is written after each."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.reports: dict[str, Report] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as error:
            raise ConfigError(f"{path} is no cache of plans ({error}); choose another --cache") from error

    def compiled(self, name: str, use: str, config: ConfigDict, target: Target) -> tuple[Report, bool]:
        """The report of a config on a target, and whether it had to be compiled."""
        step = lower(config, target, registry.objective)
        described = f"{step.digest()} {target.topology} {target.slices} {version('libtpu')}"
        key = hashlib.sha256(described.encode()).hexdigest()
        new = key not in self.reports
        if new:
            where = target.topology, target.slices
            report = compile_apart(config, target=where, objective=registry.objective, say=say)
            self.reports[key] = {"config": name, "uses": [], **report}
        if use not in self.reports[key]["uses"]:
            self.reports[key]["uses"].append(use)
        write_json(self.path, self.reports)
        return self.reports[key], new


def tune(name: str, overrides: Sequence[str], pod: str, cache: Cache, compiles: int) -> Report | None:
    """The first of the most promising settings that fits, compiled; None if none of those tried does."""
    config, target = load_config(name, overrides), Target.named(pod)
    if config.batch_size % len(target.devices):
        raise ConfigError(f"batch_size={config.batch_size} does not divide over {len(target.devices)} chips; change it")
    say(f"{name} on {pod}: tracing")
    wanted = candidates(config, target, measured(config, target, registry.objective))
    for candidate in wanted[:compiles]:
        keys = " ".join(f"{key}={value}" for key, value in candidate.change.items())
        say(f"  {keys}: a guess of {1e3 * candidate.seconds:.1f} ms, {candidate.peak_bytes / 2**30:.1f} GiB")
        report, _ = cache.compiled(name, "tune", with_change(config, candidate.change), target)
        if report["fits"]:
            return report
    return None


def scale(name: str, overrides: Sequence[str], generation: str, cache: Cache) -> list[Report]:
    """Reports at growing sizes, with the batch a chip that the config has on the largest."""
    config, targets = (
        load_config(name, overrides),
        [Target.named(f"{generation}:{shape}") for shape in SIZES[generation]],
    )
    largest = len(targets[-1].devices)
    if config.batch_size % largest:
        raise ConfigError(f"batch_size={config.batch_size} does not divide over {largest} chips; change it")
    reports = []
    for target in targets:
        part = ConfigDict(config.to_dict())
        part.batch_size = config.batch_size // largest * len(target.devices)
        say(f"{name} on {target.topology}: batch {part.batch_size}")
        reports.append(cache.compiled(name, f"scale {generation}", part, target)[0])
    return reports


def table(reports: Sequence[Report]) -> str:
    """Markdown, a row a report."""
    lines = [
        "| config | chips | mesh | batch a chip | remat | GiB of | model/compiled | ms at least: compute, memory, ICI "
        "| MFU at most |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        run, times = report["run"], report["roofline"]
        mesh = " x ".join(f"{axis} {size}" for axis, size in run["mesh"].items() if size > 1) or "1"
        batch = f"{run['batch_per_device']:g}" + (f" x {run['accumulation']}" if run["accumulation"] > 1 else "")
        memory = f"{report['peak_bytes'] / 2**30:.1f} of {report['hbm_bytes'] / 2**30:.1f}"
        chips = f"{run['slices']} x {run['topology']}" if run["slices"] > 1 else run["topology"]
        row = [report["config"], chips, mesh, batch, run["remat"], memory]
        if times is None:
            row += ["", "", "" if report["fits"] else "does not fit"]
        else:
            parts = ", ".join(f"{1e3 * times[part]:.1f}" for part in ("compute", "memory", "interconnect"))
            share = report["model_flops"] / report["compiled_flops"]
            row += [f"{share:.2f}", parts, f"{100 * report['mfu_upper_bound']:.0f} % ({times['limit']})"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def chip_hours(report: Report, samples: float = 1e7) -> float:
    """Hours of all chips together for so many samples, at the upper bound of the speed."""
    run = report["run"]
    return report["roofline"]["max"] * samples / run["batch_size"] * run["devices"] / 3600


def hiding_batch(report: Report) -> int:
    """Samples a chip from which what is exchanged, about the same for any batch, takes no longer than arithmetic."""
    times, exchanged = report["roofline"], sum(report["roofline"][part] for part in ("interconnect", "network"))
    return max(1, math.ceil(report["run"]["batch_per_device"] * exchanged / times["compute"]))


def growth(reports: Sequence[Report]) -> str:
    """What more chips change: the limit, the least step time, and the batch that hides the interconnect."""
    first, last = reports[0], reports[-1]
    sizes = f"{first['run']['devices']} to {last['run']['devices']} chips"
    longer = last["roofline"]["max"] / first["roofline"]["max"] - 1
    before, after = (1e3 * (r["roofline"]["interconnect"] + r["roofline"]["network"]) for r in (first, last))
    return "\n".join(
        [
            f"{sizes}: a step at least {100 * longer:+.1f} % longer, limited by {last['roofline']['limit']}; "
            f"exchanges {before:.1f} to {after:.1f} ms",
            f"arithmetic hides the interconnect from {max(map(hiding_batch, reports))} samples a chip",
            f"10 million samples: at least {chip_hours(last):,.0f} chip-hours",
        ]
    )


def draw(reports: Sequence[Report], path: Path) -> None:
    """What one chip does in a step, by the number of chips."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    chips = [report["run"]["devices"] for report in reports]
    exchanged = [sum(e["bytes"] for e in report["collectives"]) for report in reports]
    panels = {
        "TFLOP a chip": [report["compiled_flops"] / 1e12 for report in reports],
        "GB a chip: memory, exchanged": [report["bytes_moved"] / 1e9 for report in reports],
        "ms a step, at least": [1e3 * report["roofline"]["max"] for report in reports],
    }
    for axes, (title, values) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.plot(chips, values, marker="o")
        if title.startswith("GB"):
            axes.plot(chips, [size / 1e9 for size in exchanged], marker="s")
        axes.set(title=title, xlabel="chips", xscale="log", ylim=(0, None))
        axes.set_xticks(chips, [str(count) for count in chips])
        axes.minorticks_off()
    figure.suptitle(f"{reports[0]['config']} on {reports[0]['run']['topology'].split(':')[0]}, the same batch a chip")
    figure.savefig(path, dpi=110)


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and status 2."""
    options, rest = _parser().parse_known_args(arguments)
    overrides = [item.removeprefix("--") for item in rest if item.startswith("--config.")]
    try:
        if unknown := [item for item in rest if not item.startswith("--config.")]:
            raise ConfigError(f"unknown option {unknown[0]!r}")
        print(_run(options, overrides, Cache(options.cache)))
    except (TerraJaxError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace, overrides: list[str], cache: Cache) -> str:
    if options.command == "table":
        return table(list(cache.reports.values()))
    one: Callable[[str], Any]
    if options.command == "tune":
        found = [tune(name, overrides, pod, cache, options.compiles) for name in options.config for pod in options.pod]
        return table([report for report in found if report])
    one = partial(scale, overrides=overrides, generation=options.generation, cache=cache)
    text = []
    for name in options.config:
        reports = one(name)
        text.append(table(reports))
        if all(report["roofline"] for report in reports):
            text.append(growth(reports))
            if options.png:
                draw(reports, options.png)
    return "\n".join(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in (("tune", "best settings for a pod"), ("scale", "growth"), ("table", "what is known")):
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        command.add_argument(
            "--cache", type=Path, required=True, metavar="FILE", help="a .json, continued if it is there"
        )
        if name != "table":
            command.add_argument("--config", action="append", required=True, metavar="NAME", help="repeat for several")
        if name == "tune":
            command.add_argument("--pod", action="append", required=True, metavar="TOPOLOGY", help="repeat for several")
            command.add_argument("--compiles", type=int, default=3, metavar="N", help="at most, a pod (default 3)")
        if name == "scale":
            command.add_argument("--generation", choices=SIZES, default="v5e", help="of chips (default v5e)")
            command.add_argument("--png", type=Path, metavar="FILE", help="plot")
    return parser


if __name__ == "__main__":
    sys.exit(main())
