import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from data_pipelines.modalities import modality
from data_pipelines.sources.geotiff import read_checked
from data_pipelines.sources.procedural import ProceduralEarth
from terra_jax.cli import _parser
from terra_jax.training.config import load_config
from tools import terramind_chain as chain


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return chain.draw_scene(tmp_path_factory.mktemp("scene"), samples=200)


def test_the_scene_lies_in_a_region_that_training_leaves_out(scene):
    with rasterio.open(scene["S2L2A"]) as file:
        x, y = file.xy(96, 96)
        (lon,), (lat,) = transform(file.crs, "EPSG:4326", [x], [y])
        assert file.shape == (chain.SCENE, chain.SCENE) and file.count == 12
    earth = ProceduralEarth(200, 72)
    place = np.hypot(earth.index.lon - lon, earth.index.lat - lat).argmin()
    assert earth.index.split[place] == "test" and abs(earth.index.lat[place] - lat) < 0.01


def test_bands_of_the_scene_are_where_the_table_says(scene):
    for name, path in scene.items():
        assert np.isfinite(read_checked(name, path).astype(float)).all()
    image, ndvi = read_checked("S2L2A", scene["S2L2A"]).astype(float), read_checked("NDVI", scene["NDVI"]).astype(float)
    red, infrared = (image[modality("S2L2A").band_index(band)] for band in ("B04", "B08"))
    clear = (red + infrared) > 500
    np.testing.assert_allclose(((infrared - red) / (infrared + red))[clear], ndvi[0][clear], atol=0.02)


def test_figures_stand_beside_trivial_ones(scene, tmp_path):
    for name in chain.OUTPUTS:
        (tmp_path / f"{name}.tif").write_bytes(scene[name].read_bytes())
    result = chain.scores(scene, tmp_path)
    assert result["LULC"]["accuracy"] == 1 and result["NDVI"]["mae"] == 0
    assert 0.1 < result["LULC"]["majority class"] <= 1 and result["NDVI"]["mae of the mean"] > 0
    assert chain.scores({**scene, "LULC": tmp_path / "none.tif"}, tmp_path).keys() == {"NDVI"}


def test_every_command_is_one_that_terra_jax_takes(tmp_path, monkeypatch, capsys):
    """The commands themselves take minutes: here each is only read."""
    done = []

    def read(command, **_):
        assert command[:3] == [sys.executable, "-m", "terra_jax.cli"]
        known, rest = _parser()[0].parse_known_args(command[3:])
        if known.command == "train":
            done.append(load_config(known.config, [word.removeprefix("--") for word in rest]).model)
            Path(known.workdir).mkdir(parents=True)
            (Path(known.workdir) / "report.json").write_text('{"validation": {}, "zero_shot": {}}')
        else:
            assert not rest
            done.append(known.command)
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", read)
    monkeypatch.setattr(chain, "scores", lambda scene, made: {"NDVI": {"mae": 0.1, "mae of the mean": 0.2}})
    tiles = tmp_path / "tiles" / "S2L2A"
    tiles.mkdir(parents=True)
    (tiles / "a b.tif").touch()
    words = ["chain", "--out", str(tmp_path / "o"), "--steps", "7", "--tiles", str(tmp_path / "tiles"), "--samples",
             "200", "--config.optimizer.learning_rate=1e-3"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    assert chain.main() == 0
    tokenizers = [f"terramind_v1_tokenizer_{name}_nano" for name in ("s2l2a", "lulc", "ndvi")]
    assert done == [*tokenizers, "tokenize", "terramind_v1_nano_encdec", "generate", "generate"]
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("terra-jax ")]
    assert len(printed) == 7 and any("a b.tif" in word for word in shlex.split(printed[-1]))
    assert (tmp_path / "o" / "chain.json").is_file()


def test_a_command_that_fails_ends_the_chain(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: argparse.Namespace(returncode=2))
    monkeypatch.setattr(sys, "argv", ["chain", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        chain.main()
    assert stop.value.code == 2


@pytest.mark.slow
def test_the_chain_runs_from_nothing(tmp_path, monkeypatch, capsys):
    """All that terramind_chain.py does, at a small size; most of it is compiling."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setattr(chain, "SCENE", 96)
    monkeypatch.setattr(chain, "DRAWS", 2)
    small = ["--tokenizer-steps", "1", "--steps", "1", "--samples", "64", "--generation-steps", "2"]
    evaluation = ["--config.evaluation.samples=8", "--config.evaluation.batch_size=8"]
    monkeypatch.setattr(sys, "argv", ["terramind_chain.py", "--out", "chain", *small, *evaluation])
    assert chain.main() == 0
    assert "minutes in all" in capsys.readouterr().out and Path("chain/model/report.png").is_file()
    figures = json.loads(Path("chain/chain.json").read_text())["maps"]["unseen region"]
    assert set(figures) == {"LULC", "NDVI"} and 0 <= figures["LULC"]["accuracy"] <= 1
    for name in figures:
        with rasterio.open(f"chain/maps/unseen_region/{name}.tif") as made:
            assert made.crs is not None and made.shape == (chain.SCENE, chain.SCENE)
