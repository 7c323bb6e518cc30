"""Several processes as one run: joining, agreeing, waiting for each other, and leaving together."""

import itertools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import DataError
from terra_jax.errors import ConfigError, MissingProcessError, TerraJaxError
from terra_jax.parallel.processes import TIMEOUT, Processes, meet

WAIT = 600.0
"""Seconds that processes wait for each other in the middle of a run."""
_HEARTBEAT, _SHUTDOWN = 60, 300  # seconds until a silent process counts as gone, and for all to leave
POLL = 1.0
"""Seconds between two looks at whether another process has failed."""

MISSING = 3
"""Exit status when another process is gone: the same command on all hosts goes on."""

Value = TypeVar("Value")


class Group:
    """The processes of a run; every method is to be called by all of them in the same order.

    Attributes:
        index: of this process.
        count: of all.
        is_first: whether this one writes what is written once.
    """

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self.is_first = self.index == 0
        self._calls = itertools.count()
        self._client = _client() if self.count > 1 else None
        self._prefix = ""
        if self._client is not None:  # all make their groups in the same order; names must not be used twice
            self._prefix = f"terra_jax/group{self._client.key_value_increment(f'terra_jax/groups/{self.index}', 1)}"

    def gather(self, name: str, value: Value, timeout: float = WAIT) -> list[Value]:
        """Every process's value, in order.

        Args:
            name: what is waited for, as an error would say it.
            value: JSON.
            timeout: seconds.

        Raises:
            MissingProcessError: naming the processes that did not come.
        """
        if self._client is None:
            return [value]
        return self._exchange(name, value, range(self.count), timeout)

    def agree(self, name: str, decide: Callable[[], Value], timeout: float = WAIT) -> Value:
        """What the first process decides; the others do not decide.

        Args:
            name: as above.
            decide: called in the first process; gives JSON.
            timeout: seconds.

        Raises:
            TerraJaxError: the first process's error, in all of them.
        """
        if self._client is None:
            return decide()
        answer: dict[str, Any] = {}
        error = None
        if self.is_first:
            try:
                answer = {"value": decide()}
            except TerraJaxError as raised:
                answer, error = {"error": str(raised)}, raised
        answer = self._exchange(name, answer, [0], timeout)[0]
        if error is not None:
            raise error
        if "error" in answer:
            raise TerraJaxError(answer["error"])
        return answer["value"]

    def barrier(self, name: str, timeout: float = WAIT) -> None:
        """Wait for all.

        Raises:
            MissingProcessError: naming the processes that did not come.
        """
        self.gather(name, None, timeout)

    def failure(self) -> tuple[int, str] | None:
        """Exit status of another process that has ended, and why."""
        if self._client is None:
            return None
        for key, ended in self._client.key_value_dir_get("terra_jax/failed/"):
            index = int(key.rsplit("/", 1)[1])
            if index != self.index:
                status, reason = json.loads(ended)
                return status, f"{self.called(index)} ended: {reason}"
        return None

    def check(self) -> None:
        """Raise if another process has ended.

        Raises:
            MissingProcessError: for no fault of the user's.
            TerraJaxError: for one.
        """
        if failure := self.failure():
            status, reason = failure
            raise (MissingProcessError if status == MISSING else TerraJaxError)(reason)

    def _exchange(self, name: str, value: Any, wanted: Any, timeout: float) -> list[Any]:
        assert self._client is not None
        place = f"{self._prefix}/{next(self._calls)}"
        if self.index in wanted:
            self._client.key_value_set(f"{place}/{self.index}", json.dumps(value))
        deadline = time.monotonic() + timeout
        found: dict[int, Any] = {}
        while missing := [index for index in wanted if index not in found]:
            left = deadline - time.monotonic()
            if left <= 0:
                names = ", ".join(self.called(index) for index in missing)
                raise MissingProcessError(
                    f"{name}: {names} did not come within {timeout:g} s; look at its output, then run the same command "
                    "on all hosts again"
                )
            with suppress(jax.errors.JaxRuntimeError):  # not there yet
                wait = int(1000 * min(left, POLL)) + 1
                found[missing[0]] = json.loads(self._client.blocking_key_value_get(f"{place}/{missing[0]}", wait))
                continue
            self.check()
        return [found[index] for index in wanted]

    def called(self, index: int) -> str:
        """A process as messages name it: number and host."""
        if self._client is None:
            return f"process {index}"
        name = ""
        with suppress(jax.errors.JaxRuntimeError):
            name = f" ({self._client.key_value_try_get(f'terra_jax/hosts/{index}')})"
        return f"process {index}{name}"


def batch_share(sharding: NamedSharding) -> tuple[int, int]:
    """Which part of each global batch this process feeds: (index, count) for the loader.

    Processes whose devices hold the same examples (a tensor axis across hosts) read the same part.

    Raises:
        ConfigError: the mesh gives processes uneven parts.
    """
    size = sharding.num_devices
    rows: dict[int, set[int]] = {}
    places: dict[Any, Any] = dict(sharding.devices_indices_map((size,)))
    for device, index in places.items():
        rows.setdefault(device.process_index, set()).update(range(*index[0].indices(size)))
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    if len({len(part) for part in parts}) != 1 or sum(map(len, parts)) != len(set().union(*parts)):
        raise ConfigError(
            "mesh: processes would hold uneven parts of a batch; make mesh.tensor divide, or be a multiple of, the "
            f"{jax.local_device_count()} devices of a host"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def fetch(tree: Any) -> Any:
    """Whole NumPy arrays of what a computation returned, on every process, whichever devices hold the parts."""

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def place_everywhere(tree: Any) -> Any:
    """Host arrays, the same in every process, as inputs of a computation on all devices."""
    # an array put on a device of this process could not meet parameters that lie on all processes' devices
    return jax.device_put(tree) if jax.process_count() == 1 else tree


def connect(mesh: Mesh, group: Group) -> None:
    """Let the devices of all processes find each other now.

    Collectives of CPUs wait only 30 s for a process that still compiles when it first takes part in them.
    """
    if group.count == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    group.barrier("the mesh")
    axes = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    total = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    for number in range(1, len(axes) + 1):
        for summed in itertools.combinations(axes, number):  # every set of devices that a collective may join
            ones = np.ones(math.prod(mesh.shape[name] for name in summed), np.float32)
            split = NamedSharding(mesh, PartitionSpec(summed))
            jax.block_until_ready(total(jax.make_array_from_callback(ones.shape, split, ones.__getitem__)))


@contextmanager
def joined(processes: Processes | None, timeout: float = TIMEOUT) -> Iterator[None]:
    """Be one of the processes of a run, from before JAX's first use to the end.

    When the body raises, the others are told and this process ends at once: leaving as usual would wait for them.

    Args:
        processes: this one among all; None changes nothing.
        timeout: seconds to wait for the others at the start.

    Raises:
        ConfigError: naming who did not come.
    """
    if processes is None:
        yield
        return
    names = meet(processes, timeout)
    jax.distributed.initialize(
        processes.coordinator,
        processes.count,
        processes.index,
        cluster_detection_method="deactivate",
        initialization_timeout=int(TIMEOUT),
        heartbeat_timeout_seconds=_HEARTBEAT,
        shutdown_timeout_seconds=_SHUTDOWN,
    )
    _client().key_value_set(f"terra_jax/hosts/{processes.index}", names[processes.index])
    try:
        yield
    except BaseException as error:
        _leave(error, processes)
    jax.distributed.shutdown()


def _leave(error: BaseException, processes: Processes) -> None:
    """Say why, here and to the others, and end."""
    status, reason = 1, f"{type(error).__name__}: {error}"
    if isinstance(error, TerraJaxError | DataError):
        status, reason = (MISSING if isinstance(error, MissingProcessError) else 2), str(error)
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        status = 130
        print("interrupted", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"terra_jax/failed/{processes.index}", json.dumps([status, reason]))
    if processes.index == 0:  # what the others hear of goes through this process
        time.sleep(3 * POLL)
    os._exit(status)


def _client() -> Any:
    """JAX's connection to the coordinator; it has no public name."""
    from jax._src import distributed

    return distributed.global_state.client
