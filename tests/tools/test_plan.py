import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from terra_jax.parallel.aot import Target
from terra_jax.parallel.estimate import Sizes, candidates, saved_bytes
from terra_jax.parallel.hardware import CHIPS
from terra_jax.training.config import load_config
from tools.tpu import plan

GIB = 2**30
SMALL = [
    f"--config.{change}"
    for change in (
        "batch_size=8",
        "data.tile=24",
        "data.modalities=(S2L2A,)",
        "views.global_size=8",
        "views.local_views=0",
        "objective.prototypes=16",
        "objective.head_hidden=16",
        "objective.head_bottleneck=8",
        "objective.frozen_head_steps=0",
    )
]


def report(config, topology, fits):
    """What compiling would have told."""
    devices = math.prod(int(side) for side in topology.partition(":")[2].split("x"))
    times = {"compute": 0.02, "memory": 0.01, "interconnect": 0.001, "network": 0.0, "max": 0.02, "limit": "compute"}
    return {
        "run": {
            "topology": topology,
            "slices": 1,
            "devices": devices,
            "mesh": {**config.mesh.to_dict(), "data": devices // config.mesh.fsdp},
            "batch_size": config.batch_size,
            "batch_per_device": config.batch_size / devices / config.accumulation,
            "accumulation": config.accumulation,
            "remat": config.remat,
        },
        "peak_bytes": 12 * GIB,
        "hbm_bytes": 16 * GIB,
        "fits": fits,
        "model_flops": 3e12,
        "compiled_flops": 4e12,
        "bytes_moved": 1e9,
        "collectives": [{"bytes": 1_000_000}],
        "roofline": times if fits else None,
        "mfu_upper_bound": 0.75,
    }


@pytest.fixture
def compiles(monkeypatch):
    """Stands in for the compiler, which takes long: what was compiled, and from which compile on programs fit."""
    done, first_fitting = [], [0]

    def compile_apart(config, *, target, objective, say):
        topology, _ = target
        done.append((topology, config.batch_size, config.accumulation, config.mesh.fsdp))
        return report(config, topology, fits=len(done) > first_fitting[0])

    monkeypatch.setattr(plan, "compile_apart", compile_apart)
    return done, first_fitting


def test_tuning_stops_at_the_first_that_fits_and_is_continued(libtpu, compiles, tmp_path, capsys):
    done, first_fitting = compiles
    first_fitting[0] = 1
    command = ["tune", "--config", "terrafm/nano", "--pod", "v5e:2x2", "--cache", str(tmp_path / "plans.json"), *SMALL]
    assert plan.main([*command, "--compiles", "1"]) == 0
    assert len(done) == 1 and len(json.loads((tmp_path / "plans.json").read_text())) == 1
    assert plan.main([*command, "--compiles", "5"]) == 0
    assert len(done) == 2  # what was compiled before is known, and the next one fits
    assert "| terrafm/nano | v5e:2x2 |" in capsys.readouterr().out
    assert plan.main(["table", "--cache", str(tmp_path / "plans.json")]) == 0
    assert capsys.readouterr().out.count("does not fit") == 1


def test_scaling_keeps_the_batch_of_a_chip(libtpu, compiles, tmp_path, capsys, monkeypatch):
    done, _ = compiles
    monkeypatch.setitem(plan.SIZES, "v5e", ("2x2", "2x4"))
    command = ["scale", "--config", "terrafm/nano", "--cache", str(tmp_path / "plans.json"), *SMALL]
    assert plan.main([*command, "--png", str(tmp_path / "scaling.png")]) == 0
    assert [(topology, batch) for topology, batch, *_ in done] == [("v5e:2x2", 4), ("v5e:2x4", 8)]
    # 10 million samples in batches of 8, 0.02 s each, on 8 chips.
    told = capsys.readouterr().out
    assert f"at least {1e7 / 8 * 0.02 * 8 / 3600:,.0f} chip-hours" in told
    assert "4 to 8 chips: a step at least +0.0 % longer, limited by compute; exchanges 1.0 to 1.0 ms" in told
    assert "hides the interconnect from 1 samples a chip" in told  # 0.001 s of 0.02 s, with a batch of 1
    assert (tmp_path / "scaling.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_real_compiler_is_asked_once(libtpu, tmp_path):
    """As a command, `plan.py`: what fits is found, kept, and not compiled again."""
    cache = tmp_path / "plans.json"
    words = [
        sys.executable,
        plan.__file__,
        "tune",
        "--config",
        "terrafm/nano",
        "--pod",
        "v5e:2x2",
        "--cache",
        str(cache),
    ]
    told = [subprocess.run([*words, *SMALL], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert told[0] == told[1] and "| terrafm/nano | v5e:2x2 |" in told[0] and "MFU" in told[0]
    (report,) = json.loads(cache.read_text()).values()
    assert report["fits"] and report["uses"] == ["tune"]


def test_the_table_of_the_documentation_is_what_is_known(capsys):
    root = Path(__file__).parents[2]
    assert plan.main(["table", "--cache", str(root / "tools" / "tpu" / "plans.json")]) == 0
    assert capsys.readouterr().out in (root / "BUILD.md").read_text()


def test_mistakes_are_named(libtpu, tmp_path, capsys):
    (tmp_path / "bad.json").write_text("no")
    assert plan.main(["table", "--cache", str(tmp_path / "bad.json")]) == 2
    assert "is no cache of plans" in capsys.readouterr().err
    command = ["scale", "--config", "terrafm/nano", "--cache", str(tmp_path / "new.json")]
    assert plan.main([*command, "--config.batch_size=100"]) == 2
    assert "batch_size=100 does not divide over 256 chips" in capsys.readouterr().err


def test_the_most_promising_settings_are_those_that_fit_and_compute_least():
    config = load_config("terrafm/base")
    target = Target("v5e:16x16", 1, [None] * 256, CHIPS["TPU v5 lite"])
    flops = {"none": 3e16, "dots": 3.2e16, "full": 4e16}
    small = Sizes(flops, {"none": 1e12, "dots": 5e11, "full": 1e11}, params=4e8, state=20e8)
    best = candidates(config, target, small)[0]
    assert best.change["remat"] == "none" and best.change["accumulation"] == 1
    large = Sizes(flops, {"none": 9e12, "dots": 2e12, "full": 1e11}, params=4e8, state=20e8)
    best = candidates(config, target, large)[0]
    assert best.peak_bytes < target.chip.hbm_bytes
    assert best.change["remat"] != "none" or best.change["accumulation"] > 1
    heavy = Sizes(flops, {"none": 1e12, "dots": 5e11, "full": 1e11}, params=8e9, state=40e9)
    assert candidates(config, target, heavy)[0].change["mesh.fsdp"] > 1


def test_what_scans_keep_is_summed():
    import jax
    import jax.numpy as jnp

    def loss(x, remat):
        layer = lambda x: jnp.tanh(jnp.tanh(x))  # noqa: E731
        layer = jax.checkpoint(layer) if remat else layer
        return jax.lax.scan(lambda x, _: (layer(x), None), x, None, length=5)[0].sum()

    kept = [saved_bytes(jax.make_jaxpr(jax.grad(lambda x, r=r: loss(x, r)))(jnp.ones((8, 8)))) for r in (False, True)]
    assert kept[0] > kept[1] == 5 * 8 * 8 * 4  # its inputs, which a recomputed layer starts from
