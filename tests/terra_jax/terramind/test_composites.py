import json

import jax
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx
from small_models import INPUTS, OUTPUTS, SIZES, saved_parts, small_model

import terra_jax
from terra_jax import registry
from terra_jax.errors import ConfigError, WeightsError
from terra_jax.terramind import composites
from terra_jax.terramind.backbone import Backbone
from terra_jax.terramind.streams import INPUTS as ALL_INPUTS
from terra_jax.terramind.streams import OUTPUTS as ALL_OUTPUTS
from terra_jax.terramind.tim import TiM
from terra_jax.weights.rules import flatten_params
from terra_jax.weights.transfer import export_state, import_params

PUBLIC = ("tiny", "small", "base", "large")
GENERATE, THINK, BACKBONE = "terramind_v1_nano_generate", "terramind_v1_nano_tim", "terramind_v1_nano"


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with quick_compilation():
        yield


def shapes(fixtures_dir, name: str) -> dict[str, tuple[int, ...]]:
    entries = json.loads((fixtures_dir / "manifests" / "terramind" / f"{name}.json").read_text())
    return {key: tuple(entry["shape"]) for key, entry in entries.items()}


@pytest.mark.parametrize("size", PUBLIC)
def test_keys_and_shapes_are_those_of_terratorch(fixtures_dir, size):
    """Both ways; TerraTorch's generator cannot see its last output, coords."""
    seen = {"inputs": ALL_INPUTS[:-1], "outputs": ALL_OUTPUTS, "tokenizers": ()}
    generate = registry.state_dict_shapes(f"terramind_v1_{size}_generate", **seen)
    assert generate == shapes(fixtures_dir, f"terramind_v1_{size}_generate_no_tokenizer")
    thoughts = [name.removeprefix("tok_") for name in ALL_OUTPUTS]
    thinking = registry.state_dict_shapes(f"terramind_v1_{size}_tim", thoughts=thoughts)
    assert thinking == shapes(fixtures_dir, f"terramind_v1_{size}_tim_no_tokenizer")


def test_keys_and_shapes_with_tokenizers(fixtures_dir):
    """Those of the tokenizers are alike in all files that have them."""
    generate = registry.state_dict_shapes("terramind_v1_tiny_generate", inputs=ALL_INPUTS[:-1])
    assert generate == shapes(fixtures_dir, "terramind_v1_tiny_generate")
    tokenizers = {key: shape for key, shape in generate.items() if key.startswith("tokenizer.")}
    for size in PUBLIC:
        for kind in ("generate", "tim"):
            whole, bare = (shapes(fixtures_dir, f"terramind_v1_{size}_{kind}{end}") for end in ("", "_no_tokenizer"))
            assert {**bare, **tokenizers} == whole


def test_a_generator_is_put_together_from_its_parts(tmp_path):
    parts = saved_parts(tmp_path)
    made = terra_jax.load(GENERATE, parts)
    assert made.held == ("LULC",) and made.model.inputs == INPUTS and made.coordinates is None
    assert np.array_equal(made.model.decoder.mask, small_model().decoder.mask)
    folder = terra_jax.load(GENERATE, tmp_path)  # a folder of parts
    assert folder.held == ("LULC",)
    terra_jax.export_torch(made, tmp_path / "torch.safetensors")
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "torch.LULC.safetensors",
        "torch.model.safetensors",
    ]
    options = {**SIZES, "inputs": INPUTS, "outputs": OUTPUTS}
    again = terra_jax.load(GENERATE, {"model": tmp_path / "torch.model.safetensors"}, **options)
    for path, leaf in flatten_params(nnx.to_pure_dict(nnx.state(made.model, nnx.Param))).items():
        assert np.array_equal(leaf, flatten_params(nnx.to_pure_dict(nnx.state(again.model, nnx.Param)))[path])


def test_one_file_holds_a_whole_generator(tmp_path):
    """As TerraTorch writes it; there and back bit for bit."""
    made = terra_jax.load(GENERATE, saved_parts(tmp_path))
    params = nnx.to_pure_dict(nnx.state(made, nnx.Param))
    state, _ = export_state(made.whole_map, params)
    assert "sampler.model.decoder_embeddings.tok_lulc@224.to_logits.weight" in state
    assert "tokenizer.tok_lulc@224.quant_proj.weight" in state
    back, report = import_params(made.whole_map, state, params)
    assert not report.fresh and not report.aside
    assert jax.tree.all(jax.tree.map(np.array_equal, back, params))


def test_a_model_that_thinks_comes_from_an_encoder_decoder_or_from_its_own_file(tmp_path):
    parts = saved_parts(tmp_path)
    for source in (parts["model"], {"model": parts["model"]}):
        made = terra_jax.load(THINK, source, modalities=["S2L2A", "DEM"])
        assert isinstance(made, TiM) and made.thoughts == ("tok_LULC",)
    graphdef, state = nnx.split(made)
    state = jax.tree.map(lambda leaf: leaf + 1, state)  # fine-tuned
    tuned = nnx.merge(graphdef, state)
    terra_jax.export_torch(tuned, tmp_path / "tim.pt")
    again = terra_jax.load(THINK, tmp_path / "tim.pt", modalities=["S2L2A", "DEM"], **SIZES)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(nnx.state(again)), strict=True):
        assert np.array_equal(one, other)


def test_a_backbone_comes_from_a_folder_of_its_encoder_decoder(tmp_path):
    """Sizes and modalities as recorded there; other modalities and bands where they are asked for."""
    folder = saved_parts(tmp_path)["model"]
    made = terra_jax.load(BACKBONE, folder)
    assert type(made) is Backbone and made.variant.width == SIZES["width"]
    pixels = [stream.name for stream in made.encoder.streams]
    assert pixels == ["S2L2A", "S1GRD", "DEM"]
    given, held = (flatten_params(nnx.to_pure_dict(nnx.state(m, nnx.Param))) for m in (small_model(), made))
    assert all(np.array_equal(leaf, given[path]) for path, leaf in held.items())
    some = terra_jax.load(BACKBONE, folder, modalities=["S2L2A"], bands={"S2L2A": ["B04"]}, merge="mean", image=64)
    image = np.full((1, 64, 64, 1), 900)
    assert some({"S2L2A": image})[-1].shape == (1, 64, SIZES["width"])
    with pytest.raises(ConfigError, match="no option 'merg'; did you mean merge"):
        terra_jax.load(BACKBONE, folder, merg="mean")
    with pytest.raises(ConfigError, match="the model takes no S1RTC"):
        terra_jax.load(BACKBONE, folder, modalities=["S1RTC"])


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (
            ["model=a.pt", "LULK=b.pt"],
            "no part 'LULK'; its parts are model, S2L2A, S1RTC, S1GRD, DEM, NDVI, LULC, coords",
        ),
        (["model=a.pt", "model=b.pt"], "'model' is given twice"),
        (["LULC=a.pt"], "no file is given for the encoder-decoder; add model=PATH"),
        (["a", "b"], "'model' is given twice"),
    ],
)
def test_parts_that_make_no_generator_are_refused(sources, words):
    with pytest.raises(WeightsError, match=words) as error:
        composites.given_parts(GENERATE, sources)
    assert "\n" not in str(error.value)


def test_parts_are_converted_each_by_itself(tmp_path):
    sources = ["model=a.pt", "LULC=runs/lulc"]
    names = ("terramind_v1_nano_encdec", "terramind_v1_tokenizer_lulc_nano")
    assert registry.conversions(GENERATE, sources, "out") == [
        (names[0], ["a.pt"], "out/model"),
        (names[1], ["runs/lulc"], "out/LULC"),
    ]
    assert [target for *_, target in registry.conversions(GENERATE, sources, "out.pt")] == [
        "out.model.pt",
        "out.LULC.pt",
    ]
    assert registry.conversions("terrafm_nano", ["a.pt"], "b") == [("terrafm_nano", ["a.pt"], "b")]
    with pytest.raises(WeightsError, match=r"coords=c.json holds no weights"):
        registry.conversions(GENERATE, [*sources, "coords=c.json"], "out")
