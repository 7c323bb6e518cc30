"""What all benchmarks share: their error, the environment of a fresh process, and what the machine is."""

import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent


class BenchmarkError(Exception):
    """Anything that keeps a benchmark from being taken; one line."""


def environment(threads: int) -> dict[str, str]:
    """The environment of either side: thread counts fixed, one CPU device, no cache of compiled programs."""
    dropped = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES")
    inherited = {key: value for key, value in os.environ.items() if key not in dropped}
    path = os.pathsep.join(filter(None, [str(TOOLS.parent), inherited.get("PYTHONPATH")]))
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**inherited, **counts, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0].split(":")[1].strip() if named else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def say(message: str) -> None:
    """Report progress."""
    print(message, file=sys.stderr, flush=True)
