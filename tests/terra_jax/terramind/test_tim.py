import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx
from small_models import small_model
from small_tokenizers import small_tokenizer

from terra_jax.errors import ConfigError
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.generation import Conditions, Decoding, Plan, generate_tokens
from terra_jax.terramind.pretrained import SAMPLER
from terra_jax.terramind.tim import TRAINABLE, TiM
from terra_jax.weights.rules import flatten_params

PIXELS = ("S2L2A", "S1GRD", "DEM")


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def pretrained():
    return small_model()


@pytest.fixture(scope="module")
def thinker(pretrained):
    return TiM.of(pretrained)


def image(batch: int = 2, bands: int = 12) -> np.ndarray:
    return np.random.default_rng(1).uniform(100, 4000, (batch, 32, 32, bands)).astype(np.float32)


def params(model) -> dict:
    return flatten_params(nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def test_both_copies_begin_as_the_pretrained_model(pretrained, thinker):
    given, held = params(pretrained), params(thinker)
    assert thinker.thoughts == ("tok_LULC",)
    for path, leaf in held.items():
        assert np.array_equal(leaf, given[path.removeprefix(f"{SAMPLER}.")]), path
    assert {f"{SAMPLER}.decoder.tables.tok_LULC", "encoder.embeddings.S1GRD.kernel"} <= set(held)
    assert not [path for path in held if "tok_NDVI" in path]


def test_what_is_not_given_is_thought_of(pretrained, thinker):
    """The encoder sees the most probable tokens of the encoder-decoder beside the image, and no inputs are changed."""
    inputs = {"S2L2A": image()}
    last = thinker(inputs)[-1]
    assert last.shape == (2, 32, 32) and list(inputs) == ["S2L2A"]  # 16 patches and 16 tokens
    values = thinker.prepare(inputs)
    pixels = pretrained.standardise(inputs)
    places = jnp.broadcast_to(jnp.arange(16), (2, 16))
    plan = Plan((("tok_LULC", Decoding(temperature=0.0)),), (4, 4))
    known = Conditions(pixels, {}, jax.random.split(jax.random.key(0), 2), places)
    expected = generate_tokens(pretrained, known, {}, plan=plan)["tok_LULC"].ids
    assert np.array_equal(values["tok_LULC"], expected.reshape(2, 4, 4))
    assert len(np.unique(expected)) > 1
    supplied = thinker({"S2L2A": image(), "tok_LULC": expected.reshape(2, 4, 4)})[-1]
    assert np.array_equal(supplied, last)


def test_thoughts_are_skipped_where_they_are_given(thinker):
    lulc = small_tokenizer("lulc")
    classes = np.random.default_rng(0).integers(0, 10, (2, 32, 32))
    values = thinker.prepare({"S2L2A": image(), "LULC": classes}, tokenizers={"LULC": lulc})
    assert np.array_equal(values["tok_LULC"], lulc.tokenize(classes))


def test_thoughts_follow_from_the_key(thinker):
    thought = [thinker.prepare({"S2L2A": image()}, key=jax.random.key(i))["tok_LULC"] for i in (0, 0, 1)]
    assert np.array_equal(thought[0], thought[1]) and not np.array_equal(thought[0], thought[2])
    coldly = [thinker.prepare({"S2L2A": image()})["tok_LULC"] for _ in range(2)]
    assert np.array_equal(*coldly)


def test_fine_tuning_reaches_the_embeddings_and_never_the_frozen_copy(pretrained, thinker):
    graphdef, trained, frozen = nnx.split(thinker, TRAINABLE, ...)

    def loss(trained, frozen):
        return jnp.square(nnx.merge(graphdef, trained, frozen)({"S2L2A": image()})[-1]).mean()

    of_trained, of_frozen = jax.grad(loss, argnums=(0, 1))(trained, frozen)
    gradients = {path: np.abs(leaf).max() for path, leaf in flatten_params(nnx.to_pure_dict(of_trained)).items()}
    for name in ("S2L2A.kernel", "S2L2A.modality", "tok_LULC.table", "tok_LULC.modality"):
        assert gradients[f"encoder.embeddings.{name}"] > 0, name
    assert not any(SAMPLER in path for path in gradients)
    still = flatten_params(nnx.to_pure_dict(of_frozen))
    assert set(still) == {path for path in params(thinker) if path.startswith(SAMPLER)}
    assert not any(np.any(leaf) for leaf in still.values())


def test_several_thoughts_follow_from_one_another(pretrained):
    names = ("LULC", "NDVI", "coords")
    words = {"coords": CoordinateTokenizer.build()}
    chained, apart = (TiM.of(pretrained, thoughts=names, chained=chained) for chained in (True, False))
    together = chained.prepare({"S2L2A": image()}, tokenizers=words)
    singly = apart.prepare({"S2L2A": image()}, tokenizers=words)
    assert list(together) == ["S2L2A", "tok_LULC", "tok_NDVI", "coords"]
    assert np.array_equal(together["tok_LULC"], singly["tok_LULC"])
    assert not np.array_equal(together["tok_NDVI"], singly["tok_NDVI"])
    words["coords"].decode(together["coords"])  # places, whatever the model thinks
    with pytest.raises(ConfigError, match="coords needs its vocabulary"):
        chained.prepare({"S2L2A": image()})


def test_band_subsets_and_new_modalities(pretrained):
    """A model of fewer bands thinks what the whole one does of an image whose other bands are at the mean."""
    few = ["B04", "B03", "B02"]
    made = TiM.of(pretrained, modalities=["S2L2A", {"SAR": 3}], bands={"S2L2A": few}, merge="mean")
    kernel, whole = (params(m)["encoder.embeddings.S2L2A.kernel"] for m in (made, pretrained))
    assert np.array_equal(kernel.reshape(64, 3, -1), whole.reshape(64, 12, -1)[:, [3, 2, 1]])
    rgb = image(bands=3)
    whole_thought = TiM.of(pretrained).prepare({"S2L2A": rgb}, bands={"S2L2A": few}, fill="mean")["tok_LULC"]
    values = made.prepare({"S2L2A": rgb, "SAR": image(bands=3) / 4000})
    assert np.array_equal(values["tok_LULC"], whole_thought)
    assert made({"S2L2A": rgb, "SAR": image(bands=3) / 4000})[-1].shape == (2, 16, 32)
    with pytest.raises(ConfigError, match="nothing is given to think from; give one of S2L2A, tok_LULC"):
        made({"SAR": image(bands=3)})


def test_it_is_a_backbone(thinker, pretrained):
    assert thinker.feature_maps({"S2L2A": image()}, blocks=[0, 1])[1].shape == (2, 4, 4, 32)
    merged = TiM.of(pretrained, merge="dict")({"S2L2A": image(), "DEM": image(bands=1)})[-1]
    assert {name: part.shape for name, part in merged.items()} == dict.fromkeys(
        ("S2L2A", "DEM", "tok_LULC"), (2, 16, 32)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thoughts": ["DEM"]}, "was not trained to give tok_DEM; it gives tok_S2L2A"),
        ({"thoughts": []}, "no thoughts are named"),
        ({"thoughts": ["LULK"]}, "no modality 'LULK' here; did you mean"),
        ({"modalities": ["S2L1C"]}, "takes no S2L1C; did you mean"),
    ],
)
def test_what_the_model_cannot_think_of_is_refused(pretrained, options, words):
    with pytest.raises(ConfigError, match=words) as error:
        TiM.of(pretrained, **options)
    assert "\n" not in str(error.value)
