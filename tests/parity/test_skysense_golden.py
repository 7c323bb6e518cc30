"""SkySense against outputs of the public PyTorch modules, weights through the project's own converter."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from terra_jax import registry
from terra_jax.errors import WeightsError
from terra_jax.nn.initialisation import abstract
from terra_jax.nn.swin import SwinSize
from terra_jax.skysense.encoders import HREncoder, SeriesEncoder
from terra_jax.skysense.family import maker, spec
from terra_jax.skysense.fusion import Fusion, UpHead
from terra_jax.skysense.variants import PART_MODELS, FusionSize, SeriesSize, part_size
from terra_jax.weights.state import LazyTensor
from terra_jax.weights.transfer import export_state, import_params

BAR = 3e-5
SMALL = SwinSize((16, 32, 64, 128), (2, 2, 4, 2), (1, 2, 4, 8), (4, 4, 4, 4), extra_norm=2)


def load(make, arrays):
    """The module with these PyTorch arrays, its parameters and the account of the import."""
    graphdef, template = abstract(make)
    model = nnx.merge(graphdef, nnx.State(template))
    state = {key: LazyTensor(array.shape, array.dtype, partial(np.array, array)) for key, array in arrays.items()}
    fresh = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)  # noqa: E731
    params, report = import_params(model.weight_map, state, template, fresh)
    return nnx.merge(graphdef, nnx.State(jax.tree.map(jnp.asarray, params))), params, report


def manifest(fixtures_dir, name):
    return json.loads((fixtures_dir / "manifests" / "skysense" / f"{name}.json").read_text())


def channels_last(array):
    return jnp.moveaxis(jnp.asarray(array), 1, -1)


def assert_close(ours, golden, what=""):
    error = np.abs(np.asarray(ours) - golden).max()
    assert error <= BAR * np.sqrt(np.mean(np.square(golden))), what


class Small:
    """One of the small configurations, with its weights, inputs and outputs."""

    def __init__(self, fixtures_dir, name):
        archive = np.load(fixtures_dir / "golden" / "skysense" / f"{name}.npz")
        self.config = json.loads(str(archive["cfg"]))
        groups = {"w": {}, "in": {}, "out": {}}
        for key in archive.files:
            group, _, rest = key.partition("/")
            if group in groups:
                groups[group][rest] = archive[key]
        self.weights, self.inputs, self.outputs = groups.values()


@pytest.mark.parametrize(("name", "pad"), [("hr_swinv2_nopad", False), ("hr_swinv2_pad", True)])
def test_small_hr_encoder(fixtures_dir, name, pad):
    small = Small(fixtures_dir, name)
    assert small.config["pad_small_map"] is pad and small.config["arch"]["depths"] == list(SMALL.depths)
    model, _, _ = load(lambda r: HREncoder(SMALL, rngs=r, pad_small_map=pad), small.weights)
    maps = jax.jit(lambda image: model.feature_maps({"HR": image}, normalised=True))(channels_last(small.inputs["img"]))
    assert len(maps) == len(small.outputs) == 4
    for i, ours in enumerate(maps):
        assert_close(jnp.moveaxis(ours, -1, 1), small.outputs[f"f{i}"])


@pytest.mark.parametrize("cls", [False, True])
def test_small_series_encoder(fixtures_dir, cls):
    small = Small(fixtures_dir, f"vit_s2_cls{cls:d}")
    size = SeriesSize("S2L2A", width=32, depth=3, heads=2, aligned=8, image=32)
    model, _, _ = load(lambda r: SeriesEncoder(size, rngs=r, class_token=cls), small.weights)
    for tag, prefix in (("img", "f"), ("img_resized", "r")):
        inputs = {"S2L2A": channels_last(small.inputs[tag])}
        maps = model.feature_maps(inputs, blocks=small.config["out_indices"], normalised=True)
        for i, ours in enumerate(maps):
            assert_close(jnp.moveaxis(ours, -1, 1), small.outputs[f"{prefix}{i}"], tag)
        np.testing.assert_array_equal(model(inputs, normalised=True), maps[-1])


def test_small_head(fixtures_dir):
    small = Small(fixtures_dir, "uphead")
    size = SeriesSize("S2L2A", width=small.config["in_dim"], aligned=small.config["out_dim"])
    model, _, _ = load(lambda r: UpHead(size, rngs=r), small.weights)
    assert_close(jnp.moveaxis(model(channels_last(small.inputs["x"])), -1, 1), small.outputs["y"])


def test_small_fusion(fixtures_dir):
    small = Small(fixtures_dir, "fusion")
    size = FusionSize(inputs=24, width=16, depth=2, heads=2)
    model, _, _ = load(lambda r: Fusion(size, rngs=r), small.weights)
    frames = jnp.asarray(small.inputs["seq"])
    assert_close(model(frames), small.outputs["cls"])
    longer = jnp.concatenate([frames, jnp.full_like(frames, 1e3)], axis=1)
    present = jnp.arange(longer.shape[1])[None] < frames.shape[1]
    masked = model(longer, jnp.broadcast_to(present, longer.shape[:2]))
    assert_close(masked, small.outputs["cls"], "frames that are not present")


@pytest.mark.parametrize("name", PART_MODELS)
def test_key_sets_and_shapes_equal_the_manifest(name, fixtures_dir):
    expected = {key: tuple(entry["shape"]) for key, entry in manifest(fixtures_dir, name).items()}
    shapes = registry.state_dict_shapes(name)
    assert shapes == expected
    assert list(shapes) == list(expected)


def test_public_layouts_are_those_of_the_released_files(fixtures_dir):
    extras = manifest(fixtures_dir, "skysense_extras_inferred")
    whole = manifest(fixtures_dir, "skysense_backbone_hr")
    absent = set(extras["skysense_backbone_hr.pth (probably absent)"])
    hr = {key for key, entry in whole.items() if entry["kind"] == "param"} - absent
    assert len(hr) == 429
    shapes = registry.state_dict_shapes("skysense_backbone_hr", layout="public")
    assert set(shapes) == hr | {"mask_token"}
    assert list(shapes["mask_token"]) == extras["skysense_backbone_hr.pth (extra)"]["mask_token"]["shape"]

    shapes = registry.state_dict_shapes("skysense_backbone_s2", layout="public")
    assert set(shapes) == set(manifest(fixtures_dir, "skysense_backbone_s2")) | {"ctpe"}
    assert list(shapes["ctpe"]) == extras["skysense_backbone_s2.pth (extra)"]["ctpe"]["shape"]


def test_the_public_parts_have_1658_million_parameters(fixtures_dir):
    summary = manifest(fixtures_dir, "_summary")
    counts = {name: summary[name]["params"] for name in PART_MODELS}
    listed = registry.list_models()
    assert {name: listed[name] for name in PART_MODELS} == counts
    assert listed["skysense_huge"] == sum(counts[name] for name in counts if name.startswith("skysense_"))
    assert listed["skysense_huge"] == 1_657_985_232


def points(ours, expected):
    """Our values at the golden points, and those."""
    assert list(ours.shape) == expected["shape"]
    return np.asarray(ours).ravel()[np.asarray(expected["points"])], np.asarray(expected["values"])


class Giant:
    """A golden of full size: named weights, named inputs, expected points."""

    def __init__(self, fixtures_dir, named_weights, golden, name):
        self.golden = json.loads((fixtures_dir / "golden" / f"skysense_{golden}.json").read_text())
        self.seed, self.named = self.golden["seed"], named_weights
        self.arrays = {
            key: named_weights.named_weight(key, entry["shape"], self.seed)
            for key, entry in manifest(fixtures_dir, name).items()
            if entry["kind"] == "param"
        }
        self.name = name
        self.left = set(self.golden["outputs"])

    def model(self, **options):
        model, _, _ = load(maker(self.name, **options), self.arrays)
        return model

    def input(self, tag):
        return self.named.named_input(tag, self.golden["inputs"][tag], self.seed)

    def check(self, key, ours):
        assert_close(*points(ours, self.golden["outputs"][key]), key)
        self.left.remove(key)


@pytest.mark.slow
def test_hr_encoder_of_full_size(fixtures_dir, named_weights):
    giant = Giant(fixtures_dir, named_weights, "hr", "skysense_backbone_hr")
    params = None
    for tag in giant.golden["inputs"]:
        small = tag == "hr_224"
        graphdef, template = abstract(maker(giant.name, pad_small_map=small))
        if params is None:
            params = nnx.state(giant.model(), nnx.Param)
            giant.arrays = {}
        model = nnx.merge(graphdef, params)
        image = channels_last(giant.input(tag))
        maps = jax.jit(lambda p, x, g=graphdef: nnx.merge(g, p).feature_maps({"HR": x}, normalised=True))(params, image)
        for i, ours in enumerate(maps):
            giant.check(f"{tag}/stage_{i}", jnp.moveaxis(ours, -1, 1))
        del model, template
    assert not giant.left


@pytest.mark.slow
@pytest.mark.parametrize("part", ["s2", "s1"])
def test_series_encoder_of_full_size(part, fixtures_dir, named_weights):
    giant = Giant(fixtures_dir, named_weights, part, f"skysense_backbone_{part}")
    modality = part_size(part).modality
    params = nnx.state(giant.model(), nnx.Param)
    for cls in (True, False):
        graphdef, _ = abstract(maker(giant.name, class_token=cls))

        @partial(jax.jit, static_argnums=(2,))
        def run(params, image, blocks, graphdef=graphdef):
            maps = nnx.merge(graphdef, params).feature_maps({modality: image}, blocks=blocks, normalised=True)
            return [jnp.moveaxis(ours, -1, 1) for ours in maps]

        fed = "cls" if cls else "no_cls"
        for tag in giant.golden["inputs"]:
            for block, ours in zip((11, 23), run(params, channels_last(giant.input(tag)), (11, 23)), strict=True):
                giant.check(f"{tag}/{fed}/layer_{block}", ours)
        for key in [key for key in giant.left if key.startswith("zeros_") and f"/{fed}/" in key]:
            height, width = map(int, key.partition("/")[0].removeprefix("zeros_").split("x"))
            channels = giant.arrays["patch_embed.projection.weight"].shape[1]
            giant.check(key, run(params, jnp.zeros((1, height, width, channels)), (0,))[0])
    assert not giant.left


def test_head_of_full_size(fixtures_dir, named_weights):
    giant = Giant(fixtures_dir, named_weights, "head_s2", "skysense_head_s2")
    giant.check("up", jnp.moveaxis(giant.model()(channels_last(giant.input("features"))), -1, 1))


@pytest.mark.slow
def test_fusion_of_full_size(fixtures_dir, named_weights):
    giant = Giant(fixtures_dir, named_weights, "fusion", "skysense_fusion")
    model = giant.model()
    for tag in giant.golden["inputs"]:
        giant.check(f"{tag}/fused", jax.jit(lambda frames: model(frames))(jnp.asarray(giant.input(tag))))
    assert not giant.left


@pytest.mark.parametrize("name", ["hr_swinv2_nopad", "vit_s2_cls1", "uphead", "fusion"])
def test_there_and_back_is_bit_identical(name, fixtures_dir):
    small = Small(fixtures_dir, name)
    size = SeriesSize("S2L2A", width=32, depth=3, heads=2, aligned=8, image=32)
    make = {
        "hr_swinv2_nopad": lambda r: HREncoder(SMALL, rngs=r),
        "vit_s2_cls1": lambda r: SeriesEncoder(size, rngs=r),
        "uphead": lambda r: UpHead(SeriesSize("S2L2A", width=8, aligned=6), rngs=r),
        "fusion": lambda r: Fusion(FusionSize(24, 16, 2, 2), rngs=r),
    }[name]
    model, params, _ = load(make, small.weights)
    state, _ = export_state(model.weight_map, params)
    assert all(state[key].read().tobytes() == array.tobytes() for key, array in small.weights.items())
    assert all("relative_" in key for key in set(state) - set(small.weights))


def test_the_giants_blocks_go_there_and_back(named_weights):
    """Two stages of the huge width, each with an extra norm: every rule of the HR encoder on its own shapes."""
    size = SwinSize((352, 704), (2, 2), (8, 16), (8, 8), (0, 0), extra_norm=2)
    make = partial(_make_hr, size, "public")
    graphdef, template = abstract(make)
    shapes = nnx.merge(graphdef, nnx.State(template)).weight_map
    from terra_jax.weights.rules import torch_shapes

    arrays = {key: named_weights.named_weight(key, s, 1) for key, s in torch_shapes(shapes, template).items()}
    model, params, report = load(make, {f"module.backbone.{key}": array for key, array in arrays.items()})
    assert set(report.fresh) == {"norm0.scale", "norm0.bias"}
    state, _ = export_state(model.weight_map, params)
    assert list(state) == list(arrays)
    assert all(state[key].read().tobytes() == array.tobytes() for key, array in arrays.items())


def _make_hr(size, layout, rngs):
    return HREncoder(size, rngs=rngs, layout=layout)


def test_buffers_equal_those_of_the_public_class(fixtures_dir):
    small = Small(fixtures_dir, "hr_swinv2_nopad")
    held = {key: array for key, array in small.weights.items() if "relative_" in key}
    model, params, _ = load(lambda r: HREncoder(SMALL, rngs=r), small.weights)
    state, _ = export_state(model.weight_map, params)
    for key, array in held.items():
        np.testing.assert_allclose(state[key].read(), array, atol=1e-6)


@pytest.mark.parametrize(
    ("prefix", "lacks", "more", "complaint"),
    [
        ("", (), (), ""),
        ("backbone.", ("norm0.weight", "norm0.bias", "norm1.weight", "norm2.bias"), ("mask_token",), ""),
        ("module.", (), (), ""),
        ("model.module.backbone.", (), ("mask_token",), ""),
        ("", ("norm3.weight",), (), "1 missing \\(norm3.weight"),
        ("", ("stages.2.blocks.1.norm3.bias",), (), "missing"),
        ("", (), ("vocabulary_token",), "1 left over \\(vocabulary_token"),
        ("encoder.", (), (), "missing"),
    ],
)
def test_hr_files_that_are_taken_and_refused(prefix, lacks, more, complaint, fixtures_dir):
    weights = Small(fixtures_dir, "hr_swinv2_nopad").weights
    arrays = {f"{prefix}{key}": array for key, array in weights.items() if key not in lacks}
    arrays |= {f"{prefix}{key}": np.zeros((1, 1, 16), np.float32) for key in more}
    make = lambda r: HREncoder(SMALL, rngs=r)  # noqa: E731
    if complaint:
        with pytest.raises(WeightsError, match=complaint):
            load(make, arrays)
        return
    _, params, report = load(make, arrays)
    assert len(report.fresh) == len(lacks)
    np.testing.assert_array_equal(params["norm3"]["scale"], weights["norm3.weight"])


def test_released_sentinel_2_file_brings_the_date_positions(named_weights):
    whole = spec("skysense_nano")
    part = whole.parts["s2"]
    from terra_jax.weights.rules import torch_shapes

    shapes = torch_shapes(part.weights, part.template())
    arrays = {key: named_weights.named_weight(key, shape, 1) for key, shape in shapes.items()}
    state = {key: LazyTensor.of(array) for key, array in arrays.items()}
    assert "ctpe" not in state
    params, report = import_params(part.weights, state, part.template(), part.fresh)
    assert report.fresh == ("dates",) and not params["dates"].any()
    table = named_weights.named_weight("ctpe", (1, 365, 128), 1)
    params, report = import_params(part.weights, {**state, "ctpe": LazyTensor.of(table)}, part.template(), part.fresh)
    np.testing.assert_array_equal(params["dates"], table[0])
    assert not report.fresh
    again, report = export_state(part.weights, params)
    assert list(again) == list(arrays) and report.left_out == ("dates",)
    public = spec("skysense_nano", layout="public").parts["s2"]
    again, _ = export_state(public.weights, params)
    assert again["ctpe"].read().tobytes() == table.tobytes()
