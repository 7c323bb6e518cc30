"""What the C library does with memory that is given back: on it hangs whether reading costs page faults."""

import ctypes
import os
import sys

_TRIM, _MMAP = -1, -3  # of glibc's mallopt
_MMAP_BYTES, _TRIM_BYTES = 64 << 20, 1 << 30


def keep_freed_memory() -> bool:
    """Let glibc keep freed arrays for the next sample, instead of unmapping them and zeroing new pages each time.

    The same as MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment, which are left as they are where
    they are set. The process holds on to at most 1 GiB more than it uses.

    Returns:
        Whether it was done: not on other systems, with another allocator, or where the environment decides.
    """
    if not sys.platform.startswith("linux") or allocator() != "glibc":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP, _MMAP_BYTES)) and bool(mallopt(_TRIM, _TRIM_BYTES))


def allocator() -> str:
    """What this process allocates with: "glibc", "glibc (MALLOC_...=...)" or the name of a preloaded library."""
    preloaded = os.environ.get("LD_PRELOAD", "")
    for name in ("tcmalloc", "jemalloc", "mimalloc"):
        if name in preloaded:
            return name
    given = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    return f"glibc ({' '.join(given)})" if given else "glibc"
