"""Exported weights load in PyTorch modules with the public keys, strictly, and compute the same."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_skysense import random_images, random_skysense
from random_tokenizer import random_module

import terra_jax
from terra_jax.nn.swin import SwinSize
from terra_jax.skysense.encoders import HREncoder
from terra_jax.skysense.variants import PARTS, FusionSize, SeriesSize, SkySenseSize

SIZE = SkySenseSize(
    SwinSize((8, 8, 8, 16), (2, 4, 1, 1), (2, 2, 2, 4), (4, 4, 4, 4), extra_norm=2),
    SeriesSize("S2L2A", width=8, depth=2, heads=2, aligned=16, image=16),
    SeriesSize("S1GRD", width=8, depth=2, heads=2, aligned=16, image=16),
    FusionSize(inputs=16, width=12, depth=3, heads=2),
)


@pytest.fixture(scope="module")
def reference(torch):
    return importlib.import_module("tools.pytorch_skysense")


@pytest.fixture(scope="module")
def exported(torch, tmp_path_factory):
    """A random model and the state dicts of its files."""
    folder = tmp_path_factory.mktemp("export")
    model = random_skysense(SIZE, pad_small_map=True, class_token=True)
    terra_jax.export_torch(model, folder / "tiny.pt")
    names = [f"tiny.{part}.pt" for part in PARTS]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    return model, {part: torch.load(folder / name, weights_only=True) for part, name in zip(PARTS, names, strict=True)}


def strict(module, state):
    module.load_state_dict(state, strict=True)
    return module.eval()


def assert_same(torch, ours, public, image):
    with torch.no_grad():
        expected = public(torch.from_numpy(np.array(image)))
    for mine, theirs in zip(ours, expected if isinstance(expected, list) else [expected], strict=True):
        theirs = theirs.numpy()
        np.testing.assert_allclose(mine, theirs, atol=3e-5 * np.sqrt(np.mean(theirs**2)))


def channels_first(image):
    return np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 1))


def test_hr_encoder(exported, reference, torch):
    model, states = exported
    size = SIZE.hr
    public = reference.SwinV2(size.widths, size.depths, size.heads, 4, extra_norm=2, pad_small_map=True)
    strict(public, states["hr"])
    image = random_images(5)["HR"][:1, :, :96]
    maps = jax.jit(lambda x: model.hr.feature_maps({"HR": x}, normalised=True))(image)
    assert_same(torch, [channels_first(m) for m in maps], public, channels_first(image))


@pytest.mark.parametrize(("part", "name"), [("s2", "S2L2A"), ("s1", "S1GRD")])
def test_series(part, name, exported, reference, torch):
    model, states = exported
    frames = random_images(12)[name][0, :, :, :8]
    encoder, head = getattr(model, part), getattr(model, f"head_{part}")
    public = strict(reference.SeriesEncoder(frames.shape[-1], 8, 2, 2, image=16), states[part])
    features = encoder({name: frames}, normalised=True)
    assert_same(torch, [channels_first(features)], public, channels_first(frames))
    up = strict(reference.UpHead(8, 16), states[f"head_{part}"])
    assert_same(torch, [channels_first(head(features))], up, channels_first(features))


def test_fusion(exported, reference, torch):
    model, states = exported
    public = strict(reference.Fusion(16, 12, 3, 2), states["fusion"])
    frames = jnp.asarray(np.random.default_rng(0).standard_normal((6, 5, 16), np.float32))
    assert_same(torch, [model.fusion(frames)], public, frames)


def test_weights_of_the_pytorch_class_come_back_bit_identical(exported, reference, torch, tmp_path):
    size = SIZE.hr
    public = reference.SwinV2(size.widths, size.depths, size.heads, 4, extra_norm=2)
    state = {f"module.backbone.{key}": value for key, value in public.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "first.pth")
    from terra_jax.nn.initialisation import abstract
    from terra_jax.weights.files import open_state
    from terra_jax.weights.transfer import export_state, import_params

    model = random_module(lambda rngs: HREncoder(size, rngs=rngs))
    _, template = abstract(lambda rngs: HREncoder(size, rngs=rngs))
    params, _ = import_params(model.weight_map, open_state(tmp_path / "first.pth"), template)
    again, _ = export_state(model.weight_map, params)
    assert list(again) == list(public.state_dict())
    for key, value in public.state_dict().items():
        if "relative_coords" in key:
            np.testing.assert_allclose(again[key].read(), value.numpy(), atol=1e-6)
        else:
            assert again[key].read().tobytes() == value.numpy().tobytes(), key
