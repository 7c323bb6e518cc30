"""libtpu, the compiler and driver of TPUs, on machines that have none."""

import os
from pathlib import Path

_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",  # no machine of Google's cloud is asked what hardware it has
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # neither of these is read when a topology is named; unset, they are
    "TPU_WORKER_HOSTNAMES": "localhost",  # complained of
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


def has_tpu() -> bool:
    """Whether this host has TPU chips."""
    return any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))


def known_to_be_absent() -> bool:
    """Whether JAX found no TPU in a process that started this one; the note that it leaves makes libtpu complain."""
    return "TPU_SKIP_MDS_QUERY" in os.environ and not has_tpu()


def keep_quiet() -> None:
    """Let libtpu be installed here without its looking for a TPU, locking one, or complaining that there is none."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
