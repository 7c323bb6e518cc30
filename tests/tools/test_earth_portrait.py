import importlib.util

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(scope="module")
def portrait(repository):
    spec = importlib.util.spec_from_file_location("earth_portrait", repository / "tools" / "earth_portrait.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_draws_without_real_tiles(portrait, tmp_path, capsys):
    out = tmp_path / "earth.png"
    assert portrait.main(["--out", str(out), "--samples", "1", "--statistics", "2", "--tile", "32"]) == 0
    assert plt.imread(out).shape[2] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["earth.png"]
    table = capsys.readouterr().out
    assert "S2L2A B12    procedural" in table and "rangeland" in table


def test_draws_beside_real_tiles(portrait, tmp_path, capsys, fixtures_dir):
    out = tmp_path / "earth.png"
    tiles = str(fixtures_dir / "tiles")
    assert portrait.main(["--tiles", tiles, "--out", str(out), "--samples", "1", "--statistics", "1"]) == 0
    rows = {tuple(line.split()[:3]): line for line in capsys.readouterr().out.splitlines() if "real " in line}
    median = float(rows["S2L1C", "B10", "real"].split()[6])
    assert median < 200  # the offset of 1000 is gone


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (["--out", "earth.jpg"], ".png"),
        (["--out", "nowhere/earth.png"], "nowhere"),
        (["--out", "earth.png", "--samples", "0"], "--samples"),
        (["--out", "earth.png", "--tiles", "nowhere"], "nowhere"),
        (["--out", "earth.png", "--tile", "3"], "tile=3"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(portrait, options, culprit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert portrait.main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and culprit in error
    assert not list(tmp_path.iterdir())
