import json
from functools import partial
from unittest.mock import patch

import pytest
from command_line import TINY

from terra_jax.training.config import load_config
from terra_jax.training.doctor import Stage, advice, diagnose, diagnosis_table, verdict

STAGES = ("decode", "transform", "loader", "loader, again", "host to device", "step")


def test_every_stage_is_measured_with_the_pieces_of_the_config(terra_jax_command, tmp_path):
    file = tmp_path / "doctor.json"
    with patch("terra_jax.training.doctor.diagnose", partial(diagnose, seconds=0.05)):
        result = terra_jax_command("doctor", "--config", "terrafm/nano", *TINY, "--json", file)
    assert result.status == 0, result.err
    found = json.loads(file.read_text())
    for name in STAGES:
        assert found["stages"][name]["rate"] > 0 and f"\n{name}" in result.out
    assert found["stages"]["decode"]["cpu"] > 0 and found["stages"]["step"]["cpu"] is None
    assert found["bottleneck"] in ("data", "step") and 0 <= found["share"] <= 1
    assert found["advice"] and all(line in result.out for line in found["advice"])
    facts = found["facts"]
    assert facts["batch_size"] == 4 and facts["devices"] >= 1 and facts["compile_seconds"] > 0
    assert facts["records"]["lz4"]["bytes"] >= facts["records"]["zstd"]["bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["doctor.json"]


def test_mistakes_are_one_line(terra_jax_command, tmp_path):
    result = terra_jax_command("doctor", "--config", "terrafm/nano", "--json", tmp_path / "no" / "x.json")
    assert result.status == 2 and result.err.count("\n") == 1 and "is no folder; make it" in result.err
    result = terra_jax_command("doctor", "--config", "terrafm/nano", "--config.data.source=geotiff")
    assert result.status == 2 and "needs a path" in result.err


def stages(**rates: float) -> dict[str, Stage]:
    given = {"decode": 100.0, "transform": 10_000.0, "loader": 100.0, "host to device": 1e6, "step": 300.0, **rates}
    return {name: Stage(name, rate, cpu=1e3 / rate, faults=5.0) for name, rate in given.items()}


FORMATS = {"lz4": {"rate": 1200.0, "bytes": 600_000}, "zstd": {"rate": 700.0, "bytes": 480_000}}
FACTS = {
    "load": 0.5, "cores": 4, "allocator": "glibc", "records": FORMATS, "sample_bytes": 10**6, "samples": 10**9,
    "thread_rates": {1: 50.0, 2: 100.0, 4: 190.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("rates", "facts", "bottleneck", "share"),
    [
        ({"loader": 100.0, "step": 400.0}, {}, "data", 0.75),
        ({"loader": 900.0, "step": 300.0}, {}, "step", 0.0),
        ({"loader": 900.0, "step": 300.0}, {"waited": 0.4}, "data", 0.4),  # what is measured counts
        ({"loader": 100.0, "loader, again": 900.0, "step": 300.0}, {}, "step", 0.0),  # from memory after one pass
    ],
)
def test_what_holds_a_run_up(rates, facts, bottleneck, share):
    assert verdict(stages(**rates), facts) == (bottleneck, pytest.approx(share))


def test_advice_on_data_has_numbers():
    config = load_config("terrafm/nano", ["data.threads=2", "data.source=geotiff", "data.cache=false"])
    lines = list(advice(stages(), FACTS, config, "data"))
    assert lines[0] == "--config.data.threads=4 reads 190 samples/s, 2 threads 100"
    assert "decoded at 1,200/s a thread instead of 100 (0.60 MB each; zstd 0.48 MB at 700/s" in lines[1]
    assert "terra-jax prepare" in lines[1]
    assert lines[-1].startswith("one core reads and transforms 99 samples/s, the step takes 300: 3.0 cores")
    assert not any("cache" in line or "MALLOC" in line for line in lines)
    small = list(advice(stages(), {**FACTS, "samples": 100}, config, "data"))
    assert any("data.cache=true keeps all samples in memory, 0.1 GB" in line for line in small)
    tuned = {**stages(), "decode, tuned": Stage("decode, tuned", 250.0, 4.0, 0.0)}
    assert any("2.50 times as fast (5 page faults" in line for line in advice(tuned, FACTS, config, "data"))
    faulty = stages() | {"decode": Stage("decode", 100.0, 10.0, 900.0)}
    assert any("900 page faults a sample" in line for line in advice(faulty, FACTS, config, "data"))
    busy = list(advice(stages(), {**FACTS, "load": 17.0}, config, "data"))
    assert busy[0].startswith("the load is 17.0 on 4 cores")


def test_records_are_not_told_to_become_records():
    config = load_config("terrafm/nano", ["data.source=records"])
    assert not any("prepare" in line for line in advice(stages(), FACTS, config, "data"))


def test_advice_on_the_step_has_numbers():
    config = load_config("terrafm/nano", ["remat=full"])
    memory = {"working_bytes": 2 * 10**9, "device_bytes": 16 * 10**9, "state_bytes": 10**9}
    lines = list(advice(stages(loader=900.0), FACTS | memory, config, "step"))
    assert lines[0] == "the data keep up: 900 samples/s are read, 300 are needed"
    assert "works in 2.0 GB and leaves 13.0 GB free: --config.remat=none" in lines[1]
    config = load_config("terrafm/nano", ["remat=none"])
    assert "--config.batch_size=128" in list(advice(stages(loader=900.0), FACTS | memory, config, "step"))[1]
    slow = stages(loader=900.0) | {"host to device": Stage("host to device", 400.0)}
    assert any("copying to the device takes 75%" in line for line in advice(slow, FACTS, config, "step"))


def test_the_table_shows_every_stage():
    from terra_jax.training.doctor import Diagnosis

    facts = FACTS | {"model": "m", "source": "s", "devices": 1, "device": "cpu"}
    table = diagnosis_table(Diagnosis(stages(), "data", 0.75, ("do this",), facts))
    assert all(f"\n{name}" in table for name in stages()) and table.endswith("75% of the time\n- do this")
