"""What `terra-jax compile` prints."""

from collections.abc import Mapping
from typing import Any

from terra_jax.parallel.hardware import GIB

HONEST = "published ViTs reach 17 to 40 % of the peak; the upper bound leaves out latencies and the vector unit"


def compile_table(report: Mapping[str, Any]) -> str:
    """A report of `fitting.compile_report`, as lines of text."""
    run = report["run"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in run["mesh"].items())
    slices = f"{run['slices']} slices of " if run["slices"] > 1 else ""
    rows = [
        ("target", f"{slices}{run['topology']}: {run['devices']} devices, mesh {mesh}"),
        ("batch", f"{run['batch_size']} = {run['batch_per_device']:g} a device x {run['accumulation']} micro-batches"),
        ("compute", f"{run['dtype']}, remat {run['remat']}"),
        ("arguments", f"{_gib(report['argument_bytes'])} a device: state and batch"),
        ("memory", _memory(report)),
        ("model FLOPs", f"{_operations(report['model_flops'])} a device and step"),
    ]
    if report["roofline"] is not None:
        rows += _compiled(report)
    elif report["fits"]:
        rows.append(("compiled", f"not known: the compiler does not print programs for {run['topology']}"))
    if "would_fit" in report:
        rows.append(("would fit", _would_fit(report["would_fit"])))
    width = max(len(name) for name, _ in rows)
    return "\n".join([run["model"], *(f"  {name:<{width}}  {text}" for name, text in rows)])


def _memory(report: Mapping[str, Any]) -> str:
    verdict = "fits" if report["fits"] else "DOES NOT FIT"
    return f"{_gib(report['peak_bytes'])} of {_gib(report['hbm_bytes'])}: {verdict}"


def _compiled(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    times, checks = report["roofline"], report["checks"]
    parts = ", ".join(f"{name} {1e3 * times[name]:.2f}" for name in ("compute", "memory", "interconnect", "network"))
    share = report["model_flops"] / report["compiled_flops"]
    done = f"{_operations(report['compiled_flops'])} (model/compiled {share:.2f})"
    limit = f"at least {1e3 * times['max']:.2f} ({times['limit']}), {1e3 * times['sum']:.2f} one after the other"
    rows = [
        ("compiled", f"{done}, {report['bytes_moved'] / 1e9:.2f} GB through HBM"),
        *(("collectives" * (i == 0), _exchange(exchange)) for i, exchange in enumerate(report["collectives"])),
        ("milliseconds", f"{parts}; {limit}"),
        ("MFU", f"at most {100 * report['mfu_upper_bound']:.1f} %, limited by {times['limit']} ({HONEST})"),
    ]
    wrong = [name for name, value in checks.items() if value and name != "float32_share"]
    if checks["float32_share"] > 0.01:
        wrong.append(f"float32 in {100 * checks['float32_share']:.0f} % of the products' operations")
    return [*rows, ("beware", ", ".join(wrong))] if wrong else rows


def _exchange(exchange: Mapping[str, Any]) -> str:
    what = "between slices" if exchange["kind"] == "dcn" else "{kind} of {group}".format(**exchange)
    return f"{exchange['count']:>6} {what}, {exchange['bytes'] / 1e6:,.1f} MB"


def _would_fit(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "no change of remat, accumulation or fsdp that was tried; use more or larger devices"
    change = " ".join(f"--config.{key}={value}" for key, value in found["change"].items())
    return f"{change} ({_gib(found['peak_bytes'])}, compiled)"


def _operations(count: float) -> str:
    return f"{count / 1e12:.3f} T" if count >= 1e11 else f"{count / 1e9:.3f} G"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
