"""`terra-jax tokenize` and `terra-jax reconstruct` as a user meets them, with nano tokenizers."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_pipelines"))
from fakes import plausible, write_folder, write_tif

import terra_jax
from data_pipelines.sources.tokens import TokenCorpus
from terra_jax import registry
from terra_jax.nn.initialisation import abstract

LULC, S2 = "terramind_v1_tokenizer_lulc_nano", "terramind_v1_tokenizer_s2l2a_nano"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Files as PyTorch has them, with random parameters."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for seed, name in enumerate((LULC, S2)):
        graphdef, shapes = abstract(registry.family(name).maker(name))
        rng = np.random.default_rng(seed)
        params = jax.tree.map(lambda leaf, rng=rng: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes)
        files[name] = folder / f"{name}.safetensors"
        terra_jax.export_torch(nnx.merge(graphdef, nnx.State(params)), files[name])
    return files


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def assert_refused(result, *words: str) -> None:
    assert result.status == 2, result
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in words), result.err


def test_tiles_are_tokenised_and_gone_on_with(terra_jax_command, weights):
    write_folder(Path("tiles"), modalities=("S2L2A", "LULC", "DEM"), pixels=72)
    models = [option for name, path in weights.items() for option in ("--model", f"{name}={path}")]
    command = ["tokenize", *models, "--model", "coords", "--source", "geotiff", "--path", "tiles", "--settings", "2"]
    command += ["--out", "tokens", "--batch-size", "8", "--shard-size", "2"]
    half = terra_jax_command(*command, "--process", "1/2")
    assert half.status == 0 and "others are not" in half.out, half.err
    whole = terra_jax_command(*command)
    assert whole.status == 0 and "tokens: 6 records of 3 samples" in whole.out, whole.err
    record = TokenCorpus("tokens").read(1, 1)
    assert {name: ids.shape for name, ids in record.ids.items()} == {"LULC": (8, 8), "S2L2A": (8, 8), "coords": (3,)}
    assert_refused(terra_jax_command(*command, "--seed", "1"), "tokens", "seed is 0 there and 1 here")
    assert_refused(terra_jax_command(*command, "--tile", "80"), "72 x 72", "tile=80")


def test_rasters_go_there_and_back(terra_jax_command, weights):
    write_tif(Path("a.tif"), plausible("LULC", 64))
    command = ("reconstruct", "--model", LULC, "--weights", weights[LULC])
    for given, made in (("a.tif", "a.npz"), ("a.npz", "b.tif")):
        result = terra_jax_command(*command, "--in", given, "--out", made)
        assert result.status == 0 and f"-> {made}" in result.out, result.err
    tokenizer = terra_jax.load(LULC, weights[LULC])
    with np.load("a.npz") as held:
        assert np.array_equal(held["ids"][None], tokenizer.tokenize(plausible("LULC", 64)))
    assert_refused(terra_jax_command(*command, "--in", "a.npz", "--out", "b.tif"), "b.tif exists", "--overwrite")


@pytest.mark.parametrize(
    ("name", "pixels", "words"),
    [
        (S2, plausible("S2L2A", 64) / np.float32(1e4), ("a.tif", "reflectance", "dn10000")),
        (S2, plausible("S2L2A", 64)[:10], ("a.tif", "10 bands", "12 (B01")),
        (S2, plausible("S2L2A", 60), ("a.tif", "60 x 60", "divisible by 8")),
        (LULC, np.full((1, 64, 64), 10, np.uint8), ("a.tif", "class 10", "0..9")),
    ],
)
def test_bad_rasters_are_one_line(terra_jax_command, weights, name, pixels, words):
    write_tif(Path("a.tif"), pixels)
    result = terra_jax_command(
        "reconstruct", "--model", name, "--weights", weights[name], "--in", "a.tif", "--out", "b.tif"
    )
    assert_refused(result, *words)
    assert not Path("b.tif").exists()


def test_tokens_out_of_range_are_one_line(terra_jax_command, weights):
    from terra_jax.inference.reconstruct import TokenMap, write_tokens
    from terra_jax.terramind.fingerprint import fingerprint

    made_by = fingerprint(terra_jax.load(LULC, weights[LULC]))
    write_tokens(Path("a.npz"), TokenMap(np.full((8, 8), 4375), LULC, made_by, "", (1.0, 0, 0, 0, 1.0, 0)))
    command = ("reconstruct", "--model", LULC, "--weights", weights[LULC], "--in", "a.npz", "--out", "b.tif")
    assert_refused(terra_jax_command(*command), "a.npz", "4375", "0..4374")
