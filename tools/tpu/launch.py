"""Start `terra-jax train` on TPUs: one TPU VM, a slice of a pod, or GKE by xpk or JobSet.

    python tools/tpu/launch.py vm --name NAME --zone ZONE --type v5litepod-16 -- --config NAME --workdir DIR

README.md beside this file has more. What follows `--` goes to `terra-jax train` on every host; hosts find each other.
`--dry-run` prints the commands.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

XLA_FLAGS = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}
"""Given to libtpu on every host; README.md beside this file says why."""

RESTARTS = 20
PAUSE = 15
STOPPED = (0, 2, 130)
"""Exit statuses after which starting again would not help: finished or preempted, a user's mistake, Ctrl-C."""

CHIPS_A_HOST = 4


class Command(NamedTuple):
    """A program to run, with what it reads."""

    words: list[str]
    stdin: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, or print, the commands of a launch; the status of the first that fails."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:split])
    train = given[split + 1 :]
    if "--workdir" not in train or "--config" not in train:
        print("error: say what to train after --, at least --config NAME --workdir DIR", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        for command in options.commands(options, train, Path(folder)):
            print("+ " + shlex.join(command.words), flush=True)
            if options.dry_run:
                print(command.stdin or "", end="")
                continue
            try:
                status = subprocess.run(command.words, input=command.stdin, text=True, check=False).returncode
            except FileNotFoundError:
                print(f"error: {command.words[0]} is not installed, or not on PATH", file=sys.stderr)
                return 2
            if status:
                print(f"error: {command.words[0]} ended with status {status}", file=sys.stderr)
                return status
    return 0


def restarting(train: Sequence[str]) -> str:
    """Shell text that trains and, while a lost host or a hang ends the run, goes on with it."""
    stop = "|".join(map(str, STOPPED))
    return (
        f"export LIBTPU_INIT_ARGS={shlex.quote(libtpu_arguments())}; "
        f"for attempt in $(seq {RESTARTS}); do terra-jax train {shlex.join(train)}; status=$?; "
        f"case $status in {stop}) exit $status;; esac; sleep {PAUSE}; done; exit $status"
    )


def libtpu_arguments() -> str:
    """The flags as libtpu reads them."""
    return " ".join(f"--{name}={value}" for name, value in XLA_FLAGS.items())


def on_vms(options: argparse.Namespace, train: Sequence[str], folder: Path) -> list[Command]:
    """One TPU VM or all hosts of a slice: make it, carry the wheel there, train."""
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["--zone", options.zone, *(("--project", options.project) if options.project else ())]
    commands = []
    if options.create:
        kind = ["--accelerator-type", options.type, "--version", options.version]
        commands.append([*tpu, "create", options.name, *where, *kind, *(("--spot",) if options.spot else ())])
    if options.install:
        wheels = str(folder / "terra_jax_wheel")
        commands.append([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels, str(ROOT)])
        commands.append([*tpu, "scp", "--recurse", "--worker=all", *where, wheels, f"{options.name}:"])
        install = (
            "python3 -m venv terra_jax_venv && wheel=$(ls -t terra_jax_wheel/*.whl | head -1) && "
            'terra_jax_venv/bin/pip install --quiet "$wheel[tpu]" gcsfs && '
            'terra_jax_venv/bin/pip install --quiet --force-reinstall --no-deps "$wheel"'
        )
        commands.append([*tpu, "ssh", options.name, *where, "--worker=all", "--command", install])
    run = "export PATH=$HOME/terra_jax_venv/bin:$PATH; " + restarting(train)
    if options.detach:
        run = f"nohup setsid bash -c {shlex.quote(run)} > terra_jax.log 2>&1 < /dev/null &"
    commands.append([*tpu, "ssh", options.name, *where, "--worker=all", "--command", run])
    return [Command(words) for words in commands]


def by_xpk(options: argparse.Namespace, train: Sequence[str], folder: Path) -> list[Command]:
    """A workload of xpk, which restarts it."""
    words = ["xpk", "workload", "create", "--cluster", options.cluster, "--workload", options.name]
    words += ["--tpu-type", options.type, "--num-slices", str(options.slices), "--docker-image", options.image]
    words += ["--max-restarts", str(RESTARTS), "--command"]
    words.append(f"LIBTPU_INIT_ARGS={shlex.quote(libtpu_arguments())} terra-jax train {shlex.join(train)}")
    words += [*(("--project", options.project) if options.project else ()), "--zone", options.zone]
    return [Command(words)]


def by_jobset(options: argparse.Namespace, train: Sequence[str], folder: Path) -> list[Command]:
    """A JobSet: one job a slice, one pod a host; all are started again when one is lost."""
    return [Command(["kubectl", "apply", "-f", "-"], json.dumps(jobset(options, train), indent=1) + "\n")]


def jobset(options: argparse.Namespace, train: Sequence[str]) -> dict:
    """What kubectl is given; JSON is YAML too."""
    hosts = hosts_of(options.topology)
    volumes = {}
    if options.bucket:
        volumes = {"volumes": [_bucket(options.bucket)]}
    container = {
        "name": "terra-jax",
        "image": options.image,
        "command": ["terra-jax", "train", *train],
        "env": [{"name": "LIBTPU_INIT_ARGS", "value": libtpu_arguments()}],
        "ports": [{"containerPort": 8482}, {"containerPort": 8471}],
        "resources": {"limits": {"google.com/tpu": CHIPS_A_HOST}},
        **({"volumeMounts": [{"name": "bucket", "mountPath": "/bucket"}]} if options.bucket else {}),
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": options.accelerator,
            "cloud.google.com/gke-tpu-topology": options.topology,
        },
        "containers": [container],
        **volumes,
    }
    annotations = {"gke-gcsfuse/volumes": "true"} if options.bucket else {}
    user_error = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [user_error]},
        "template": {"metadata": {"annotations": annotations}, "spec": pod},
    }
    never_again = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": RESTARTS, "rules": [never_again]},
            "replicatedJobs": [{"name": "slice", "replicas": options.slices, "template": {"spec": job}}],
        },
    }


def hosts_of(topology: str) -> int:
    """Number of hosts of a slice whose hosts have four chips: "16x16" has 64."""
    chips = 1
    for side in topology.split("x"):
        chips *= int(side)
    return max(1, chips // CHIPS_A_HOST)


def _bucket(name: str) -> dict:
    attributes = {"bucketName": name, "mountOptions": "implicit-dirs"}
    return {"name": "bucket", "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}


def _topology(text: str) -> str:
    if not all(side.isdecimal() and int(side) > 0 for side in text.split("x")):
        raise argparse.ArgumentTypeError(f"{text!r} is no topology; write 16x16 or 4x4x4")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, commands in (("vm", on_vms), ("xpk", by_xpk), ("jobset", by_jobset)):
        added = kinds.add_parser(kind, help=(commands.__doc__ or "").splitlines()[0])
        added.set_defaults(commands=commands)
        added.add_argument("--name", required=True)
        added.add_argument("--project", default="")
        added.add_argument("--dry-run", action="store_true", help="print the commands")
        if kind != "jobset":
            added.add_argument("--zone", required=True)
            added.add_argument("--type", required=True, help="as v5litepod-16")
        if kind != "vm":
            added.add_argument("--image", required=True, help="of the container (Containerfile)")
            added.add_argument("--slices", type=int, default=1)
    vm, xpk, jobs = (kinds.choices[kind] for kind in ("vm", "xpk", "jobset"))
    vm.add_argument("--version", default="v2-alpha-tpuv5-lite", help="of the image of the VM")
    vm.add_argument("--create", action="store_true", help="make the TPU first")
    vm.add_argument("--spot", action="store_true", help="preemptible, with --create")
    vm.add_argument("--no-install", dest="install", action="store_false", help="terra_jax is there already")
    vm.add_argument("--detach", action="store_true", help="train on without this connection, into ~/terra_jax.log")
    xpk.add_argument("--cluster", required=True)
    jobs.add_argument("--accelerator", required=True, help="as tpu-v5-lite-podslice")
    jobs.add_argument("--topology", required=True, type=_topology, help="as 16x16")
    jobs.add_argument("--bucket", default="", help="Cloud Storage bucket that is mounted at /bucket")
    return parser


if __name__ == "__main__":
    sys.exit(main())
