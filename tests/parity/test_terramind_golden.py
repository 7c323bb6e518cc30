"""TerraMind's backbone and encoder-decoder against outputs of the public PyTorch models, through the converter."""

import json
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from terra_jax import registry
from terra_jax.nn.initialisation import abstract
from terra_jax.terramind.packing import PackedInputs, PackedTargets
from terra_jax.terramind.streams import INPUTS, STREAMS
from terra_jax.weights.rules import Fixed, Rule, size_of, table
from terra_jax.weights.state import LazyTensor, as_bytes
from terra_jax.weights.transfer import export_state, import_params

BAR = 3e-5
SEED = 1
BASE = pytest.param("base", marks=pytest.mark.slow)
LARGE = pytest.param("large", marks=pytest.mark.slow)
NINE = [*INPUTS[:6], "LULC", "NDVI", "coords"]
V01 = ["S2L2A", "caption", "coords", "tok_S2L2A", "tok_S1GRD", "tok_DEM", "LULC"]

# One compiled program a model, not one an operation.
encode = jax.jit(lambda model, packed, pixels: model.encode(packed, pixels))
decode = jax.jit(lambda model, context, targets: model.decode(context, targets))


def part_of(name, **options):
    return registry.family(name).spec(name, **options).parts["model"]


def golden_state(name, named_weights, checksums=None):
    """The golden weights as a state dict that is drawn key by key."""
    part = part_of(name)

    def read(key, entry):
        fixed = isinstance(entry.row, Fixed)
        array = entry.row.value() if fixed else named_weights.named_weight(entry.twin or key, entry.shape, SEED)
        if checksums is not None:
            checksums[key] = zlib.crc32(as_bytes(array))
        return array

    return {
        key: LazyTensor(entry.shape, entry.dtype, partial(read, key, entry), alias=entry.twin or key)
        for key, entry in table(part.weights, part.template()).items()
    }


def model_of(name, params):
    graphdef, _ = abstract(registry.family(name).maker(name))
    return nnx.merge(graphdef, nnx.State(jax.tree.map(jnp.asarray, params)))


def assert_equal(tag, output, golden):
    values, points = np.asarray(golden["values"]), np.asarray(golden["points"])
    assert list(output.shape) == golden["shape"], tag
    error = np.abs(np.asarray(output).ravel()[points] - values).max()
    assert error <= BAR * np.sqrt(np.mean(values**2)), f"{tag}: {error}"


def channels_last(array):
    return jnp.asarray(np.moveaxis(array, 1, -1))


def load_golden(fixtures_dir, name):
    golden = json.loads((fixtures_dir / "golden" / f"{name}.json").read_text())
    assert golden["seed"] == SEED
    return golden


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_key_sets_and_shapes_equal_the_manifests(size, fixtures_dir):
    folder = fixtures_dir / "manifests" / "terramind"
    summary = json.loads((folder / "_summary.json").read_text())
    cases = [(f"terramind_v1_{size}_encdec", f"terramind_v1_{size}_encdec", {})]
    cases += [(f"terramind_v1_{size}", f"terramind_v1_{size}_no_tokenizer", {"modalities": NINE})]
    if size == "base":
        cases += [("terramind_v1_base", "terramind_v01_base_no_tokenizer", {"modalities": V01})]
    for name, manifest_name, options in cases:
        manifest = json.loads((folder / f"{manifest_name}.json").read_text())
        part = part_of(name, **options)
        entries = table(part.weights, part.template())
        assert {key: tuple(entry["shape"]) for key, entry in manifest.items()} == {
            key: entry.shape for key, entry in entries.items()
        }
        assert list(manifest) == list(entries)
        assert size_of(entries) == summary[manifest_name]["unique_params"]
        tied = sorted([entry.twin, key] for key, entry in entries.items() if entry.twin)
        assert tied == sorted(summary[manifest_name]["tied"])
        assert sum(isinstance(entry.row, Fixed) for entry in entries.values()) == summary[manifest_name]["buffers"]


@pytest.mark.parametrize("size", ["tiny", "small", BASE, LARGE])
def test_a_backbone_of_the_encoder_decoders_file_equals_the_public_one(size, fixtures_dir, named_weights):
    name = f"terramind_v1_{size}"
    golden, part = load_golden(fixtures_dir, name), part_of(name)
    params, report = import_params(part.weights, golden_state(f"{name}_encdec", named_weights), part.template())
    assert not report.fresh and "mask_token" in report.aside and "decoder_proj_context.bias" in report.aside
    model = model_of(name, params)
    del params
    images = {
        tag: channels_last(named_weights.named_input(tag, shape, SEED)) for tag, shape in golden["inputs"].items()
    }
    blocks = model(images, normalised=True)
    for tag, expected in golden["outputs"].items():
        assert_equal(tag, blocks[int(tag.removeprefix("layer_"))], expected)


@pytest.mark.parametrize("size", ["tiny", "small", BASE])
def test_masked_predictions_and_round_trip_equal_the_public_model(size, fixtures_dir, named_weights):
    name, checksums = f"terramind_v1_{size}_encdec", {}
    golden, part = load_golden(fixtures_dir, name), part_of(name)
    golden_weights = golden_state(name, named_weights, checksums)
    params, report = import_params(part.weights, golden_weights, part.template())
    assert not report.fresh and not report.aside
    predictions_equal_the_public_ones(model_of(name, params), golden, fixtures_dir, named_weights)
    state, report = export_state(part.weights, params)
    assert list(state) == list(golden_weights) and not report.left_out
    origins = {key: checksums[tensor.alias] for key, tensor in golden_weights.items()}
    changed = [key for key, tensor in state.items() if zlib.crc32(as_bytes(tensor.read())) != origins[key]]
    assert not changed


def predictions_equal_the_public_ones(model, golden, fixtures_dir, named_weights):
    masks = json.loads((fixtures_dir / "golden" / f"{golden_name(model)}.masks.json").read_text())
    by_key = {stream.key: stream.name for stream in STREAMS.values()}
    pixels = {
        by_key[tag]: channels_last(named_weights.named_input(tag, shape, SEED))
        for tag, shape in golden["inputs"].items()
    }
    seen = {by_key[key]: mask for key, mask in masks.items() if mask["visible"]}
    wanted = {by_key[key]: mask for key, mask in masks.items() if mask.get("target")}
    packed = PackedInputs(*packed_rows(seen, model.inputs, "visible"))
    stream, position, label = packed_rows(wanted, model.outputs, "target")
    targets = PackedTargets(stream, position, jnp.zeros_like(stream), label)

    context = encode(model, packed, pixels)
    assert_equal("encoder", context.encoded, golden["outputs"]["encoder"])
    decoded = decode(model, context, targets)
    counts = {name: len(mask["target"]) for name, mask in wanted.items()}
    weights = jnp.concatenate([jnp.full((2, count), 1 / (2 * count * len(counts))) for count in counts.values()], 1)
    loss, losses = jax.jit(lambda model, *rest: model.token_loss(*rest))(model, decoded, targets, weights)
    assert_equal("loss", loss[None], golden["outputs"]["loss"])
    begin = 0
    for name, count in counts.items():
        key, rows = STREAMS[name].key, slice(begin, begin + count)
        assert_equal(key, model.logits(decoded[:, rows], name), golden["outputs"][f"logits/{key}"])
        assert_equal(key, losses[:, rows].mean()[None], golden["outputs"][f"loss/{key}"])
        begin += count
    encode.clear_cache()
    decode.clear_cache()


def golden_name(model):
    sizes = {192: "tiny", 384: "small", 768: "base"}
    return f"terramind_v1_{sizes[model.variant.width]}_encdec"


def packed_rows(masks, names, which):
    """Streams, positions and tokens (2, n) of the masks' positions, one stream after another."""
    stream, position, token = [], [], []
    for name, mask in masks.items():
        places = np.asarray(mask[which])
        ids = np.asarray(mask["ids"])[:, places] if "ids" in mask else np.zeros((2, len(places)), int)
        stream.append(np.full(ids.shape, names.index(name)))
        position.append(np.broadcast_to(places, ids.shape))
        token.append(ids)
    return tuple(jnp.asarray(np.concatenate(parts, axis=1), jnp.int32) for parts in (stream, position, token))


@pytest.mark.parametrize("size", ["base", "large"])
def test_every_layout_rule_there_and_back_on_one_block(size, named_weights):
    name, few = f"terramind_v1_{size}_encdec", ["S2L2A", "tok_LULC", "coords"]
    options = {"depth": 1, "decoder_depth": 1, "inputs": few, "outputs": few[1:]}
    small, whole = part_of(name, **options), part_of(name)
    entries, all_entries = (table(p.weights, p.template()) for p in (small, whole))
    assert layouts(entries) == layouts(all_entries)
    arrays = {
        key: e.row.value() if isinstance(e.row, Fixed) else named_weights.named_weight(e.twin or key, e.shape, SEED)
        for key, e in entries.items()
    }
    state = {key: LazyTensor.of(array) for key, array in arrays.items()}
    params, _ = import_params(small.weights, state, small.template())
    back, _ = export_state(small.weights, params)
    assert all(back[key].read().tobytes() == array.tobytes() for key, array in arrays.items())


def layouts(entries):
    return {(type(e.row), e.row.layout if isinstance(e.row, Rule) else None) for e in entries.values()}
