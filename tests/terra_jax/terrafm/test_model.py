import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data_pipelines.modalities import modality
from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import abstract, initialise
from terra_jax.terrafm.model import TerraFM, input_bands
from terra_jax.terrafm.variants import VARIANTS

NANO = VARIANTS["terrafm_nano"]


@pytest.fixture(scope="module")
def model():
    return initialise(lambda rngs: TerraFM(NANO, rngs=rngs))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    shape = (2, NANO.image, NANO.image)
    return {name: jnp.asarray(rng.normal(size=(*shape, len(input_bands(name)))), jnp.float32) for name in
            ("S2L2A", "S2L1C", "S1RTC")}  # fmt: skip


@pytest.fixture(scope="module")
def stems(model, images):
    return model.prepare(images, normalised=True)


def test_norm_epsilons(model):
    assert model.patch_embed.projection.norm.eps == 1e-5
    assert model.norm.eps == model.blocks.blocks.norm1.eps == model.blocks.blocks.norm2.eps == 1e-6


def test_fusion_of_one_modality_is_the_public_path(model, stems):
    for name, image in stems.items():
        alone = model.encode({name: image})
        fused = model.encode({name: image}, {name: jnp.ones(2, bool)})
        np.testing.assert_allclose(fused, alone, atol=2e-5)


def test_each_mask_equals_the_subset_it_leaves(model, stems):
    present = dict(zip(stems, jnp.array([[True, False], [False, True], [True, False]]), strict=True))
    masked = jax.jit(model.encode)(stems, present)
    names = list(stems)
    pair = model.encode({n: stems[n][:1] for n in (names[0], names[2])})
    single = model.encode({names[1]: stems[names[1]][1:]})
    np.testing.assert_allclose(masked[:1], pair, atol=2e-5)
    np.testing.assert_allclose(masked[1:], single, atol=2e-5)


def test_masked_modalities_have_no_influence_and_no_gradient(model, stems):
    present = dict(zip(stems, jnp.array([[True, True], [False, False], [True, False]]), strict=True))
    name = list(stems)[1]
    encode = jax.jit(lambda images: model.encode(images, present))
    spoilt = {**stems, name: jnp.full_like(stems[name], 1e6)}
    assert np.array_equal(encode(spoilt), encode(stems))
    gradient = jax.grad(lambda images: jnp.square(encode(images)).sum())(stems)
    assert not gradient[name].any()
    assert gradient[next(iter(stems))].any()
    assert not gradient[list(stems)[2]][1].any() and gradient[list(stems)[2]][0].any()


def test_fusion_parameters_get_gradients(model, stems):
    graphdef, params = nnx.split(model)
    gradient = jax.grad(lambda p: jnp.square(nnx.merge(graphdef, p).encode(stems)[:, 0, :3]).sum())(params)
    fusion = nnx.to_pure_dict(gradient)["patch_embed"]["fusion"]
    assert {name: bool(jnp.abs(g).max() > 0) for name, g in fusion.items()} == dict.fromkeys(
        ("key", "query", "pool"), True
    )


def test_queries_through_the_key_projection_are_ordinary_cross_attention(model, stems):
    embed = model.patch_embed
    fusion = embed.fusion
    tokens = jnp.stack([getattr(embed, name)(image) for name, image in stems.items()], axis=1)
    values = embed.projection.value(tokens)
    keys = jnp.einsum("bmne,ehd->bmnhd", tokens, fusion.key[...])
    logits = jnp.einsum("qhd,bmnhd->bnqhm", fusion.query[...], keys) / np.sqrt(keys.shape[-1])
    expected = jnp.einsum("bnqhm,bmnhd->bnqhd", jax.nn.softmax(logits), values.reshape(keys.shape))
    result = fusion.attend(tokens, values, jnp.ones((2, 3), bool))
    np.testing.assert_allclose(result, expected.reshape(result.shape), atol=1e-5)


def test_raw_inputs_are_standardised_by_the_table(model, images):
    name = "S2L2A"
    mean, std = modality(name).statistics_for(model.statistics)
    raw = images[name] * std + mean
    np.testing.assert_allclose(model({name: raw}), model({name: images[name]}, normalised=True), atol=2e-4)


def test_l1c_takes_thirteen_raw_bands_and_drops_cirrus(model):
    raw = np.random.default_rng(1).uniform(0, 4000, (1, 64, 64, 13)).astype(np.float32)
    changed = raw.copy()
    changed[..., modality("S2L1C").band_index("B10")] = 9999
    assert np.array_equal(model({"S2L1C": raw}), model({"S2L1C": changed}))


def test_rgb_only_input_needs_a_fill_by_name(model):
    rgb = np.full((1, 64, 64, 3), 900.0, np.float32)
    bands = {"S2L2A": ["B04", "B03", "B02"]}
    assert model({"S2L2A": rgb}, bands=bands, fill="mean").shape == (1, NANO.width)
    with pytest.raises(ConfigError, match="fill="):
        model({"S2L2A": rgb}, bands=bands)


def test_upstream_compat_sends_l2a_through_the_l1c_stem(model, images):
    graphdef, _ = abstract(lambda rngs: TerraFM(NANO, rngs=rngs, upstream_compat=True))
    compat = nnx.merge(graphdef, nnx.split(model)[1])
    x = images["S2L2A"]
    assert np.array_equal(compat({"S2L2A": x}, normalised=True), model({"S2L1C": x}, normalised=True))
    assert not np.allclose(model({"S2L2A": x}, normalised=True), model({"S2L1C": x}, normalised=True), atol=1e-3)
    with pytest.raises(ConfigError, match="shares the stem"):
        compat({"S2L2A": x, "S2L1C": x}, normalised=True)


def test_feature_maps_and_other_sizes(model, images):
    wide = jnp.tile(images["S1RTC"], (1, 1, 2, 1))[:, : 3 * NANO.patch]
    maps = model.feature_maps({"S1RTC": wide}, blocks=(1, 3), normalised=True)
    assert [m.shape for m in maps] == [(2, 3, 8, NANO.width)] * 2
    assert len(model.feature_maps({"S1RTC": images["S1RTC"]}, normalised=True)) == 4


def test_positions_are_resampled_unless_the_square_grid_is_the_tables(model):
    table = model.positions[...]
    assert np.array_equal(model._positions(NANO.image, NANO.image), table)
    assert np.array_equal(model._positions(*2 * [NANO.image + NANO.patch - 1]), table)
    other = model._positions(NANO.image // 2, 2 * NANO.image)
    assert other.shape == table.shape and not np.allclose(other, table)


@pytest.mark.parametrize(
    "inputs, culprit", [({"DEM": 1}, "DEM"), ({}, "no input"), ({"S1RTC": 2, "S1GRD": 2}, "S1GRD")]
)
def test_inputs_that_do_not_fit_are_named(model, inputs, culprit):
    images = {name: np.zeros((1, 64, 64, channels), np.float32) for name, channels in inputs.items()}
    with pytest.raises(ConfigError, match=culprit):
        model(images)
