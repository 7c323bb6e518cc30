"""Who takes part in a run, and how its processes find each other before JAX starts.

JAX's own start-up aborts the process with a stack trace where a host is missing. Here the processes meet first, over
one plain TCP connection each, so that whoever is missing can be named.
"""

import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from terra_jax.errors import ConfigError, MissingProcessError, TerraJaxError
from terra_jax.parallel.libtpu import has_tpu

PORT = 8482
"""Of the coordinator where the environment names only its host."""
TIMEOUT = 50.0
"""Seconds that processes wait for each other at the start."""
_METADATA_TIMEOUT = 5.0


@dataclass(frozen=True)
class Processes:
    """This process among all of a run."""

    coordinator: str
    """HOST:PORT that process 0 listens on."""
    count: int
    index: int


def find(coordinator: str | None, processes: int | None, process: int | None) -> Processes | None:
    """What the command line says, else what the environment says; None for one process alone.

    Raises:
        ConfigError: either is incomplete.
    """
    if (coordinator, processes, process) == (None, None, None):
        return from_environment()
    return from_options(coordinator, processes, process)


def from_options(coordinator: str | None, processes: int | None, process: int | None) -> Processes | None:
    """What the command line says; None stands for one process alone.

    Args:
        coordinator: HOST:PORT of process 0.
        processes: how many there are; 1 is enough to say that this one is alone.
        process: which one this is, from 0.

    Raises:
        ConfigError: something is missing, or does not fit together.
    """
    if processes == 1 and process in (None, 0):
        return None
    if coordinator is None or processes is None or process is None:
        raise ConfigError("--coordinator HOST:PORT, --processes N and --process I go together: give all three")
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"--coordinator {coordinator!r} is not HOST:PORT, as in 10.0.0.2:{PORT}")
    if not 0 <= process < processes:
        raise ConfigError(f"--process {process} is none of --processes {processes}; count from 0")
    return Processes(coordinator, processes, process)


def from_environment(environment: Mapping[str, str] = os.environ) -> Processes | None:
    """What a TPU host's environment says; None where there is one process.

    GKE sets variables in every TPU container; a TPU VM asks its metadata server. Several slices are counted one after
    the other.

    Raises:
        ConfigError: the environment is incomplete.
    """
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return None
    known = dict(environment)
    hosts = known.get("TPU_PROCESS_ADDRESSES") or known.get("TPU_WORKER_HOSTNAMES")
    if not hosts:
        if not has_tpu():
            return None
        hosts, worker, variables = _metadata(known)
        known = {**variables, **known, "TPU_WORKER_ID": worker}
    names = hosts.split(",")
    try:
        slices, this_slice = (int(known.get(f"MEGASCALE_{name}") or least) for name, least in _SLICES)
        if len(names) * slices == 1:
            return None
        index = int(known["TPU_WORKER_ID"]) + this_slice * len(names)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the TPU host's environment is incomplete ({error}); give --coordinator HOST:PORT --processes N "
            "--process I"
        ) from error
    host = (known.get("MEGASCALE_COORDINATOR_ADDRESS") or names[0]).split(":")[0]
    return Processes(f"{host}:{PORT}", len(names) * slices, index)


_SLICES = (("NUM_SLICES", 1), ("SLICE_ID", 0))


def _metadata(environment: Mapping[str, str]) -> tuple[str, str, dict[str, str]]:
    """Hosts of the slice, number of this one and TPU variables, from the metadata server of Compute Engine."""
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def ask(name: str) -> str:
        url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=_METADATA_TIMEOUT) as answer:
            return answer.read().decode().strip()

    try:
        endpoints, worker = ask("worker-network-endpoints"), ask("agent-worker-number")
        lines = ask("tpu-env").splitlines()
    except (OSError, urllib.error.URLError) as error:
        raise ConfigError(
            f"the TPU host's metadata server {server} does not tell the other hosts ({error}); give --coordinator "
            "HOST:PORT --processes N --process I, or --processes 1 for this host alone"
        ) from error
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    variables = {name.strip(): value.strip().strip("'") for name, value in pairs}
    # an endpoint is a host's name, or name:id:address in older images
    return ",".join(endpoint.split(":")[-1] for endpoint in endpoints.split(",")), worker, variables


def meet(processes: Processes, timeout: float = TIMEOUT) -> list[str]:
    """Wait until all processes are there.

    Args:
        processes: this one among all.
        timeout: seconds to wait for the others.

    Returns:
        Host name of every process.

    Raises:
        MissingProcessError: naming the coordinator that cannot be reached, or the processes that did not come.
        ConfigError: processes contradict each other.
    """
    deadline = time.monotonic() + timeout
    if processes.index == 0:
        return _receive(processes, deadline, timeout)
    answer = _report(processes, deadline, timeout)
    if "names" not in answer:
        raise _fault(answer)
    return answer["names"]


def _fault(answer: Mapping[str, str]) -> TerraJaxError:
    return MissingProcessError(answer["missing"]) if "missing" in answer else ConfigError(answer["wrong"])


def _receive(processes: Processes, deadline: float, timeout: float) -> list[str]:
    """Take every other process's call, then answer all of them."""
    port = int(processes.coordinator.rpartition(":")[2])
    came: dict[int, tuple[socket.socket, str]] = {}
    with ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port), backlog=processes.count))
        except OSError as error:
            raise ConfigError(
                f"process 0 cannot listen on port {port} ({error.strerror}); choose another --coordinator HOST:PORT"
            ) from error
        answer: dict[str, Any] = {}
        while len(came) < processes.count - 1 and not answer:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [str(i) for i in range(1, processes.count) if i not in came]
                some = "process" if len(missing) == 1 else "processes"
                answer["missing"] = (
                    f"{some} {', '.join(missing)} of {processes.count} did not come within {timeout:g} s; start the "
                    "same command on every host, each with its own --process"
                )
                break
            stack.callback(connection.close)
            if wrong := _admit(processes, came, connection):
                answer["wrong"] = wrong
        if not answer:
            answer = {"names": [socket.gethostname(), *(came[i][1] for i in range(1, processes.count))]}
        for connection, _ in came.values():
            connection.settimeout(5)
            with suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
    if "names" not in answer:
        raise _fault(answer)
    return answer["names"]


def _admit(processes: Processes, came: dict[int, tuple[socket.socket, str]], connection: socket.socket) -> str:
    """Note a process that called; what is wrong with it, if anything."""
    connection.settimeout(5)
    try:
        said = json.loads(connection.makefile().readline())
        index, count, name = said["index"], said["count"], said["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # a stranger, or one that died: the deadline decides
    known = came.get(index)
    came[index] = connection, name
    if known is not None and not _closed(known[0]):
        came[-1] = known  # is told as well
        return f"two processes, on {known[1]} and {name}, say --process {index}; each needs its own number"
    if count != processes.count:
        return f"process {index} ({name}) says --processes {count}, process 0 says {processes.count}; give all the same"
    return ""


def _closed(connection: socket.socket) -> bool:
    """Whether the other end has gone (and may have been started again)."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _report(processes: Processes, deadline: float, timeout: float) -> dict[str, Any]:
    """Call the coordinator until it answers; it answers when all are there."""
    host, _, port = processes.coordinator.rpartition(":")
    said = {"index": processes.index, "count": processes.count, "name": socket.gethostname()}
    reason = "it did not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, int(port)), timeout=min(left, 5)) as connection:
                connection.sendall(json.dumps(said).encode() + b"\n")
                connection.settimeout(left + 5)  # the coordinator may have begun to wait later
                return json.loads(connection.makefile().readline())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it did not answer as terra-jax does"
            time.sleep(min(0.2, max(left, 0)))
    raise MissingProcessError(
        f"coordinator {processes.coordinator} cannot be reached within {timeout:g} s ({reason}); start process 0 "
        "there, and check address, port and firewall"
    )
