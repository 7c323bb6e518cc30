"""What to change in a run that does not fit into memory: the cheapest change, proven by compiling it."""

from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from terra_jax.parallel.aot import changed
from terra_jax.parallel.hardware import GIB

REMAT = ("none", "dots", "full")
"""Rematerialisation policies, those that keep most and recompute least first."""
MOST_FSDP = 16
"""Beyond it shards of a ViT's width are so thin that XLA exchanges whole gradients instead of shards."""
MOST_TRIALS = 6

Report = dict[str, Any]
Compile = Callable[[ConfigDict], Report]
Say = Callable[[str], None]


def compile_report(config: ConfigDict, compile_config: Compile, say: Say) -> Report:
    """Compile a config's train step and say what it needs; where it does not fit, find a change that does.

    Args:
        config: of a run.
        compile_config: config -> report, as `aot.compile_step` makes it.
        say: takes a line for each further attempt.

    Returns:
        The report; with "would_fit" where the step does not fit: {"change": config keys and values, "peak_bytes",
        "mfu_upper_bound"} of the first change that does, or None if none of those tried does.
    """
    report = compile_config(config)
    if report["fits"]:
        return report
    report["would_fit"] = None
    last = report
    for _, change in zip(range(MOST_TRIALS), changes(config, report), strict=False):
        keys = " ".join(f"{key}={value}" for key, value in change.items())
        say(f"{last['peak_bytes'] / GIB:.2f} GiB of {last['hbm_bytes'] / GIB:.2f} do not fit; trying {keys}")
        last = compile_config(with_change(config, change))
        if last["fits"]:
            report["would_fit"] = {"change": change} | {key: last[key] for key in ("peak_bytes", "mfu_upper_bound")}
            break
    return report


def changes(config: ConfigDict, report: Report) -> Iterator[dict[str, Any]]:
    """Changes of a config, the cheapest first; those that cannot help by the sizes at hand are left out.

    Recomputation costs arithmetic, and only as much as memory asks for. Accumulation costs little, but makes of one
    batch several, which matters to objectives that compare examples. Sharded parameters must be gathered. Where the
    state alone does not fit, only sharding helps.

    Args:
        config: that does not fit.
        report: of it.

    Yields:
        {config key: value}, "mesh.fsdp" for an axis.
    """
    mesh, state, available = report["run"]["mesh"], report["argument_bytes"], report["hbm_bytes"]
    rest, split = max(report["peak_bytes"] - state, 0), mesh["data"] * mesh["fsdp"]
    policies = [{"remat": policy} for policy in REMAT[REMAT.index(config.remat) + 1 :]]
    parts = [k for k in _doubled(config.accumulation) if config.batch_size % (split * k) == 0]
    shards = [f for f in _doubled(mesh["fsdp"]) if f <= MOST_FSDP and split % f == 0]
    least = policies[-1] if policies else {}
    if state < available:
        yield from policies
        # The sum of the micro-batches' gradients lies beside the state, of which parameters are a quarter or less.
        enough = [k for k in parts if 1.25 * state + rest * config.accumulation / k < available]
        yield from ({**least, "accumulation": k} for k in enough[:2])
    sharded = {f: {**least, "mesh.data": split // f, "mesh.fsdp": f} for f in shards}
    enough = [f for f in shards if state * mesh["fsdp"] / f + rest < available] or shards[-1:]
    yield from (sharded[f] for f in enough[:2])
    if parts and shards:
        yield {**sharded[shards[-1]], "accumulation": parts[-1]}


def _doubled(start: int) -> list[int]:
    return [start * 2**i for i in range(1, 11)]


def with_change(config: ConfigDict, change: dict[str, Any]) -> ConfigDict:
    """A copy of a config with other values; {"mesh.fsdp": 8} for an axis."""
    axes = {key.removeprefix("mesh."): value for key, value in change.items() if key.startswith("mesh.")}
    others = {key: value for key, value in change.items() if not key.startswith("mesh.")}
    return changed(config, **others, mesh={**config.mesh.to_dict(), **axes})
