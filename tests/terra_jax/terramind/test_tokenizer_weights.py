"""Weights of tokenizers: where the sampler's clip comes from, and the position tables that files carry."""

import json

import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx
from random_tokenizer import random_tokenizer

import terra_jax
from terra_jax.errors import ConfigError, WeightsError
from terra_jax.weights import LazyTensor, open_state, save_state
from terra_jax.weights.params_folder import save_params

NAME, CLASSES = "terramind_v1_tokenizer_dem_nano", "terramind_v1_tokenizer_lulc_nano"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def model():
    return random_tokenizer(NAME)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "dem.pt"
    terra_jax.export_torch(model, path)
    return path


def test_files_imply_the_released_sampler_and_folders_keep_it(model, exported, tmp_path, terra_jax_command):
    assert model.clip == "none"
    assert terra_jax.load(NAME, exported).clip == "unit"
    assert terra_jax.load(NAME, exported, clip="none").clip == "none"
    result = terra_jax_command("convert", "--model", NAME, "--from", exported, "--to", tmp_path / "params")
    assert result.status == 0 and "options: clip=unit" in result.out, result.err
    assert terra_jax.load(NAME, tmp_path / "params").clip == "unit"


@pytest.mark.parametrize(("options", "clip"), [({}, "none"), ({"clip": "unit"}, "unit")])
def test_a_params_folder_says_itself(model, options, clip, tmp_path):
    save_params(tmp_path / "own", NAME, {"tokenizer": nnx.to_pure_dict(nnx.state(model, nnx.Param))}, options=options)
    assert terra_jax.load(NAME, tmp_path / "own").clip == clip


def test_land_cover_has_no_sampler_to_bound(tmp_path, capsys):
    terra_jax.export_torch(random_tokenizer(CLASSES), tmp_path / "lulc.safetensors")
    assert terra_jax.load(CLASSES, tmp_path / "lulc.safetensors").clip == "none"
    assert "options" not in capsys.readouterr().out


def test_a_position_table_may_be_rounded_or_missing_but_not_another(exported, tmp_path):
    state = dict(open_state(exported))
    table = state["encoder.pos_emb"].read()
    assert table.shape == (1, 128, 8, 8)
    for change, fits in ((table + 1e-6, True), (None, True), (table.transpose(0, 1, 3, 2), False)):
        changed = {**state, "encoder.pos_emb": None if change is None else LazyTensor.of(np.ascontiguousarray(change))}
        path = tmp_path / f"{fits}.safetensors"
        save_state(path, {key: tensor for key, tensor in changed.items() if tensor is not None})
        if fits:
            terra_jax.load(NAME, path)
        else:
            with pytest.raises(WeightsError, match=r"buffer encoder\.pos_emb is not what this model builds"):
                terra_jax.load(NAME, path)


def test_unknown_options_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=f"{NAME} has no option 'clipp'; did you mean clip"):
        terra_jax.build(NAME, clipp="unit")


def test_the_encoder_of_the_public_backbones_is_part_of_the_map(fixtures_dir):
    for name in ("s2l2a", "lulc"):
        full = f"terramind_v1_tokenizer_{name}"
        backbone = json.loads((fixtures_dir / "manifests" / "terramind" / f"{full}_backbone.json").read_text())
        shapes = terra_jax.state_dict_shapes(full)
        assert {key: shapes[key] for key in backbone} == {k: tuple(entry["shape"]) for k, entry in backbone.items()}
