import jax
import numpy as np
import pytest
from command_line import quick_compilation
from small_models import small_generator, small_model
from small_tokenizers import small_tokenizer

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER
from terra_jax.errors import ConfigError
from terra_jax.parallel.mesh import make_mesh
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.fingerprint import fingerprint
from terra_jax.terramind.generation import Decoding
from terra_jax.terramind.generator import Generator

KEY = jax.random.key(0)
QUICK = {"diffusion_steps": 1}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def generator():
    return small_generator(coordinates=CoordinateTokenizer.build())


def image(batch: int = 2, side: int = 32) -> np.ndarray:
    return np.random.default_rng(1).uniform(100, 4000, (batch, side, side, 12)).astype(np.float32)


def classes(batch: int = 2) -> np.ndarray:
    return np.random.default_rng(2).integers(0, len(LAND_COVER), (batch, 32, 32))


def test_rasters_and_places_come_out_in_physical_units(generator):
    inputs = {"S2L2A": image()}
    before = inputs["S2L2A"].copy()
    made = generator.generate(inputs, ["NDVI", "LULC", "coords"], key=KEY, steps=4, **QUICK)
    assert list(made) == ["NDVI", "LULC", "coords"] and list(inputs) == ["S2L2A"]
    assert np.array_equal(inputs["S2L2A"], before)
    assert made["LULC"].shape == (2, 32, 32) and made["LULC"].dtype == np.int32
    assert made["NDVI"].shape == (2, 32, 32, 1) and np.isfinite(made["NDVI"]).all()
    lon, lat = np.asarray(made["coords"]).T
    assert (np.abs(lon) <= 180).all() and (np.abs(lat) <= 90).all()
    assert np.allclose(4 * lon, np.round(4 * lon)) and np.allclose(4 * lat, np.round(4 * lat))


def test_the_same_key_gives_the_same_bytes_on_any_number_of_devices(generator):
    two = make_mesh(devices=jax.devices()[:2])
    once, again, elsewhere, other = (
        np.asarray(generator.generate({"S2L2A": image()}, ["NDVI"], **how, **QUICK)["NDVI"]).tobytes()
        for how in ({"key": KEY}, {"key": KEY}, {"key": KEY, "mesh": two}, {"key": jax.random.key(1)})
    )
    assert once == again == elsewhere and once != other


def test_tokens_go_in_and_out_and_what_is_given_is_not_generated(generator):
    tokens = generator.generate({"S2L2A": image()}, ["tok_LULC"], key=KEY)["tok_LULC"]
    assert tokens.shape == (2, 4, 4)
    decoded = generator.tokenizers["LULC"].decode_tokens(tokens)
    assert np.array_equal(generator.generate({"S2L2A": image()}, ["LULC"], key=KEY)["LULC"], decoded)
    held = {"tok_LULC": tokens, "S2L2A": image()}
    assert np.array_equal(generator.generate(held, ["LULC"], key=jax.random.key(9))["LULC"], decoded)
    given = {"LULC": classes(), "S2L2A": image()}
    made = generator.generate(given, ["LULC", "tok_NDVI"], key=KEY)
    assert made["LULC"] is given["LULC"]
    from_tokens = {"tok_LULC": generator.tokenizers["LULC"].tokenize(classes()), "S2L2A": image()}
    assert np.array_equal(made["tok_NDVI"], generator.generate(from_tokens, ["tok_NDVI"], key=KEY)["tok_NDVI"])
    alone = generator.generate({"S2L2A": image()}, ["tok_NDVI"], key=KEY)["tok_NDVI"]
    assert not np.array_equal(made["tok_NDVI"], alone)


def test_the_mean_of_samples(generator):
    """Of class logits, which the most probable class follows from, and of physical values."""
    once = [generator.generate({"S2L2A": image()}, ["NDVI"], key=KEY, samples=n, **QUICK)["NDVI"] for n in (1, 2, 3)]
    second = 2 * once[1] - once[0]
    third = 3 * once[2] - 2 * once[1]
    assert not np.allclose(once[0], second) and not np.allclose(second, third)
    soft = generator.generate({"S2L2A": image()}, ["LULC"], key=KEY, samples=3, probabilities=True)["LULC"]
    assert soft.shape == (2, 32, 32, 10) and np.allclose(soft.sum(-1), 1, atol=1e-5)
    hard = generator.generate({"S2L2A": image()}, ["LULC"], key=KEY, samples=3)["LULC"]
    assert np.array_equal(hard, soft.argmax(-1))
    places = generator.generate({"S2L2A": image()}, ["coords"], key=KEY, samples=3)["coords"]
    assert places.shape == (2, 2)


def test_without_temperature_nothing_is_drawn(generator):
    coldly = Decoding(temperature=0.0)
    made = [
        generator.generate({"S2L2A": image()}, ["tok_LULC"], key=jax.random.key(i), decoding=coldly)["tok_LULC"]
        for i in (0, 1)
    ]
    assert np.array_equal(*made)
    by_name = generator.generate({"S2L2A": image()}, ["tok_LULC"], key=KEY, decoding={"LULC": coldly})["tok_LULC"]
    assert np.array_equal(by_name, made[0])


def test_guidance_changes_what_is_drawn(generator):
    plain, guided = (
        generator.generate({"S2L2A": image()}, ["tok_LULC"], key=KEY, decoding=Decoding(guidance=scale))["tok_LULC"]
        for scale in (1.0, 3.0)
    )
    assert not np.array_equal(plain, guided)


def test_places_go_in(generator):
    here, there = (
        generator.generate({"S2L2A": image(), "coords": np.full((2, 2), place)}, ["tok_LULC"], key=KEY)["tok_LULC"]
        for place in (10.0, 60.0)
    )
    assert not np.array_equal(here, there)


def test_band_subsets_are_filled_explicitly(generator):
    few = ["B02", "B03", "B04"]
    options = {"key": KEY, "bands": {"S2L2A": few}}
    made = generator.generate({"S2L2A": image()[..., :3]}, ["tok_LULC"], fill="mean", **options)["tok_LULC"]
    assert made.shape == (2, 4, 4)
    with pytest.raises(ConfigError, match="lacks B01"):
        generator.generate({"S2L2A": image()[..., :3]}, ["tok_LULC"], **options)


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "words"),
    [
        ({"S2L2A": image()}, ["LULK"], {}, "not trained to give 'LULK'; it gives S2L2A, LULC, NDVI, coords"),
        ({"S2L2A": image()}, ["DEM"], {}, "not trained to give 'DEM'"),
        ({"S2L2": image()}, ["LULC"], {}, "takes no 'S2L2'; did you mean"),
        ({"S2L2A": image() / 1e4}, ["LULC"], {}, "look like reflectance; convert it to dn10000"),
        ({"S2L2A": image(side=36)}, ["LULC"], {}, "36 x 36 pixels; give .* divisible by 8"),
        ({"S2L2A": image(), "DEM": np.ones((2, 64, 64, 1))}, ["LULC"], {}, "different sizes cannot go together"),
        ({"S2L2A": image(), "DEM": np.ones((3, 32, 32, 1))}, ["LULC"], {}, "different sizes cannot go together"),
        ({"S2L2A": image()[..., :10]}, ["LULC"], {}, "10 channels but 12 band names"),
        ({"LULC": classes() + 9}, ["NDVI"], {}, "holds class 18; renumber"),
        ({"LULC": classes() + 0.5}, ["NDVI"], {}, "takes class ids, not fractions"),
        ({"LULC": classes(), "tok_LULC": classes()[:, :4, :4]}, ["NDVI"], {}, "given twice under two names"),
        ({"tok_LULC": classes()[:, 0, :16]}, ["NDVI"], {}, r"give integers \(batch, rows, columns\)"),
        ({"tok_LULC": classes()[:, :4, :4] + 4370}, ["NDVI"], {}, "they lie in 0..4374"),
        ({"coords": np.zeros((2, 3))}, ["NDVI"], {}, r"give longitude and latitude \(batch, 2\)"),
        ({}, ["NDVI"], {}, "nothing is given"),
        ({"S2L2A": image()}, ["NDVI"], {"samples": 0}, "samples=0 is too few"),
        ({"S2L2A": image()}, ["tok_NDVI"], {"samples": 2}, "tokens have no mean; ask for NDVI"),
        ({"S2L2A": image()}, ["NDVI"], {"steps": 17}, "steps=17 cannot share 16 tokens"),
        ({"S2L2A": image(3)}, ["NDVI"], {"mesh": make_mesh()}, "3 samples do not divide among 8 devices"),
    ],
)  # fmt: skip
def test_bad_wishes_are_refused_in_one_line(generator, inputs, outputs, options, words):
    with pytest.raises((ConfigError, DataError), match=words) as error:
        generator.generate(inputs, outputs, key=KEY, **options)
    assert "\n" not in str(error.value)


def test_tokenizers_must_be_those_of_the_training(generator):
    lulc = small_tokenizer("lulc")
    trained = {"LULC": fingerprint(lulc), "coords": CoordinateTokenizer.build().fingerprint}
    model = small_model(fingerprints=trained)
    assert Generator(model, {"LULC": lulc}, CoordinateTokenizer.build()).held == ("LULC",)
    for tokenizers, coordinates, words in (
        ({"LULC": small_tokenizer("lulc", seed=1)}, None, f"trained on tokens of {trained['LULC']}; tokens of diff"),
        ({"NDVI": lulc}, None, "given for NDVI is one of LULC"),
        ({"DEM": small_tokenizer("dem")}, None, "knows no tokens of DEM"),
        ({}, CoordinateTokenizer({"[EOS]": 3, "lat=0.00": 5, "lon=0.00": 6}), "vocabulary of coordinates is"),
    ):
        with pytest.raises(ConfigError, match=words) as error:
            Generator(model, tokenizers, coordinates)
        assert "\n" not in str(error.value)


def test_what_is_not_at_hand_is_named(generator):
    bare = Generator(generator.model, {})
    for inputs, outputs, words in (
        ({"S2L2A": image()}, ["NDVI"], "NDVI needs its tokenizer; give it as the part NDVI=PATH"),
        ({"LULC": classes()}, ["tok_NDVI"], "LULC needs its tokenizer"),
        ({"S2L2A": image()}, ["coords"], "coordinates need their vocabulary"),
        ({"coords": np.zeros((2, 2))}, ["tok_NDVI"], "coordinates need their vocabulary"),
    ):
        with pytest.raises(ConfigError, match=words):
            bare.generate(inputs, outputs, key=KEY)
    assert bare.generate({"S2L2A": image()}, ["tok_NDVI"], key=KEY)["tok_NDVI"].shape == (2, 4, 4)
