"""`terra-jax generate` as a user meets it."""

import sys
from pathlib import Path

import pytest
import rasterio

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_pipelines"))
from fakes import plausible, write_tif
from small_models import saved_parts

NAME = "terramind_v1_nano_generate"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> list[str]:
    """Options that name the weights."""
    held = saved_parts(tmp_path_factory.mktemp("parts"))
    return [option for part, path in held.items() for option in ("--weights", f"{part}={path}")]


@pytest.fixture
def generate(parts, tmp_path, monkeypatch, terra_jax_command):
    """Runs the command in an empty folder with a.tif, an image that is larger than a window."""
    monkeypatch.chdir(tmp_path)
    write_tif(tmp_path / "a.tif", plausible("S2L2A", 44))

    def run(*options: str, inputs: str = "S2L2A=a.tif", outputs: str = "LULC", weights=parts):
        return terra_jax_command(
            "generate", "--model", NAME, *weights, "--in", inputs, "--outputs", outputs, "--out", "out", *options
        )

    return run


def test_a_scene_is_generated_where_it_lies(generate):
    first = generate("--steps", "2", "--samples", "2")
    assert first.status == 0 and "-> out/LULC.tif" in first.out, first.err
    with rasterio.open("out/LULC.tif") as made, rasterio.open("a.tif") as given:
        assert (made.crs, made.transform, made.shape) == (given.crs, given.transform, (44, 44))
        assert made.tags()["model"] == NAME and made.tags()["samples"] == "2"
        assert made.read().max() < 10 and made.colormap(1)[1][:3] == (26, 91, 171)
    before = Path("out/LULC.tif").read_bytes()
    again = generate("--steps", "2", "--samples", "2", "--overwrite")
    assert again.status == 0 and Path("out/LULC.tif").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ([], {"outputs": "DEM"}, "not trained to give 'DEM'; it gives S2L2A, LULC, NDVI"),
        ([], {"outputs": "NDVI"}, "NDVI needs its tokenizer; give it as the part NDVI=PATH"),
        ([], {"inputs": "S2=a.tif"}, "unknown modality 'S2'"),
        ([], {"inputs": "S1GRD=a.tif"}, "12 bands, S1GRD has 2"),
        ([], {"inputs": "a.tif"}, "--in a.tif is unclear; write MODALITY=FILE"),
        (["--in", "S2L2A=b.tif"], {}, "--in S2L2A is given twice"),
        (["--order", "raster"], {}, "unknown order 'raster'"),
    ],
)
def test_bad_wishes_are_refused_in_one_line(generate, options, arguments, words):
    result = generate(*options, **arguments)
    assert result.status == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert words in result.err and not Path("out").exists()


def test_parts_that_do_not_go_together_are_refused(generate, parts, tmp_path):
    other = saved_parts(tmp_path / "other", fingerprints={"LULC": "0" * 32})
    for weights, words in (
        (["--weights", f"model={other['model']}", *parts[2:]], f"the model was trained on tokens of {'0' * 32}"),
        ([*parts, "--weights", "NDVI=nothing"], "nothing: does not exist"),
        ([*parts, "--weights", "LULK=lulc.pt"], "no part 'LULK'; its parts are model, S2L2A"),
        (parts[2:], "no file is given for the encoder-decoder; add model=PATH"),
    ):
        result = generate(weights=weights)
        assert result.status == 2 and result.err.count("\n") == 1 and words in result.err, result.err
    result = generate("--model", "terramind_v1_nano")
    assert result.status == 2 and "terramind_v1_nano generates nothing; use one of terramind_v1_" in result.err
