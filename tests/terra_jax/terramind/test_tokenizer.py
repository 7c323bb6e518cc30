"""The tokenizers as a user meets them: images in, tokens and images out, mistakes in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx
from random_tokenizer import TINY, TINY_UNET, random_tokenizer

from data_pipelines.modalities import modality
from terra_jax.errors import ConfigError
from terra_jax.nn.diffusion import noised
from terra_jax.nn.initialisation import abstract
from terra_jax.terramind.tokenizer import Tokenizer
from terra_jax.terramind.variants import TOKENIZERS

S2, CLASSES = "terramind_v1_tokenizer_s2l2a_nano", "terramind_v1_tokenizer_lulc_nano"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def optical():
    return random_tokenizer(S2, unet=TINY_UNET, **TINY)


@pytest.fixture(scope="module")
def land_cover():
    return random_tokenizer(CLASSES, **TINY)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).uniform(0, 4000, (2, 16, 24, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def classes():
    return np.random.default_rng(2).integers(0, 10, (2, 16, 24)).astype(np.uint8)


def test_the_six_of_the_paper_and_a_small_one_of_each():
    assert len(TOKENIZERS) == 12
    for name, variant in TOKENIZERS.items():
        lulc = variant.modality == "LULC"
        assert variant.modality.lower() in name
        assert (variant.kind, variant.codebook) == (("vit", 4375) if lulc else ("diffusion", 15360))
        public = not name.endswith("_nano")
        assert (variant.multiple, variant.grid) == ((16 if lulc else 32, 14) if public else (8, 8))


def test_tokens_are_one_a_patch(optical, land_cover, image, classes):
    for tokenizer, x in ((optical, image), (land_cover, classes)):
        ids = tokenizer.tokenize(x)
        assert ids.shape == (2, 2, 3) and ids.dtype == jnp.int32
        assert int(ids.min()) >= 0 and int(ids.max()) < tokenizer.variant.codebook
        assert np.array_equal(ids, tokenizer.quantise(tokenizer.latents(x))[1])
        assert np.array_equal(tokenizer.codes(ids), tokenizer.quantise(tokenizer.latents(x))[0])
        assert np.array_equal(tokenizer.tokenize(x[1:]), ids[1:])


def test_standardised_input_is_what_the_statistics_say(optical, image):
    mean, std = modality("S2L2A").statistics_for("terramind_v1")
    standard = optical.standardise(image)
    np.testing.assert_allclose(standard, (image - mean) / std, atol=1e-5)
    np.testing.assert_allclose(optical.destandardise(standard), image, atol=1e-2)
    assert np.array_equal(optical.tokenize(standard, normalised=True), optical.tokenize(image))


def test_bands_go_by_name(optical, image):
    names = modality("S2L2A").band_names
    assert np.array_equal(optical.tokenize(image[..., ::-1], bands=names[::-1]), optical.tokenize(image))
    filled = optical.standardise(image[..., 1:], bands=names[1:], fill="mean")
    np.testing.assert_allclose(filled[..., 0], 0, atol=1e-6)
    with pytest.raises(ConfigError, match="S2L2A lacks B01; say what stands for"):
        optical.tokenize(image[..., 1:], bands=names[1:])


def test_land_cover_comes_as_ids_or_as_classes(land_cover, classes):
    one_hot = np.eye(10, dtype=np.float32)[classes]
    ids = land_cover.tokenize(classes)
    assert np.array_equal(land_cover.tokenize(classes[..., None]), ids)
    assert np.array_equal(land_cover.tokenize(one_hot), ids)


def test_pictures_are_a_function_of_tokens_and_noise(optical, image):
    ids = optical.tokenize(image)
    noise = np.random.default_rng(3).normal(size=image.shape).astype(np.float32)
    picture = optical.decode_tokens(ids, 2, noise=noise)
    assert picture.shape == image.shape and np.isfinite(picture).all()
    assert np.array_equal(optical.decode_tokens(ids, 2, noise=noise), picture)
    by_key = [np.asarray(optical.decode_tokens(ids, 2, key=jax.random.key(seed))) for seed in (0, 0, 1)]
    assert np.array_equal(by_key[0], by_key[1]) and not np.array_equal(by_key[0], by_key[2])
    ancestral = optical.decode_tokens(ids, 2, noise=noise, key=jax.random.key(0), sampler="ddpm")
    assert not np.array_equal(ancestral, picture)


def test_the_clip_is_the_tokenizers_unless_another_is_named(optical, image):
    ids, (mean, std) = optical.tokenize(image), modality("S2L2A").statistics_for("terramind_v1")
    clipped = optical.decode_tokens(ids, 2, key=jax.random.key(0), clip="unit")
    free = optical.decode_tokens(ids, 2, key=jax.random.key(0))
    assert (np.abs((clipped - mean) / std) <= 1 + 1e-5).all() and np.abs((free - mean) / std).max() > 1.01
    graphdef, _ = abstract(lambda r: Tokenizer(optical.variant, rngs=r, clip="unit"))
    bounded = nnx.merge(graphdef, nnx.state(optical))
    np.testing.assert_array_equal(bounded.decode_tokens(ids, 2, key=jax.random.key(0)), clipped)


def test_land_cover_decodes_to_the_likeliest_class(land_cover, classes):
    ids = land_cover.tokenize(classes)
    decoded = land_cover.decode_tokens(ids)
    logits = land_cover.logits(land_cover.codes(ids))
    assert logits.shape == (*classes.shape, 10) and decoded.dtype == jnp.int32
    assert np.array_equal(decoded, logits.argmax(-1))


def test_feature_maps_of_every_block(land_cover, classes):
    maps = land_cover.feature_maps(classes)
    assert [m.shape for m in maps] == [(2, 2, 3, 32)] * 2
    np.testing.assert_allclose(land_cover.encoder.out(maps[-1]), land_cover.latents(classes), atol=1e-5)


@pytest.mark.parametrize("name", ["optical", "land_cover"])
def test_gradients_reach_every_parameter(name, request, image, classes):
    tokenizer = request.getfixturevalue(name)
    graphdef, state = nnx.split(tokenizer)

    def loss(state):
        model = nnx.merge(graphdef, state)
        x = model.standardise(image if name == "optical" else classes)
        codes, _ = model.quantise(model.latents(x, normalised=True))
        if name == "land_cover":
            return jnp.square(model.logits(codes) - x).mean()
        noisy, t = noised(x, jax.random.key(0))
        return jnp.square(model.denoise(noisy, t, codes) - x).mean()

    gradient = nnx.to_flat_state(jax.jit(jax.grad(loss))(state))
    assert [path for path, leaf in gradient if not np.any(leaf[...])] == []


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("optical", (1, 20, 24, 12), "an image of 20x24 pixels .* sides divisible by 8"),
        ("optical", (16, 24, 12), r"takes \(batch, height, width, channels\)"),
        ("optical", (1, 16, 24, 13), "S2L2A has 13 channels but 12 band names"),
        ("land_cover", (1, 16, 12), "an image of 16x12 pixels .* sides divisible by 8"),
        ("land_cover", (1, 16, 24, 3), r"LULC of shape \(1, 16, 24, 3\) is unclear; give class ids"),
    ],
)
def test_images_that_do_not_fit_are_refused(name, shape, message, request):
    with pytest.raises(ConfigError, match=message) as error:
        request.getfixturevalue(name).tokenize(np.zeros(shape, np.float32))
    assert "\n" not in str(error.value)


def test_ids_out_of_range_are_refused(optical, land_cover, classes):
    with pytest.raises(ConfigError, match=r"LULC class ids \(nodata, .*rangeland\) lie in 0..9, not 0..10"):
        land_cover.tokenize(np.where(classes == 3, 10, classes))
    for ids in (15360, -1):
        with pytest.raises(ConfigError, match=r"tokens of the S2L2A tokenizer lie in 0\.\.15359"):
            optical.decode_tokens(jnp.full((1, 2, 2), ids), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "starts from noise; give key="),
        ({"noise": np.zeros((1, 16, 16, 3))}, r"noise of shape \(1, 16, 16, 3\) does not fit"),
        ({"noise": np.zeros((1, 16, 16, 12)), "sampler": "ddpm"}, "give key="),
        ({"noise": np.zeros((1, 16, 16, 12)), "clip": "two"}, "unknown clip 'two'"),
    ],
)
def test_options_of_sampling_that_do_not_fit_are_refused(optical, options, message):
    with pytest.raises(ConfigError, match=message):
        optical.decode_tokens(jnp.zeros((1, 2, 2), int), 2, **options)


def test_the_public_methods_work_inside_a_compiled_function(optical, image):
    both = jax.jit(lambda model, x: model.decode_tokens(model.tokenize(x), 2, key=jax.random.key(0)))
    picture = optical.decode_tokens(optical.tokenize(image), 2, key=jax.random.key(0))
    np.testing.assert_allclose(both(optical, image), picture, rtol=1e-3, atol=1)


def test_an_unknown_clip_is_refused_when_building():
    with pytest.raises(ConfigError, match="unknown clip 'half'; choose none or unit"):
        nnx.eval_shape(lambda: Tokenizer(TOKENIZERS[S2], rngs=nnx.Rngs(0), clip="half"))
