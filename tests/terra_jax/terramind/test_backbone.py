"""The backbone: what goes in, how features are merged, sizes, bands, modalities of one's own, and files."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx
from small_terramind import GATED, PLAIN, random_pixels, small_backbone

import terra_jax
from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from terra_jax.errors import ConfigError, WeightsError
from terra_jax.nn.positions import sincos_positions
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.weights.rules import flatten_params

MODALITIES = ("S2L2A", "S1GRD", "DEM", "LULC", "coords")
NANO = {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "hidden": 16, "patch": 4, "image": 16}
"""Makes a registered model small."""


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def model():
    return small_backbone(modalities=MODALITIES)


@pytest.fixture(scope="module")
def inputs():
    tokens = np.random.default_rng(0).integers(0, 4375, (2, 4, 4))
    return {**random_pixels(["S1GRD", "S2L2A"]), "LULC": tokens, "coords": np.array([[300, 1000, 3], [301, 1001, 3]])}


@pytest.fixture(scope="module")
def whole(model, inputs):
    return model(inputs, normalised=True)


def merged(merge, inputs, **options):
    return small_backbone(modalities=MODALITIES, merge=merge, **options)(inputs, normalised=True)


def assert_close(a, b):
    np.testing.assert_allclose(a, b, atol=3e-5)


def test_tokens_come_in_the_order_of_the_inputs(model, inputs, whole):
    assert [x.shape for x in whole] == [(2, 16 * 3 + 3, 16)] * GATED.depth
    turned = {name: inputs[name] for name in ("coords", "LULC", "S2L2A", "S1GRD")}
    x = model(turned, normalised=True)[-1]
    order = np.r_[35:51, 19:35, 3:19, 0:3]
    assert_close(x[:, order], whole[-1])
    assert_close(model.encode(model.prepare(inputs, normalised=True)), whole[-1])
    normed = model.encoder.norm
    np.testing.assert_allclose(np.square(np.asarray(whole[-1] / normed.scale[...])).mean(-1), 1, rtol=1e-3)


def test_merges(inputs, whole):
    parts = [np.asarray(whole[-1][:, i : i + 16]) for i in (0, 16, 32)]  # S1GRD, S2L2A, LULC
    assert_close(merged("mean", inputs)[-1], np.mean(parts, axis=0))
    assert_close(merged("max", inputs)[-1], np.max(parts, axis=0))
    # The order that the model declares, with nothing where no elevation was given.
    concatenated = np.concatenate([parts[1], parts[0], np.zeros_like(parts[0]), parts[2]], axis=-1)
    assert_close(merged("concat", inputs)[-1], concatenated)
    named = merged("dict", inputs)
    assert [list(x) for x in named] == [["S1GRD", "S2L2A", "tok_LULC", "coords"]] * GATED.depth
    assert_close(named[0]["coords"], whole[0][:, 48:])


def test_registers_lead_and_are_left_out_of_merges(inputs):
    named = merged("dict", inputs, registers=3)[-1]
    assert next(iter(named)) == "registers" and named["registers"].shape == (2, 3, 16)
    everything = merged(None, inputs, registers=3)
    assert_close(everything[-1][:, :3], named["registers"])
    images = [named[name] for name in ("S1GRD", "S2L2A", "tok_LULC")]
    assert_close(merged("mean", inputs, registers=3)[-1], sum(images) / 3)
    model = small_backbone(modalities=MODALITIES, registers=3)
    assert_close(model.encode(model.prepare(inputs, normalised=True)), everything[-1][:, 3:])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24)])
def test_any_size_of_whole_patches(model, height, width):
    image = random_pixels(["S2L2A"], side=24)["S2L2A"][:, :height, :width]
    maps = model.feature_maps({"S2L2A": image}, normalised=True)
    assert [m.shape for m in maps] == [(2, height // 4, width // 4, 16)] * 2
    assert_close(maps[-1].reshape(2, -1, 16), model({"S2L2A": image}, normalised=True)[-1])


def test_the_size_at_build_decides_the_exact_positions():
    image = random_pixels(["S2L2A"], side=24)["S2L2A"]
    built, resampled = (small_backbone(replace(GATED, image=size)) for size in (24, 16))
    table = sincos_positions(6, 16).reshape(36, 16)
    content = built.encoder.embed_whole("S2L2A", image) - table
    other = resampled.encoder.embed_whole("S2L2A", image)
    assert np.abs(content + table - other).max() > 0.1
    held = built.encoder.embeddings["S2L2A"]
    flat = np.asarray(image).reshape(2, 6, 4, 6, 4, 12).transpose(0, 1, 3, 2, 4, 5).reshape(2, 36, -1)
    assert_close(content, flat @ np.asarray(held.kernel[...]) + held.modality[...])


def test_bands_at_build_are_bands_at_call_without_the_others(tmp_path):
    path = tmp_path / "whole.safetensors"
    options = {**NANO, "modalities": ["S2L2A", "S1GRD"]}
    whole = terra_jax.build("terramind_v1_base", **options)
    terra_jax.export_torch(whole, path)
    bands = {"S2L2A": ["red", "B03", "B02"], "S1GRD": ["VH"]}
    some = terra_jax.load("terramind_v1_base", path, bands=bands, **options)
    rng = np.random.default_rng(0)
    raw = {"S2L2A": rng.normal(2000, 900, (1, 16, 16, 3)), "S1GRD": rng.normal(-15, 5, (1, 16, 16, 1))}
    assert_close(some(raw)[-1], whole(raw, bands=bands, fill="mean")[-1])
    turned = {**raw, "S2L2A": raw["S2L2A"][..., ::-1]}
    assert_close(some(turned, bands={"S2L2A": ["B02", "B03", "B04"]})[-1], some(raw)[-1])

    own = tmp_path / "some.safetensors"
    terra_jax.export_torch(some, own)
    again = terra_jax.load("terramind_v1_base", own, bands=bands, **options)
    assert_close(again(raw)[-1], some(raw)[-1])
    with pytest.raises(WeightsError, match="of another shape"):
        terra_jax.load("terramind_v1_base", own, **options)


def test_bands_that_are_missing_need_a_filling(model):
    image = np.ones((1, 16, 16, 3), np.float32)
    with pytest.raises(ConfigError, match=r"S2L2A lacks B01.*say what stands for them"):
        model({"S2L2A": image}, bands={"S2L2A": ["B04", "B03", "B02"]})
    with pytest.raises(ConfigError, match="S2L2A has 3 channels but 12 band names"):
        model({"S2L2A": image})


def test_modalities_of_ones_own(tmp_path, capsys):
    path = tmp_path / "public.safetensors"
    terra_jax.export_torch(terra_jax.build("terramind_v1_base", **NANO, modalities=["S2L2A"]), path)
    capsys.readouterr()
    modalities = ["S2L2A", {"planet": ["blue", "green", "red", "nir"], "naip": 2}]
    model = terra_jax.load("terramind_v1_base", path, **NANO, modalities=modalities, registers=1)
    printed = capsys.readouterr().out
    assert "initialised: encoder.embeddings.naip.kernel" in printed and "encoder.registers" in printed
    shapes = terra_jax.state_dict_shapes("terramind_v1_base", **NANO, modalities=modalities)
    assert shapes["encoder_embeddings.planet.proj.weight"] == (16, 64)
    image = np.random.default_rng(0).standard_normal((1, 16, 16, 4)).astype(np.float32)
    x = model({"planet": image})[-1]
    turned = model({"planet": image[..., ::-1]}, bands={"planet": ["nir", "red", "green", "blue"]})[-1]
    assert x.shape == (1, 17, 16)
    assert_close(x, turned)
    assert_close(x, model({"planet": image}, normalised=True)[-1])


def test_raw_images_are_standardised(model):
    mean, std = modality("S1GRD").statistics_for("terramind_v1")
    image = np.random.default_rng(0).standard_normal((1, 16, 16, 2)).astype(np.float32)
    assert_close(model({"S1GRD": mean + std * image})[-1], model({"S1GRD": image}, normalised=True)[-1])


class ByTens:
    """Tokens are the classes, times ten, of the first pixel."""

    def tokenize(self, raster):
        return jnp.asarray(raster)[:, ::4, ::4] * 10


def test_tokenizers_take_rasters_and_places(model, inputs):
    raster = np.random.default_rng(3).integers(0, 10, (2, 16, 16))
    coordinates = CoordinateTokenizer.build()
    places = np.array([[11.25, 48.0], [-70.0, -33.5]])
    found = model({"LULC": raster, "coords": places}, tokenizers={"LULC": ByTens(), "coords": coordinates})
    ids = {"LULC": 10 * raster[:, ::4, ::4], "coords": coordinates.tokenize(*places.T)}
    assert_close(found[-1], model(ids)[-1])
    assert_close(found[-1], model({**ids, "LULC": ids["LULC"].reshape(2, 16)})[-1])


def test_an_encoder_decoders_file_gives_its_encoder(tmp_path, capsys):
    path = tmp_path / "encdec.safetensors"
    options = {"inputs": ("S2L2A", "DEM", "tok_LULC", "coords"), "outputs": ("tok_LULC", "coords")}
    pretrained = terra_jax.build("terramind_v1_base_encdec", **NANO, **options)
    terra_jax.export_torch(pretrained, path)
    capsys.readouterr()
    backbone = terra_jax.load("terramind_v1_base", path, **NANO, modalities=["DEM", "LULC"])
    assert "in the file, not used: mask_token.* (1), encoder_embeddings.* (6), decoder_embed" in capsys.readouterr().out
    held, given = (flatten_params(nnx.to_pure_dict(nnx.state(m, nnx.Param))) for m in (backbone, pretrained))
    assert {path.split(".")[2] for path in held if "embeddings" in path} == {"DEM", "tok_LULC"}
    assert all(np.array_equal(leaf, given[path]) for path, leaf in held.items())
    with pytest.raises(WeightsError, match=r"missing \(encoder_embeddings.untok_sen1grd@224.mod_emb"):
        terra_jax.load("terramind_v1_base", path, **NANO, modalities=["DEM", "S1GRD"])


def test_files_of_the_released_size_fit_models_of_another(tmp_path, capsys):
    path = tmp_path / "released.safetensors"
    small = {**NANO, "patch": 16, "modalities": ["DEM"]}
    terra_jax.export_torch(terra_jax.build("terramind_v1_base", **{**small, "image": 224}), path)
    capsys.readouterr()
    assert terra_jax.load("terramind_v1_base", path, **{**small, "image": 256}).variant.grid == 16
    assert "in the file, not used: encoder_embeddings.untok_dem@224.pos_emb" in capsys.readouterr().out
    terra_jax.export_torch(terra_jax.build("terramind_v1_base", **{**small, "image": 256}), path)
    with pytest.raises(WeightsError, match=r"untok_dem@224.pos_emb \(1, 256, 16\) instead of \(1, 196, 16\)"):
        terra_jax.load("terramind_v1_base", path, **{**small, "image": 224})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modalities": ["S2L2"]}, ConfigError, "no modality 'S2L2' here; did you mean .*S2L2A"),
        ({"modalities": ["DEM", "DEM"]}, ConfigError, "must be named once each"),
        ({"modalities": []}, ConfigError, "at least one"),
        ({"modalities": [{"S2L2A": 3}]}, ConfigError, "S2L2A is a modality of TerraMind's own"),
        ({"modalities": [{"a.b": 3}]}, ConfigError, "cannot be named 'a.b'"),
        ({"modalities": [{"planet": 0}]}, ConfigError, "planet of bands 0 is unclear"),
        ({"merge": "sum"}, ConfigError, "unknown merge 'sum'; choose mean, max, concat, dict or None"),
        ({"bands": {"LULC": ["a"]}}, ConfigError, "bands of 'LULC', which the model does not take"),
        ({"bands": {"S1GRD": ["VH", "VV"]}}, ConfigError, "all bands of S1GRD keep their order"),
        ({"bands": {"S1GRD": ["VH", "VH"]}}, ConfigError, "S1GRD of bands VH, VH is unclear"),
        ({"bands": {"S2L2A": ["B0"]}}, DataError, "S2L2A has no band 'B0'; did you mean"),
        ({"remat": "some"}, ConfigError, "unknown remat policy"),
    ],
)
def test_bad_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        small_backbone(PLAIN, **options)


def test_bad_inputs_are_named(model, inputs):
    image = inputs["S2L2A"]
    cases = (
        ({"S2L2B": image}, "this model has no modality 'S2L2B'; did you mean S2L2A"),
        ({}, "no input given; name at least one of S2L2A, S1GRD"),
        ({"S2L2A": image[:, :, :15]}, "S2L2A of 16 x 15 pixels is not made of whole patches; .* multiples of 4"),
        ({"S2L2A": image[0]}, r"S2L2A of shape \(16, 16, 12\) is no batch of images"),
        ({"LULC": image[..., 0]}, r"tok_LULC takes discrete tokens .*tokenizers=\{'LULC': tokenizer\}"),
        ({"coords": np.zeros((2, 2))}, "coords takes discrete tokens"),
        ({"LULC": inputs["LULC"] + 4375}, "tokens of tok_LULC lie in 0..4374, not 4"),
        ({"LULC": inputs["LULC"], "tok_LULC": inputs["LULC"]}, "given twice"),
    )
    for given, message in cases:
        with pytest.raises(ConfigError, match=message):
            model(given, normalised=True)
    sizes = {"S2L2A": image, "S1GRD": inputs["S1GRD"][:, :8]}
    with pytest.raises(ConfigError, match="S2L2A of 16 tokens, S1GRD of 8 tokens cannot be merged"):
        merged("mean", sizes)
    assert model(sizes, normalised=True)[-1].shape == (2, 24, 16)
