"""TerraFM against outputs of the public PyTorch model, weights through the project's own converter."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from terra_jax.nn.initialisation import abstract
from terra_jax.terrafm.model import TerraFM
from terra_jax.terrafm.torch_weights import weight_map
from terra_jax.terrafm.variants import VARIANTS
from terra_jax.weights.rules import torch_shapes
from terra_jax.weights.state import LazyTensor
from terra_jax.weights.transfer import export_state, import_params

BAR = 3e-5
MODALITY = {"s1": "S1RTC", "l1c": "S2L1C", "s2_l1c": "S2L1C", "l2a": "S2L2A", "s2_l2a": "S2L2A"}

SIZES = ["terrafm_base", pytest.param("terrafm_large", marks=pytest.mark.slow)]


@pytest.fixture(params=SIZES)
def name(request):
    return request.param


def _template(name):
    return abstract(lambda rngs: TerraFM(VARIANTS[name], rngs=rngs))


embed = nnx.jit(partial(TerraFM.__call__, normalised=True))
encode = nnx.jit(TerraFM.encode)


def _fresh(template):
    return lambda: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)


def _load(name, arrays):
    graphdef, template = _template(name)
    state = {key: LazyTensor(a.shape, a.dtype, lambda a=a: a) for key, a in arrays.items()}
    params, _ = import_params(weight_map(VARIANTS[name]), state, template, _fresh(template))
    return nnx.merge(graphdef, nnx.State(jax.tree.map(jnp.asarray, params))), params


def _manifest(fixtures_dir, name):
    return json.loads((fixtures_dir / "manifests" / "terrafm" / f"{name}.json").read_text())


def _channels_last(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def test_key_sets_and_shapes_equal_the_manifest(name, fixtures_dir):
    manifest = _manifest(fixtures_dir, name)
    shapes = torch_shapes(weight_map(VARIANTS[name]), _template(name)[1])
    assert {key: tuple(entry["shape"]) for key, entry in manifest.items()} == shapes
    assert list(manifest) == list(shapes)


def test_outputs_equal_the_public_model(name, fixtures_dir, named_weights):
    golden = json.loads((fixtures_dir / "golden" / f"{name}.json").read_text())
    seed, checked = golden["seed"], []
    arrays = {
        key: named_weights.named_weight(key, entry["shape"], seed)
        for key, entry in _manifest(fixtures_dir, name).items()
    }
    model, _ = _load(name, arrays)
    for tag, shape in golden["inputs"].items():
        image = _channels_last(named_weights.named_input(tag, shape, seed))
        inputs = {MODALITY[tag.removesuffix("_96")]: image}
        outputs = {tag: embed(model, inputs)}
        blocks = sorted(int(key.rsplit("_", 1)[1]) for key in golden["outputs"] if key.startswith(f"{tag}/feature_"))
        if blocks:
            maps = nnx.jit(partial(TerraFM.feature_maps, blocks=blocks, normalised=True))(model, inputs)
            outputs |= {f"{tag}/feature_{i}": jnp.moveaxis(m, -1, 1) for i, m in zip(blocks, maps, strict=True)}
        for key, output in outputs.items():
            expected = golden["outputs"][key]
            values, points = np.asarray(expected["values"]), np.asarray(expected["points"])
            assert list(output.shape) == expected["shape"]
            error = np.abs(np.asarray(output).ravel()[points] - values).max()
            assert error <= BAR * np.sqrt(np.mean(values**2)), key
            checked.append(key)
    assert sorted(checked) == sorted(golden["outputs"])


def test_outputs_equal_the_hash_filled_model(name, fixtures_dir):
    golden = json.loads((fixtures_dir / "golden" / "terrafm_hashfill.json").read_text())[name]
    shapes = {key: entry["shape"] for key, entry in _manifest(fixtures_dir, name).items()}
    model, _ = _load(name, {key: _hash_weight(key, shapes[key], i) for i, key in enumerate(sorted(shapes), 1)})
    for tag, expected in golden.items():
        shape = expected["in"]
        image = _channels_last((3 * _hash(np.prod(shape), 1000 + shape[1])).astype(np.float32).reshape(shape))
        images = model.prepare({MODALITY[tag.split("_")[0]]: image}, normalised=True)
        tokens = np.asarray(encode(model, images))[0]
        ((stem, normed),) = images.items()
        stem_tokens = model.patch_embed({stem: normed[:, :16, :16]})
        figures = {
            "cls_first8": tokens[0, :8],
            "cls_l2": np.linalg.norm(tokens[0]),
            "cls_mean": tokens[0].mean(),
            "patch_mean_abs": np.abs(tokens[1:]).mean(),
            "patch_tok0_first4": tokens[1, :4],
            "stem_tok0_first4": np.asarray(stem_tokens)[0, 0, :4],
        }
        assert [1, *tokens[1:].shape] == expected["patch_tokens"]
        for figure, value in figures.items():
            np.testing.assert_allclose(value, expected[figure], atol=3e-5, err_msg=f"{tag}: {figure}")


def test_there_and_back_is_bit_identical(fixtures_dir, named_weights):
    name = "terrafm_base"
    arrays = {
        key: named_weights.named_weight(key, entry["shape"], 1) for key, entry in _manifest(fixtures_dir, name).items()
    }
    _, params = _load(name, arrays)
    state, report = export_state(weight_map(VARIANTS[name]), params)
    assert list(state) == list(arrays)
    assert all(state[key].read().tobytes() == array.tobytes() for key, array in arrays.items())
    assert set(report.left_out) == {f"patch_embed.fusion.{part}" for part in ("key", "query", "pool")}


def _hash(count, salt):
    mask = np.uint64(0xFFFFFFFF)
    x = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(salt * 40503 + 12345)) & mask
    for shift, factor in ((15, 2246822519), (13, 3266489917)):
        x = ((x ^ (x >> np.uint64(shift))) * np.uint64(factor)) & mask
    return (x ^ (x >> np.uint64(16))).astype(np.float64) / 2**32 - 0.5


def _hash_weight(key, shape, salt):
    v = _hash(np.prod(shape), salt).reshape(shape)
    if "norm" in key and key.endswith("weight"):
        v = 1 + 0.2 * v
    elif key in ("cls_token", "pos_embed") or key.endswith("_embed"):
        v = 0.2 * v
    elif len(shape) == 1:
        v = 0.1 * v
    else:
        v = v * 1.4 * np.sqrt(3 / np.prod(shape[1:]))
    return v.astype(np.float32)
