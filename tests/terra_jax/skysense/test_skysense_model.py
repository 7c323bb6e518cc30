"""The whole SkySense: subsets, masks, dates, bands, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_skysense import DAYS, TINY, random_images, random_skysense

from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import abstract
from terra_jax.skysense.fusion import Fusion
from terra_jax.skysense.inputs import input_bands
from terra_jax.skysense.model import SkySense, drop_absent
from terra_jax.skysense.variants import PARTS, WHOLE, FusionSize

IMAGES = random_images()
CLOSE = {"atol": 2e-5}


@pytest.fixture(scope="module")
def model():
    return random_skysense()


@pytest.fixture(scope="module")
def features(model):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda s: nnx.merge(graphdef, s).aligned(IMAGES, normalised=True))(state)


@pytest.fixture(scope="module")
def fuse(model):
    graphdef, state = nnx.split(model)
    fused = jax.jit(lambda s, *a: nnx.merge(graphdef, s).fuse(*a))
    return lambda *arguments: fused(state, *arguments)


def test_features_lie_on_the_sentinel_2_grid(features, fuse):
    frames = {"HR": 1, "S2L2A": 3, "S1GRD": 2}
    assert {name: f.shape for name, f in features.items()} == {n: (2, t, 8, 8, 16) for n, t in frames.items()}
    assert fuse(features, DAYS).shape == (2, 8, 8, 12)


@pytest.mark.parametrize("names", [("HR",), ("S2L2A",), ("S1GRD", "HR"), ("S2L2A", "S1GRD")])
def test_a_subset_equals_a_mask_that_leaves_it(names, features, fuse):
    chosen = {name: features[name] for name in names}
    present = {name: jnp.full(f.shape[:2], name in names) for name, f in features.items()}
    np.testing.assert_allclose(fuse(chosen, DAYS), fuse(features, DAYS, present), **CLOSE)


def test_masked_frames_have_no_influence_and_no_gradient(model):
    """Not even if they hold no data."""
    graphdef, state = nnx.split(model)
    present = {
        "HR": jnp.array([[True], [False]]),
        "S2L2A": jnp.array([[True, False, True], [False, False, True]]),
        "S1GRD": jnp.array([[False, True], [True, True]]),
    }

    @jax.jit
    def value_and_gradients(state, images):
        def loss(state, images):
            return jnp.square(nnx.merge(graphdef, state)(images, DAYS, present, normalised=True)).sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(state, images)

    spoilt = {
        name: jnp.where(present[name].reshape(present[name].shape[:1] if name == "HR" else present[name].shape)[
            (...,) + (None,) * 3
        ], image, jnp.nan)
        for name, image in IMAGES.items()
    }  # fmt: skip
    value, (of_state, of_images) = value_and_gradients(state, IMAGES)
    other, (of_state_too, of_spoilt) = value_and_gradients(state, spoilt)
    np.testing.assert_array_equal(value, other)
    jax.tree.map(np.testing.assert_array_equal, of_state, of_state_too)
    for name, gradient in of_spoilt.items():
        hidden = ~present[name][:, 0] if name == "HR" else ~present[name]
        assert not np.asarray(gradient)[np.asarray(hidden)].any() and np.asarray(gradient).any()
        np.testing.assert_array_equal(gradient, of_images[name])


def test_frames_carry_dates_and_no_order(features, fuse):
    turned = {name: f[:, ::-1] for name, f in features.items()}
    days = {name: d[:, ::-1] for name, d in DAYS.items()}
    np.testing.assert_allclose(fuse(turned, days), fuse(features, DAYS), **CLOSE)
    assert np.abs(fuse(turned, DAYS) - fuse(features, DAYS)).max() > 1e-4


def test_leap_years_last_day_is_the_day_before(features, fuse):
    eve = {name: jnp.where(d == 365, 364, d) for name, d in DAYS.items()}
    np.testing.assert_array_equal(fuse(features, eve), fuse(features, DAYS))


@pytest.mark.parametrize(("option", "dated"), [("all", ("S2L2A", "S1GRD", "HR")), ("s2", ("S2L2A",)), ("none", ())])
def test_whose_dates_matter_is_an_option(option, dated, features):
    model = random_skysense(date_positions=option)
    graphdef, state = nnx.split(model)
    fuse = jax.jit(lambda days: nnx.merge(graphdef, state).fuse(features, days))
    days = {**DAYS, "HR": jnp.array([[7], [8]])}
    for name in features:
        other = {**days, name: (days[name] + 50) % 365}
        assert (np.abs(fuse(other) - fuse(days)).max() > 1e-4) == (name in dated), name
    assert ("dates" in abstract(lambda r: SkySense(TINY, rngs=r, date_positions=option))[1]["s2"]) == bool(dated)


def test_short_series_are_as_good_as_padded_ones(model, features, fuse):
    present = {
        "HR": np.array([[True], [True]]),
        "S2L2A": np.array([[False, True, False], [True, False, True]]),
        "S1GRD": np.zeros((2, 2), bool),
    }
    days = jax.tree.map(np.asarray, DAYS)
    short, dates, seen = drop_absent(jax.tree.map(np.asarray, features), days, present)
    assert {name: f.shape[1] for name, f in short.items()} == {"HR": 1, "S2L2A": 2}
    np.testing.assert_allclose(fuse(short, dates, seen), fuse(features, DAYS, present), **CLOSE)
    longer, _, _ = drop_absent(jax.tree.map(np.asarray, features), days, present, multiple=4)
    assert longer["S2L2A"].shape[1] == 3


def test_bands_are_chosen_by_name(model):
    image = IMAGES["S2L2A"] * 1000 + 2000
    names = list(input_bands("S2L2A"))
    assert len(names) == 10 and "B01" not in names and "B09" not in names
    aligned = jax.jit(lambda x, **k: model.aligned({"S2L2A": x}, **k)["S2L2A"], static_argnames=("bands", "fill"))

    class Named(dict):
        __hash__ = object.__hash__

    whole = aligned(image)
    np.testing.assert_allclose(aligned(image[..., ::-1], bands=Named(S2L2A=names[::-1])), whole, **CLOSE)
    without = aligned(image[..., 1:], bands=Named(S2L2A=names[1:]), fill="copy:B03")
    copied = aligned(image.at[..., 0].set(image[..., 1]))
    np.testing.assert_allclose(without, copied, **CLOSE)
    with pytest.raises(ConfigError, match="S2L2A lacks B02"):
        model.aligned({"S2L2A": image[..., 1:]}, bands={"S2L2A": names[1:]})


@pytest.mark.parametrize(
    ("change", "days", "complaint"),
    [
        ({}, None, 'S2L2A has no dates; give days={"S2L2A"'),
        ({}, {"S2L2A": DAYS["S2L2A"]}, "S1GRD has no dates"),
        ({"HR": IMAGES["HR"][:, :128]}, DAYS, "HR is 128 x 256 pixels; give 32 along each.*here 256 x 256"),
        ({"S1GRD": IMAGES["S1GRD"][:, :, :4]}, DAYS, "S2L2A is 8 x 8 pixels and S1GRD 4 x 8"),
        ({"S2L2A": IMAGES["S2L2A"][:, 0]}, DAYS, r"S2L2A has shape \(2, 8, 8, 10\); give \(batch, frames"),
        ({"DEM": IMAGES["HR"]}, DAYS, "SkySense takes HR, S2L2A, S1GRD, not DEM"),
        ({"S2L2A": IMAGES["S2L2A"][..., :4]}, DAYS, "S2L2A has 4 channels but 10 band names"),
    ],
)
def test_mistakes_are_named(change, days, complaint, model):
    with pytest.raises(ConfigError, match=complaint):
        model({**IMAGES, **change}, days, normalised=True)


def test_more_mistakes(model):
    with pytest.raises(ConfigError, match="no input given"):
        model({})
    with pytest.raises(ConfigError, match="so multiples of 32"):
        model({"HR": jnp.zeros((1, 250, 256, 3))})
    with pytest.raises(ConfigError, match="multiples of 4"):
        model({"S1GRD": jnp.zeros((1, 1, 6, 8, 2))}, {"S1GRD": jnp.zeros((1, 1), int)})
    with pytest.raises(ConfigError, match="unknown date_positions 'both'"):
        random_skysense(date_positions="both")
    with pytest.raises(ConfigError, match="unknown layout 'torch'"):
        random_skysense(layout="torch")


def test_drop_path_leaves_the_attention_of_series_alone():
    """With every MLP of the last block dropped, only scaling by 1 / (1 - rate) of the others could tell."""
    fusion = random_skysense(drop_path=0.5).fusion
    tokens = jnp.asarray(np.random.default_rng(0).standard_normal((64, 4, 12), np.float32))
    calm, wild = fusion.fuse(tokens), fusion.fuse(tokens, key=jax.random.key(0))
    assert np.abs(wild - calm).max() > 1e-3
    np.testing.assert_array_equal(wild, fusion.fuse(tokens, key=jax.random.key(0)))
    assert not fusion.readout.drop_attention and not fusion.blocks.blocks.drop_attention


def test_norm_epsilons(model):
    assert model.s2.blocks.blocks.norm1.eps == model.fusion.readout.norm2.eps == 1e-5
    assert model.hr.stage0.last.norm1.eps == model.hr.norm1.eps == model.hr.stage1.merging.norm.eps == 1e-5
    assert random_skysense(eps=1e-6).s1.blocks.blocks.norm2.eps == 1e-6


def test_the_fusion_of_one_layer_reads_it_out():
    size = FusionSize(inputs=6, width=8, depth=1, heads=2)
    assert "blocks" not in abstract(lambda r: Fusion(size, rngs=r))[1]


def test_every_parameter_has_named_axes(model):
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        assert len(variable.get_metadata()["axes"]) == variable[...].ndim, path


def test_whole_models_hold_the_parts_of_the_public_files():
    for size in WHOLE.values():
        assert size.hr.stride == 32
    _, template = abstract(lambda r: SkySense(TINY, rngs=r))
    assert set(template) == set(PARTS)
