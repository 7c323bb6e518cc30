import http.server
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from toy_processes import free_port

from terra_jax.errors import ConfigError, MissingProcessError
from terra_jax.parallel import processes as module
from terra_jax.parallel.processes import Processes, find, from_environment, from_options, meet


def meet_all(count, wait=20.0, only=None, port=None, lies=None):
    """Results or errors of processes that look for each other, by index."""
    address = f"127.0.0.1:{port or free_port()}"
    said = {i: Processes(address, count, i) for i in (range(count) if only is None else only)}
    said |= {name: Processes(address, *lie) for name, lie in (lies or {}).items()}

    def one(entry):
        try:
            return meet(entry, wait)
        except (ConfigError, MissingProcessError) as error:
            return error

    with ThreadPoolExecutor(len(said)) as pool:
        return dict(zip(said, pool.map(one, said.values()), strict=True))


def test_all_meet_and_know_each_others_names():
    names = meet_all(4)
    assert len({tuple(found) for found in names.values()}) == 1 and len(names[0]) == 4


def test_who_did_not_come_is_named_to_all_who_did():
    began = time.monotonic()
    results = meet_all(4, wait=1.0, only=(0, 2))
    assert time.monotonic() - began < 10
    for error in results.values():
        assert isinstance(error, MissingProcessError)
        assert str(error).startswith("processes 1, 3 of 4 did not come within 1 s")


def test_a_coordinator_that_is_not_there_is_one_line():
    error = meet_all(2, wait=0.5, only=(1,))[1]
    assert isinstance(error, MissingProcessError) and "\n" not in str(error)
    assert "cannot be reached within 0.5 s (Connection refused); start process 0 there" in str(error)


def test_contradictions_are_named():
    twice = meet_all(3, lies={"impostor": (3, 1)}, only=(0, 1), wait=5)
    assert any("say --process 1; each needs its own number" in str(error) for error in twice.values())
    other = meet_all(2, only=(0,), lies={"other": (3, 1)}, wait=5)
    assert all("says --processes 3, process 0 says 2; give all the same" in str(error) for error in other.values())


def test_an_occupied_port_is_named():
    import socket

    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"process 0 cannot listen on port {port}"):
            meet(Processes(f"127.0.0.1:{port}", 2, 0), 1.0)


def test_options():
    assert from_options("10.0.0.2:99", 4, 3) == Processes("10.0.0.2:99", 4, 3)
    assert from_options(None, 1, None) is None
    for bad, message in (
        (("10.0.0.2:99", 4, None), "go together"),
        ((None, 4, 1), "go together"),
        (("10.0.0.2", 4, 1), "is not HOST:PORT"),
        (("10.0.0.2:x", 4, 1), "is not HOST:PORT"),
        (("10.0.0.2:99", 4, 4), "--process 4 is none of --processes 4; count from 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_options(*bad)


def test_gke_says_who_is_there(monkeypatch):
    monkeypatch.setattr(module, "has_tpu", lambda: False)
    assert from_environment({}) is None
    hosts = {"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "2"}
    assert from_environment(hosts) == Processes("a:8482", 4, 2)
    assert from_environment({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None  # Colab
    slices = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "first:8080"}
    assert from_environment({**hosts, **slices}) == Processes("first:8482", 8, 6)
    assert from_environment({**hosts, "JAX_PLATFORMS": "cpu"}) is None
    with pytest.raises(ConfigError, match="environment is incomplete"):
        from_environment({"TPU_WORKER_HOSTNAMES": "a,b"})
    for name in hosts:
        monkeypatch.setenv(name, hosts[name])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert find(None, None, None) == Processes("a:8482", 4, 2)
    assert find("x:1", 2, 0) == Processes("x:1", 2, 0)  # what is said counts


def test_a_tpu_vm_asks_its_metadata_server(monkeypatch):
    known = {
        "worker-network-endpoints": "w0:x:10.0.0.1,w1:x:10.0.0.2",
        "agent-worker-number": "1",
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\nMEGASCALE_NUM_SLICES: '1'",
    }

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(known[self.path.rsplit("/", 1)[1]].encode())

        def log_message(self, *_):
            pass

    monkeypatch.setattr(module, "has_tpu", lambda: True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        assert from_environment({"GCE_METADATA_IP": address}) == Processes("10.0.0.1:8482", 2, 1)
        server.shutdown()
    with pytest.raises(ConfigError, match=r"does not tell the other hosts .*--processes 1 for this host alone"):
        from_environment({"GCE_METADATA_IP": address})
