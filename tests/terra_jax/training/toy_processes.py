"""Runs of the toy in processes of their own, one or several at once."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from terra_jax.training.metrics import read_csv

TOY = Path(__file__).with_name("toy_run.py")
ENDS_WITHIN = 240
"""Seconds; a machine may be busy, and a hang must not hang the suite."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(workdir, processes=1, devices=1, environment=None, each=None, **options):
    """Start a run.

    Args:
        workdir: of the run.
        processes: how many.
        devices: of each.
        environment: variables beside the usual ones.
        each: index of a process -> options of its own.
        options: as `toy_run.run` takes them.
    """
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(TOY.parents[3]),
        "JAX_COMPILATION_CACHE_DIR": str(Path(workdir).parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **(environment or {}),
    }
    options = {"workdir": str(workdir), "config": {}, **options}
    if processes > 1:
        options = {"coordinator": f"127.0.0.1:{free_port()}", "count": processes, **options}
    return [
        subprocess.Popen(
            [sys.executable, str(TOY), json.dumps({**options, "index": i} if processes > 1 else options)
             if not each else json.dumps({**options, "index": i, **each.get(i, {})})],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def finish(run):
    """Wait for all processes of a run: (exit status, output) of each."""
    deadline = time.monotonic() + ENDS_WITHIN
    results = []
    for process in run:
        try:
            out, _ = process.communicate(timeout=max(deadline - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            for other in run:
                other.kill()
            out = process.communicate()[0] + "\n(did not end)"
        results.append((process.returncode, out))
    return results


def succeed(run):
    """Wait for a run that must finish; the output of its processes."""
    results = finish(run)
    assert [status for status, _ in results] == [0] * len(run), "\n----\n".join(out for _, out in results)
    return [out for _, out in results]


def rows(workdir):
    path = workdir / "metrics.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def wait_for(run, workdir, count):
    """Until the table has so many rows, or a process has ended."""
    while rows(workdir) < count and all(process.poll() is None for process in run):
        time.sleep(0.02)


def losses(workdir):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_csv(workdir / "metrics.csv")]
