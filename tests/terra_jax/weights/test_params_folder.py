"""Params folders: whole, sound and of the right model, or refused in one line."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest

from terra_jax.errors import CheckpointError
from terra_jax.weights.params_folder import CARD, is_params_folder, load_params, read_card, save_params

PARTS = {
    "model": {"a": {"kernel": np.arange(50_000, dtype=np.float32).reshape(100, 500)}, "scale": np.float32(3)},
    "head": {"kernel": np.arange(6, dtype=ml_dtypes.bfloat16)},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("params") / "folder"
    save_params(path, "toy_small", PARTS, "Apache-2.0")
    return path


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "folder")


def load(path, model="toy_small", parts=PARTS):
    return load_params(path, model, parts)


def test_parameters_come_back_bit_for_bit(saved):
    back = load(saved)
    assert back["model"]["a"]["kernel"].tobytes() == PARTS["model"]["a"]["kernel"].tobytes()
    assert back["model"]["scale"] == 3
    assert back["head"]["kernel"].dtype == ml_dtypes.bfloat16
    assert list(load(saved, parts={"head": PARTS["head"]})) == ["head"]


def test_the_card_says_what_is_there(saved):
    assert is_params_folder(saved)
    card = read_card(saved)
    assert (card.model, card.licence, list(card.parts)) == ("toy_small", "Apache-2.0", ["model", "head"])
    assert [path.name for path in saved.parent.iterdir()] == ["folder"]


def data_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(folder):
    path = data_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(folder):
    path = data_file(folder)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        lambda folder: data_file(folder).unlink(),
        lambda folder: shutil.rmtree(folder / "params"),
        lambda folder: (folder / CARD).write_text("{"),
        lambda folder: (folder / CARD).write_text("[]"),
        lambda folder: (folder / CARD).unlink(),
        lambda folder: (folder / CARD).write_text((folder / CARD).read_text().replace('"format": 1', '"format": 2')),
    ],
)
def test_damage_is_named_in_one_line(folder, damage):
    damage(folder)
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "parts", "complaint"),
    [
        ("toy_large", PARTS, "holds toy_small, not toy_large"),
        ("toy_small", {"tail": PARTS["head"]}, "lacks the part 'tail'; it holds model, head"),
        ("toy_small", {"head": {"kernel": np.zeros(7)}}, r"kernel is \(6,\) there and \(7,\) in the model"),
        ("toy_small", {"head": {"bias": np.zeros(6)}}, "bias is missing there"),
        ("toy_small", {"head": {}}, r"kernel is \(6,\) there and absent"),
    ],
)
def test_another_model_is_refused(saved, model, parts, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        load(saved, model, parts)


def test_a_failed_save_leaves_the_former_folder_and_nothing_else(folder):
    with pytest.raises(TypeError):
        save_params(folder, "toy_small", {"head": {"kernel": np.array([object()])}})
    assert load(folder)["model"]["scale"] == 3
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_saving_again_replaces_the_folder(folder):
    save_params(folder, "toy_small", {"head": {"kernel": np.ones(6, np.float32)}})
    assert json.loads((folder / CARD).read_text())["parts"].keys() == {"head"}
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]
