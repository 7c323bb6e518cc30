"""The encoder-decoder: what a token may see, what has no influence, how it begins."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx
from small_terramind import (
    GATED,
    INPUTS,
    OUTPUTS,
    PLAIN,
    packed_inputs,
    packed_targets,
    random_pixels,
    small_encoder_decoder,
)

from data_pipelines.modalities import modality
from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import initialise
from terra_jax.terramind.model import EncoderDecoder

SEEN = {"S2L2A": [0, 5, 9], "S1GRD": [5, 15], "tok_LULC": [(2, 11), (3, 4000)], "coords": [203, 1500, 3]}
WANTED = {"tok_LULC": [(0, 7), (6, 8), (7, 4374)], "tok_NDVI": [(0, 1), (15, 15359)], "coords": [(5, 400), (400, 6)]}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def model():
    return small_encoder_decoder()


@pytest.fixture(scope="module")
def pixels():
    return random_pixels(["S2L2A", "S1GRD"])


@jax.jit
def run(model, packed, pixels, targets):
    context = model.encode(packed, pixels)
    return context, model.decode(context, targets)


@pytest.fixture(scope="module")
def outcome(model, pixels):
    return run(model, packed_inputs(INPUTS, SEEN), pixels, packed_targets(OUTPUTS, WANTED))


def assert_close(a, b):
    np.testing.assert_allclose(a, b, atol=3e-5)


def permuted(packed, order):
    return jax.tree.map(lambda leaf: leaf[:, order], packed)


def test_the_order_of_slots_is_irrelevant(model, pixels, outcome):
    rng = np.random.default_rng(1)
    inputs, targets = rng.permutation(10), rng.permutation(7)
    context, decoded = run(
        model,
        permuted(packed_inputs(INPUTS, SEEN), inputs),
        pixels,
        permuted(packed_targets(OUTPUTS, WANTED), targets),
    )
    assert_close(context.encoded, outcome[0].encoded[:, inputs])
    assert_close(context.tokens, outcome[0].tokens[:, inputs])
    assert_close(decoded, outcome[1][:, targets])


def test_empty_slots_have_no_influence(model, pixels, outcome):
    packed, targets = packed_inputs(INPUTS, SEEN, padding=5), packed_targets(OUTPUTS, WANTED, padding=4)
    context, decoded = run(model, packed, pixels, targets)
    assert np.array_equal(context.valid, np.arange(15)[None] < np.array([[10], [10]]))
    assert_close(context.encoded[:, :10], outcome[0].encoded)
    assert_close(decoded[:, :7], outcome[1])
    weights = jnp.ones((2, 11))
    assert not model.token_loss(decoded, targets, weights)[1][:, 7:].any()


def test_streams_that_are_not_there_get_no_gradient(model, pixels):
    seen = {name: SEEN[name] for name in ("S2L2A", "coords")}
    packed, targets = (
        packed_inputs(INPUTS, seen, padding=3),
        packed_targets(OUTPUTS, {"tok_LULC": WANTED["tok_LULC"]}, 3),
    )
    graphdef, params = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradient(params):
        model = nnx.merge(graphdef, params)
        context = model.encode(packed, pixels)
        return model.token_loss(model.decode(context, targets), targets, jnp.ones((2, 6)))[0]

    found = nnx.to_pure_dict(gradient(params))
    streams, tables = found["encoder"]["embeddings"], found["decoder"]["tables"]
    for name in ("S1GRD", "tok_LULC"):
        held = {part: np.abs(leaf).max() for part, leaf in streams[name].items()}
        # The vector of LULC is shared with the decoder, which does give LULC.
        assert held.pop("modality") > 0 if name == "tok_LULC" else not held.pop("modality")
        assert not any(held.values()), name
    assert np.abs(streams["S2L2A"]["kernel"]).max() > 0
    rows = np.flatnonzero(np.abs(streams["coords"]["table"]).max(1))
    assert rows.tolist() == [3, 203, 1500]
    assert not tables["tok_NDVI"].any() and not tables["coords"].any() and np.abs(tables["tok_LULC"]).max() > 0
    assert not found["decoder"]["modalities"]["tok_NDVI"].any()


def test_pixels_that_are_not_given_make_empty_slots(model, pixels, outcome):
    targets = packed_targets(OUTPUTS, WANTED)
    without = {name: slots for name, slots in SEEN.items() if name != "S1GRD"}
    given = {"S2L2A": pixels["S2L2A"]}
    _, decoded = run(model, packed_inputs(INPUTS, SEEN), given, targets)
    _, expected = run(model, packed_inputs(INPUTS, without), given, targets)
    assert_close(decoded, expected)
    assert np.abs(decoded - outcome[1]).max() > 1e-3


def test_only_kept_patches_matter(model, pixels, outcome):
    image = np.asarray(pixels["S2L2A"]).copy()
    image[:, :4, 4:8] = np.nan  # patch 1, which nobody asked for
    spoilt, _ = run(
        model, packed_inputs(INPUTS, SEEN), {**pixels, "S2L2A": jnp.asarray(image)}, packed_targets(OUTPUTS, WANTED)
    )
    assert_close(spoilt.encoded, outcome[0].encoded)


def test_targets_see_their_own_stream_only(model, pixels, outcome):
    packed = packed_inputs(INPUTS, SEEN)
    changed = {**WANTED, "tok_LULC": [(0, 7), (9, 8), (7, 4374)], "coords": [(5, 400), (401, 6)]}
    _, decoded = run(model, packed, pixels, packed_targets(OUTPUTS, changed))
    moved = np.abs(decoded - outcome[1]).max((0, 2)) > 1e-4
    # All three of LULC, none of NDVI; of the sequence the second alone, for the first cannot look ahead.
    assert moved.tolist() == [True, True, True, False, False, False, True]


def test_no_context_at_all_is_allowed(model, pixels):
    targets = packed_targets(OUTPUTS, WANTED)
    _, empty = run(model, packed_inputs(INPUTS, {}, padding=4), pixels, targets)
    _, emptier = run(model, packed_inputs(INPUTS, {}, padding=2), {}, targets)
    assert np.isfinite(empty).all()
    assert_close(empty, emptier)


def test_positions_beyond_the_longest_sequence_are_the_first(model, pixels):
    packed = packed_inputs(INPUTS, SEEN)
    targets = packed_targets(OUTPUTS, {"coords": [(5, 400)]})
    at = lambda p: run(model, packed, pixels, dataclasses.replace(targets, position=jnp.full((2, 1), p)))[1]  # noqa: E731
    assert np.array_equal(at(4), at(0)) and not np.allclose(at(3), at(0), atol=1e-4)


def test_losses_are_those_of_the_logits(model, outcome):
    targets, decoded = packed_targets(OUTPUTS, WANTED), outcome[1]
    weights = jnp.asarray(np.random.default_rng(0).random((2, 7)), jnp.float32)
    total, losses = jax.jit(lambda model, *rest: model.token_loss(*rest))(model, decoded, targets, weights)
    for i in range(7):
        scores = model.logits(decoded[:, i], OUTPUTS[int(targets.stream[0, i])])
        expected = -jax.nn.log_softmax(scores)[:, int(targets.label[0, i])]
        np.testing.assert_allclose(losses[:, i], expected, rtol=1e-5)
    np.testing.assert_allclose(total, (losses * weights).sum(), rtol=1e-5)
    assert total.dtype == losses.dtype == scores.dtype == jnp.float32


def test_bfloat16_computes_near_float32(pixels, outcome):
    context, decoded = run(
        small_encoder_decoder(dtype=jnp.bfloat16), packed_inputs(INPUTS, SEEN), pixels, packed_targets(OUTPUTS, WANTED)
    )
    assert decoded.dtype == context.encoded.dtype == jnp.bfloat16
    np.testing.assert_allclose(decoded.astype(jnp.float32), outcome[1], atol=0.1)


def test_drop_path_needs_a_key(pixels):
    model = small_encoder_decoder(PLAIN, drop_path=0.9)
    packed, targets = packed_inputs(INPUTS, SEEN), packed_targets(OUTPUTS, WANTED)
    draw = jax.jit(lambda key: model.decode(model.encode(packed, pixels, key=key), targets, key=key))
    assert np.array_equal(draw(jax.random.key(0)), draw(jax.random.key(0)))
    assert not np.array_equal(draw(jax.random.key(0)), draw(jax.random.key(1)))


def test_parameters_begin_as_published():
    model = initialise(lambda rngs: EncoderDecoder(GATED, rngs=rngs, inputs=INPUTS, outputs=OUTPUTS))
    encoder, decoder = model.encoder, model.decoder
    block, hidden, width = encoder.blocks.blocks, GATED.hidden, GATED.width
    assert encoder.norm.eps == block.norm1.eps == decoder.blocks.blocks.context_norm.eps == 1e-6
    assert encoder.norm.bias is block.norm2.bias is decoder.norm.bias is None
    bounds = {
        width + width: (block.attention.qkv, block.attention.out, decoder.blocks.blocks.cross.kv, decoder.project),
        width + hidden: (block.mlp.gate, block.mlp.up, block.mlp.down),
    }
    for fans, layers in bounds.items():
        for layer in layers:
            assert 0.9 < np.abs(layer.kernel[...]).max() / np.sqrt(6 / fans) <= 1
    kernel = encoder.embeddings["S2L2A"].kernel[...]
    assert 0.9 < np.abs(kernel).max() / np.sqrt(6 / (12 * 16 + width)) <= 1
    assert np.isclose(np.std(decoder.tables["tok_LULC"][...]), np.sqrt(2 / (4375 + width)), rtol=0.02)
    assert np.isclose(np.std(encoder.embeddings["tok_LULC"].table[...]), 0.02, rtol=0.02)
    assert block.attention.qkv.bias is None and not decoder.project.bias[...].any()
    assert decoder.tables["coords"].get_metadata()["axes"] == ("vocabulary", "embed")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": ("S2L2A", "S2L1B")}, "no stream 'S2L1B' here; did you mean S2L1C"),
        ({"outputs": ("S2L2A",)}, "no stream 'S2L2A' here; did you mean tok_S2L2A"),
        ({"inputs": ("DEM", "DEM")}, "DEM is named twice"),
        ({"bands": {"S1RTC": ["VV"]}}, "bands of 'S1RTC', which is no input; did you mean S1GRD"),
        ({"bands": {"tok_LULC": ["VV"]}}, "bands of tok_LULC cannot be chosen"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        small_encoder_decoder(**options)


def test_bad_images_are_named(model, pixels):
    packed, image = packed_inputs(INPUTS, SEEN), pixels["S2L2A"]
    for given, message in (
        ({"S2L2A": image[:, :15]}, "S2L2A of 15 x 16 pixels is not made of whole patches; .* multiples of 4"),
        ({**pixels, "S1GRD": pixels["S1GRD"][:, :8]}, "2 x 4, 4 x 4 patches do not lie on one grid"),
        ({"DEM": image}, "takes no pixels of 'DEM'; did you mean S"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.encode(packed, given)
    with pytest.raises(ConfigError, match="gives no 'tok_DEM'; did you mean tok_"):
        model.logits(jnp.zeros(16), "tok_DEM")
    with pytest.raises(ConfigError, match="takes no pixels of 'tok_LULC'"):
        model.standardise({"tok_LULC": image})


def test_raw_images_are_standardised(model):
    mean, std = modality("S2L2A").statistics_for("terramind_v1")
    raw = mean + std * np.asarray([2.0], np.float32)
    found = model.standardise({"S2L2A": np.broadcast_to(raw, (1, 4, 4, 12))})
    np.testing.assert_allclose(found["S2L2A"], 2, rtol=1e-4)
    some = model.standardise({"S2L2A": np.broadcast_to(raw[3:4], (1, 4, 4, 1))}, bands={"S2L2A": ["red"]}, fill="mean")
    np.testing.assert_allclose(some["S2L2A"][0, 0, 0], 2 * (np.arange(12) == 3), atol=1e-4)
