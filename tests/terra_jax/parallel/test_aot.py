"""Real train steps, compiled for TPUs that are not there: one small config for all."""

import json
import os
import signal
from functools import partial

import jax
import pytest
from command_line import TINY, TINY_SKYSENSE, TINY_TOKENIZER

from terra_jax import registry
from terra_jax.errors import ConfigError, TerraJaxError
from terra_jax.parallel.aot import Target, compile_step, lower, out_of_memory
from terra_jax.parallel.apart import compile_apart
from terra_jax.parallel.compile_table import compile_table
from terra_jax.parallel.mesh import make_mesh
from terra_jax.parallel.shardings import batch_sharding
from terra_jax.parallel.topology import topology_devices
from terra_jax.training.build import build
from terra_jax.training.config import load_config
from terra_jax.training.optimiser import AdamW

SMALL = (
    *TINY,
    "--config.batch_size=8",
    "--config.data.modalities=(S2L2A,)",
    "--config.views.global_size=8",
    "--config.objective.frozen_head_steps=0",
)
KEYS = {
    "peak_bytes", "hbm_bytes", "fits", "model_flops", "compiled_flops", "bytes_moved", "collectives", "roofline",
    "mfu_upper_bound", "run", "argument_bytes", "checks",
}  # fmt: skip


def lowered(*changes, topology="v5e:2x2", name="terrafm/nano", size=SMALL):
    return lower(load_config(name, [*size, *changes]), Target.named(topology), registry.objective)


@pytest.fixture(scope="module")
def by_data(libtpu, terra_jax_command, tmp_path_factory):
    """By the command, as a user runs it."""
    out = tmp_path_factory.mktemp("compiled") / "report.json"
    result = terra_jax_command(
        "compile", "--config", "terrafm/nano", "--topology", "v5e:2x2", "--mesh", "data=4", "--out", out, *SMALL
    )
    assert result.status == 0, result.err
    assert "4 devices, mesh data 4 x fsdp 1 x tensor 1" in result.out and ": fits" in result.out
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def by_fsdp(libtpu):
    return compile_step(lowered("mesh.fsdp=4"))


def kinds(report):
    return {exchange["kind"] for exchange in report["collectives"]}


def test_pure_data_parallelism_only_reduces(by_data):
    assert kinds(by_data) == {"all-reduce"}


def test_sharded_parameters_are_gathered(by_fsdp):
    assert {"all-gather", "all-reduce"} <= kinds(by_fsdp)
    assert "all-to-all" not in kinds(by_fsdp)  # the batch stays where it came


@pytest.mark.parametrize("report", ["by_data", "by_fsdp"])
def test_a_compiled_step_is_clean_and_complete(report, request):
    report = request.getfixturevalue(report)
    assert set(report) == KEYS and json.loads(json.dumps(report)) == report
    assert report["checks"]["host_transfers"] == 0 and not report["checks"]["float64"]
    assert report["checks"]["float32_share"] < 0.01  # of the products: what is to be bfloat16 is
    assert report["run"]["dtype"] == "bfloat16"
    assert report["fits"] and report["argument_bytes"] <= report["peak_bytes"] < report["hbm_bytes"]
    # No device does another's work: without recomputation there is little beyond the model's own operations.
    assert 0.75 < report["model_flops"] / report["compiled_flops"] < 1.2
    assert report["roofline"]["max"] == report["roofline"][report["roofline"]["limit"]] <= report["roofline"]["sum"]
    assert 0 < report["mfu_upper_bound"] < 1
    between = {"kind": "dcn", "group": 0, "count": 3, "bytes": 2e6}
    table = compile_table({**report, "collectives": [*report["collectives"], between]})
    assert ": fits" in table and "all-reduce of 4" in table and " 3 between slices, 2.0 MB" in table


def test_state_is_shared_out(by_data, by_fsdp):
    whole, part = lowered().state_bytes, lowered("mesh.fsdp=4").state_bytes
    assert whole / 4 <= part < 1.1 * whole / 4
    assert whole <= by_data["argument_bytes"]  # arrays are filled up to tiles, small ones by much
    assert part <= by_fsdp["argument_bytes"] < by_data["argument_bytes"] / 2


@pytest.mark.parametrize(
    ("name", "size"), [("skysense/nano", TINY_SKYSENSE), ("terramind/tokenizer_lulc_nano", TINY_TOKENIZER)]
)
def test_no_familys_program_needs_data(libtpu, name, size):
    config = load_config(name, [*size, "batch_size=8", "data.source=geotiff", "data.path=/nowhere"])
    mesh = make_mesh(fsdp=2, devices=topology_devices("v5e:2x4"))
    program = build(registry.objective(config), AdamW.from_config(config.optimizer, config.steps), mesh)
    sharding = batch_sharding(mesh)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(program.abstract_batch(8)))
    assert any("fsdp" in str(leaf.sharding.spec) for leaf in jax.tree.leaves(program.abstract_state["params"]))


def test_a_module_is_known_again_by_its_hash(libtpu):
    assert lowered().digest() == lowered().digest() != lowered("batch_size=16").digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("mesh.fsdp=3", "mesh.fsdp=3.* does not fit 4 device"),
        ("batch_size=6", "batch_size=6 must be a multiple of .* 4 x 1 = 4"),
        ("accumulation=3", "batch_size=8 must be a multiple of .* 4 x 3 = 12"),
    ],
)
def test_what_does_not_divide_is_named(libtpu, change, message):
    with pytest.raises(ConfigError, match=message):
        lowered(change)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (26.50G) exceeds available HBM (15.75G). HLO module: jit_step.",
            (26.5, 15.75),
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.71G of 15.75G hbm.", (19.71, 15.75)),
    ],
)
def test_the_compilers_complaint_is_understood(text, sizes):
    assert out_of_memory(RuntimeError(text)) == tuple(int(size * 2**30) for size in sizes)
    with pytest.raises(TerraJaxError, match="the compiler gave up: INTERNAL: no"):
        out_of_memory(RuntimeError("INTERNAL: no\nmore"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v5e-16"], "error: unknown topology 'v5e-16'; did you mean "),
        (
            ["--topology", "v5e:2x2", "--mesh", "rows=3"],
            "error: argument --mesh: 'rows=3' is no mesh; write data=32",
        ),
        (["--topology", "v5e:2x2", "--out", "/nowhere/report.json"], "error: /nowhere is no folder"),
    ],
)
def test_the_command_refuses_in_one_line(libtpu, terra_jax_command, options, message):
    result = terra_jax_command("compile", "--config", "terrafm/nano", *options)
    assert result.status == 2 and result.err.startswith(message) and result.err.count("\n") == 1


def crash(config):
    os.write(2, b"F1122 file.cc:1] Check failed: bound is admissible\n*** stack\n")
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(config):
    raise ConfigError("model is unknown")


def test_a_compiler_that_crashes_is_an_error_of_one_line(libtpu):
    config = load_config("terrafm/nano", SMALL)
    said: list[str] = []
    apart = partial(compile_apart, config, target=("v5e:2x2", 1), say=said.append, every=0.5)
    with pytest.raises(TerraJaxError, match=r"libtpu .* status -9: Check failed: bound is admissible$"):
        apart(objective=crash)
    with pytest.raises(ConfigError, match="model is unknown"):
        apart(objective=refuse)
    assert said and all("compiling terrafm_nano for v5e:2x2: " in line for line in said)
