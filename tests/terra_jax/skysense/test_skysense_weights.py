"""Whole models and their six files."""

import jax
import numpy as np
import pytest
from flax import nnx
from random_tokenizer import random_module
from safetensors.numpy import load_file, save_file

import terra_jax
from terra_jax import registry
from terra_jax.errors import ConfigError, WeightsError
from terra_jax.skysense.family import maker, spec
from terra_jax.skysense.variants import PARTS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A random nano model and where its parts lie."""
    folder = tmp_path_factory.mktemp("nano")
    model = random_module(maker("skysense_nano"))
    terra_jax.export_torch(model, folder / "nano.safetensors")
    return model, {part: folder / f"nano.{part}.safetensors" for part in PARTS}


def test_a_whole_model_is_made_of_six_files(files, capsys):
    model, paths = files
    loaded = terra_jax.load("skysense_nano", paths, date_positions="none")
    kept, brought = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (model, loaded))
    kept["s2"].pop("dates")
    jax.tree.map(np.testing.assert_array_equal, kept, brought)
    loaded = terra_jax.load("skysense_nano", paths)
    assert not np.asarray(loaded.s2.dates[...]).any()
    assert "not in the file, initialised: dates" in capsys.readouterr().out


def test_one_checkpoint_of_everything_with_fused_attention_names_is_read(files, tmp_path):
    _, paths = files
    prefixes = {"hr": "backbone_hr", "s2": "backbone_s2", "s1": "backbone_s1"}
    whole = {
        f"module.{prefixes.get(part, part)}.{key.replace('attn.in_proj_', 'attn.Wqkv.')}": value
        for part in PARTS
        for key, value in load_file(paths[part]).items()
    }
    assert sum("Wqkv" in key for key in whole) > 4
    save_file(whole, tmp_path / "whole.safetensors")
    parted, read = (
        nnx.to_pure_dict(nnx.state(terra_jax.load("skysense_nano", sources, date_positions="none"), nnx.Param))
        for sources in (paths, dict.fromkeys(PARTS, tmp_path / "whole.safetensors"))
    )
    jax.tree.map(np.testing.assert_array_equal, parted, read)


def test_a_name_in_both_spellings_is_refused(files, tmp_path):
    _, paths = files
    state = load_file(paths["s1"])
    state |= {key.replace("in_proj_", "Wqkv."): value for key, value in state.items()}
    save_file(state, tmp_path / "both.safetensors")
    with pytest.raises(WeightsError, match=r"holds both .*Wqkv.* and .*in_proj_.*; keep one of them"):
        terra_jax.load("skysense_nano", {**paths, "s1": tmp_path / "both.safetensors"})


def test_a_part_that_is_missing_is_named(files):
    _, paths = files
    with pytest.raises(WeightsError, match="no file is given for s1; add s1=PATH"):
        terra_jax.load("skysense_nano", {part: path for part, path in paths.items() if part != "s1"})
    with pytest.raises(WeightsError, match="several parts make the model"):
        terra_jax.load("skysense_nano", paths["hr"])
    with pytest.raises(WeightsError, match="does not fit the model"):
        terra_jax.load("skysense_nano", {**paths, "s1": paths["s2"]})


def test_shapes_of_several_files_are_told_apart():
    shapes = terra_jax.state_dict_shapes("skysense_nano")
    assert shapes["s1.patch_embed.projection.weight"] == (64, 2, 4, 4)
    assert shapes["s2.patch_embed.projection.weight"] == (64, 10, 4, 4)
    assert {key.partition(".")[0] for key in shapes} == set(PARTS)
    assert "s2.ctpe" in terra_jax.state_dict_shapes("skysense_nano", layout="public")


def test_training_holds_the_parts_in_its_encoder():
    places = {part: held.path for part, held in spec("skysense_nano").parts.items()}
    assert places == {part: f"encoder/{part}" for part in PARTS}


def test_options_and_names_are_checked():
    with pytest.raises(ConfigError, match="skysense_head_s2 has no option 'drop_path'"):
        registry.build("skysense_head_s2", drop_path=0.1)
    with pytest.raises(ConfigError, match="unknown model 'skysense_backbone_s3'"):
        registry.build("skysense_backbone_s3")
