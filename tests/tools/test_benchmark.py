import json
import subprocess
import sys

import pytest


def run(repository, *arguments):
    return subprocess.run(
        [sys.executable, str(repository / "tools" / "benchmark.py"), *arguments],
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip


@pytest.mark.slow
def test_quick_run_reports_every_figure(repository, torch, tmp_path):
    done = run(repository, "terrafm", "--quick", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "figures.json").read_text())
    for name in ("forward", "step"):
        row = result["rows"][name]
        assert row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert all(row[figure][side] > 0 for figure in ("seconds", "peak_bytes") for side in ("torch", "jax"))
        assert name in done.stdout
    assert set(result["compile_seconds"]) == {"12", "24"}
    assert result["python"]["milliseconds"] > 0
    assert {"torch", "jax", "flax", "python"} <= set(result["versions"])
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.slow
def test_quick_run_of_the_tokenizers(repository, torch, tmp_path):
    done = run(repository, "tokenizers", "--quick", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "figures.json").read_text())
    for name in ("encode1", "encode8", "decode1"):
        row = result["rows"][name]
        assert all(row[figure][side] > 0 for figure in ("seconds", "peak_bytes") for side in ("torch", "jax"))
        assert row["ratio"]["median"] > 0 and name in done.stdout
    assert "remat" not in done.stdout and "python" not in result


@pytest.mark.slow
def test_quick_run_of_skysense(repository, torch, tmp_path):
    done = run(repository, "skysense", "--quick", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "figures.json").read_text())
    for name in ("fusion", "stages"):
        row = result["rows"][name]
        assert all(row[figure][side] > 0 for figure in ("seconds", "peak_bytes") for side in ("torch", "jax"))
        assert row["ratio"]["median"] > 0 and name in done.stdout


@pytest.mark.slow
def test_quick_run_of_the_data_path(repository, torch, tmp_path):
    done = run(repository, "data", "--quick", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "figures.json").read_text())
    assert list(result["rows"]) == ["records", "terramesh", "loader-records", "torch-geotiff"]
    for row in result["rows"].values():
        for figure in ("samples_per_second", "cpu_ms", "per_core"):
            assert row[f"default_{figure}"] > 0 and row[f"tuned_{figure}"] > 0
        assert row["bytes"] > 10_000 and row["description"] in done.stdout and row["against_torch"] > 0
    assert "MALLOC_MMAP_THRESHOLD_=67108864" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.slow
def test_quick_run_of_terramind(repository, torch, tmp_path):
    done = run(repository, "terramind", "--quick", "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "figures.json").read_text())
    for name in ("step", "update"):
        row = result["rows"][name]
        assert all(row["seconds"][side] > 0 for side in ("torch", "jax"))
        parameters = {pair["parameters"] for sides in row["pairs"] for pair in sides.values()}
        assert len(parameters) == 1  # both sides are the same model
    assert result["ratio"] == pytest.approx(result["ours_step_s"] / result["torch_step_s"])
    assert result["ours_update_s"] > 0 and result["torch_memory_above_state_bytes"] > 0
    assert "memory_ratio" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "backward"], "unknown row 'backward'"),
        (["tokenizers", "--rows", "step"], "unknown row 'step'; choose from encode1, encode8, decode1"),
        (["tokenizers", "--size", "large"], "--size: tokenizers has no large; choose from nano, base"),
        (["data", "--rows", "tape"], "unknown row 'tape'; choose from records, records-zstd, terramesh"),
        (["data", "--tiles", "/no/such"], "--tiles: /no/such has no folder S2L2A"),
        (["skysense", "--size", "base"], "--size: skysense has no base; choose from nano, huge"),
        (["--pairs", "0"], "--pairs must be at least 1"),
        (["--json", "/no/such/folder/x.json"], "make it first"),
        (["--torch-python", "/no/such/python"], "/no/such/python"),
    ],
)
def test_mistakes_are_one_line_and_status_2(repository, arguments, message):
    done = run(repository, *(["terrafm"] if arguments[0].startswith("--") else []), *arguments)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_without_pytorch_the_cure_is_named(repository, tmp_path):
    """An isolated interpreter without site packages has no PyTorch."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    done = run(repository, "terrafm", "--torch-python", str(bare))
    assert done.returncode == 2
    assert 'pip install "terra_jax[torch]"' in done.stderr


def test_help_has_an_example(repository):
    done = run(repository, "--help")
    assert done.returncode == 0
    assert "python tools/benchmark.py terrafm --json" in done.stdout
