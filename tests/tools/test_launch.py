"""Launches, run against stand-ins on PATH that write down how they were called."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from tools.tpu import launch

TRAIN = ["--config", "terrafm/base", "--workdir", "/mnt/a b/base", "--config.data.path=tiles"]
STAND_IN = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    told = sys.stdin.read() if {reads} else ""
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:], told]) + "\\n")
sys.exit(int(os.environ.get("STAND_IN_STATUS", "0")))
"""


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """`recorded(*arguments)` launches; (status, calls)."""
    log = tmp_path / "calls"
    for name in ("gcloud", "xpk", "kubectl"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(STAND_IN.format(python=sys.executable, log=str(log), reads=name == "kubectl"))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def run(*arguments, train=TRAIN):
        status = launch.main([*arguments, "--", *train])
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return status, calls

    return run


VM = ("vm", "--name", "tj", "--zone", "us-west4-a", "--type", "v5litepod-16")


def test_a_slice_is_made_and_trains_on_every_host(recorded, monkeypatch):
    real = subprocess.run
    monkeypatch.setattr(  # the wheel itself is built by CI
        launch.subprocess, "run", lambda words, **options: real(["true"] if "wheel" in words else words, **options)
    )
    status, calls = recorded(*VM, "--create", "--spot")
    assert status == 0
    create, copy, install, train = calls
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "tj"]
    assert {"--spot", "v5litepod-16", "us-west4-a", "--version"} <= set(create)
    assert copy[4] == "scp" and "--worker=all" in copy and "tj:" in copy
    assert install[4:6] == ["ssh", "tj"] and "[tpu]" in install[-2]
    assert train[4:6] == ["ssh", "tj"] and "--worker=all" in train
    assert f"terra-jax train {shlex.join(TRAIN)};" in train[-2]


@pytest.mark.parametrize(("statuses", "runs", "ends"), [([0], 1, 0), ([2], 1, 2), ([3, 134, 0], 3, 0), ([3, 2], 2, 2)])
def test_a_lost_host_is_restarted_a_mistake_is_not(tmp_path, statuses, runs, ends):
    """The very text that a host runs, with a terra-jax that ends as told."""
    program = tmp_path / "terra-jax"
    program.write_text(
        '#!/bin/sh\necho "$LIBTPU_INIT_ARGS | $*" >> calls\nexit $(sed -n "$(wc -l < calls)p" statuses)\n'
    )
    program.chmod(0o755)
    (tmp_path / "statuses").write_text("\n".join(map(str, statuses)) + "\n")
    text = launch.restarting(TRAIN).replace(f"sleep {launch.PAUSE}", "true")
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment, check=False)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert (done.returncode, len(calls)) == (ends, runs)
    assert calls[0] == f"{launch.libtpu_arguments()} | train {' '.join(TRAIN)}"


def test_a_detached_run_outlives_the_connection(recorded):
    _, (train,) = recorded(*VM, "--no-install", "--detach")
    assert train[-2].startswith("nohup setsid bash -c '") and train[-2].endswith("> terra_jax.log 2>&1 < /dev/null &")


def test_xpk(recorded):
    options = shlex.split("--cluster c --name base --zone z --type v5litepod-256 --image i --slices 2")
    status, ((*words, _),) = recorded("xpk", *options)
    assert status == 0 and words[:3] == ["xpk", "workload", "create"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--num-slices"] == "2" and given["--tpu-type"] == "v5litepod-256" and given["--docker-image"] == "i"
    assert given["--command"].endswith(f"terra-jax train {shlex.join(TRAIN)}")


def test_jobset(recorded):
    options = ("--name", "base", "--accelerator", "tpu-v5-lite-podslice", "--topology", "16x16", "--image", "i")
    status, ((*words, told),) = recorded("jobset", *options, "--slices", "2", "--bucket", "b")
    assert status == 0 and words == ["kubectl", "apply", "-f", "-"]
    (slices,) = json.loads(told)["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 64, 64)
    (container,) = job["template"]["spec"]["containers"]
    assert container["command"] == ["terra-jax", "train", *TRAIN]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["volumeMounts"][0]["mountPath"] == "/bucket"
    assert job["template"]["spec"]["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"


def test_a_failure_is_passed_on_and_nothing_more_is_run(recorded, monkeypatch, capsys):
    monkeypatch.setenv("STAND_IN_STATUS", "7")
    status, calls = recorded(*VM, "--no-install", "--create")
    assert (status, len(calls)) == (7, 1)
    assert "error: gcloud ended with status 7" in capsys.readouterr().err


def test_mistakes_and_missing_programs_are_one_line(recorded, monkeypatch, capsys):
    assert recorded(*VM, train=["--config", "terrafm/base"])[0] == 2
    assert "error: say what to train after --" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert recorded(*VM, "--no-install")[0] == 2
    assert "error: gcloud is not installed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        recorded("jobset", "--name", "b", "--accelerator", "a", "--topology", "16by16", "--image", "i")
    assert "'16by16' is no topology" in capsys.readouterr().err


def test_a_dry_run_runs_nothing(recorded, capsys):
    status, calls = recorded(*VM, "--create", "--dry-run")
    assert (status, calls) == (0, [])
    out = capsys.readouterr().out
    assert out.count("+ gcloud") == 4 and "+ " + sys.executable in out


def test_the_page_names_every_flag_and_command(repository):
    page = (repository / "tools" / "tpu" / "README.md").read_text()
    for flag in launch.XLA_FLAGS:
        assert flag in page or flag.removeprefix("xla_tpu_enable_async_collective_fusion_") in page
    commands = re.findall(r"`python (tools/tpu/launch\.py [^`]+)`", page)
    assert len(commands) == 3
    for command in commands:
        assert launch.main([*shlex.split(command)[1:2], "--dry-run", *shlex.split(command)[2:]]) == 0


def test_the_container_copies_what_exists(repository):
    text = (repository / "tools" / "tpu" / "Containerfile").read_text()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        assert all((repository / name).exists() for name in line.split())


@pytest.mark.slow
def test_libtpu_knows_the_flags(monkeypatch):
    """A compile for a TPU that is not there takes them; it refuses what it does not know."""
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    script = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from tools.tpu.launch import XLA_FLAGS
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
mesh = jax.make_mesh((4,), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("data")))
lowered = jax.jit(lambda x: x @ x).lower(x)
lowered.compile(compiler_options=XLA_FLAGS)
try:
    lowered.compile(compiler_options={"xla_tpu_no_such_flag": "true"})
except Exception as error:
    print("refused")
"""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "XLA_FLAGS": "", "PYTHONPATH": ".",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "refused" in done.stdout, done.stderr[-2000:]
