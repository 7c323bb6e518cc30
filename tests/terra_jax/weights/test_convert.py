"""`convert`: every direction there and back, and every mistake a user can make."""

from pathlib import Path

import numpy as np
import pytest
import toy_model

from terra_jax.errors import CheckpointError, WeightsError
from terra_jax.weights import LazyTensor, ModelSpec, Part, convert, export_state, open_state, parse_sources, save_state
from terra_jax.weights.convert import Held
from terra_jax.weights.params_folder import read_card

WEIGHTS, PARAMS = toy_model.weight_map(), toy_model.params()


def spec(name="toy_small", parts=("model",), **options) -> ModelSpec:
    part = Part(WEIGHTS, toy_model.template, lambda: toy_model.params(seed=1))
    return ModelSpec(name, dict.fromkeys(parts, part), "Apache-2.0", **options)


@pytest.fixture
def public(tmp_path) -> Path:
    save_state(tmp_path / "public.pth", export_state(WEIGHTS, PARAMS)[0])
    return tmp_path / "public.pth"


def values(path: Path) -> list[tuple[str, bytes]]:
    return [(key, tensor.read().tobytes()) for key, tensor in open_state(path).items()]


def test_there_and_back_is_bit_identical_and_told(public, tmp_path):
    lines: list[str] = []
    convert(spec(), [str(public)], tmp_path / "params", log=lines.append)
    convert(spec(), [str(tmp_path / "params")], tmp_path / "back.pth", log=lines.append)
    convert(spec(), [str(tmp_path / "back.pth")], tmp_path / "again.safetensors", log=lines.append)
    assert (tmp_path / "back.pth").read_bytes() == public.read_bytes()
    assert values(tmp_path / "again.safetensors") == values(public)
    told = "\n".join(lines)
    assert f"{public}: 24 tensors mapped" in told
    assert "initialised: fusion.query" in told
    assert "left out: fusion.query" in told
    assert told.count("licence of the public weights: Apache-2.0") == 3


def test_a_training_folder_is_exported_and_extracted(tmp_path):
    (tmp_path / "run").mkdir()
    asked = []

    def load_workdir(path, weights):
        asked.append((path, weights))
        return Held({"model": PARAMS}, {"clip": "none"})

    options = {"load_workdir": load_workdir, "log": lambda line: None}
    convert(spec(), [str(tmp_path / "run")], tmp_path / "w.pt", **options)
    convert(spec(), [str(tmp_path / "run")], tmp_path / "params", weights="ema", **options)
    convert(spec(), [str(tmp_path / "params")], tmp_path / "w2.pt", **options)
    assert read_card(tmp_path / "params").options == {"clip": "none"}
    assert asked == [(tmp_path / "run", "teacher"), (tmp_path / "run", "ema")]
    assert (tmp_path / "w.pt").read_bytes() == (tmp_path / "w2.pt").read_bytes()


def test_options_that_files_imply_go_into_the_params_folder_and_on(public, tmp_path):
    implied = spec(public_options={"clip": "unit"})
    lines: list[str] = []
    convert(implied, [str(public)], tmp_path / "first", log=lines.append)
    convert(spec(), [str(tmp_path / "first")], tmp_path / "second", log=lines.append)
    assert read_card(tmp_path / "second").options == {"clip": "unit"}
    assert "\n".join(lines).count("options: clip=unit") == 2


def test_a_training_folder_of_other_sizes_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    held = Held({"model": {**PARAMS, "cls": np.zeros(9, np.float32)}}, {})
    with pytest.raises(CheckpointError, match=r"run: cls is \(9,\) there and \(8,\) in the model"):
        convert(spec(), [str(tmp_path / "run")], tmp_path / "w.pt", load_workdir=lambda *_: held)


@pytest.mark.parametrize(("weights", "factor"), [(None, 1), ("teacher", 1), ("student", 2)])
def test_the_wanted_weights_are_taken_from_a_training_checkpoint(tmp_path, weights, factor):
    state = export_state(WEIGHTS, PARAMS)[0]
    both = {f"teacher.{key}": tensor for key, tensor in state.items()}
    both |= {
        f"student.module.{key}": LazyTensor.of(tensor.read() * (1 if "index" in key else 2))
        for key, tensor in state.items()
    }
    save_state(tmp_path / "both.pt", both)
    convert(spec(), [str(tmp_path / "both.pt")], tmp_path / "one.pt", weights=weights, log=lambda line: None)
    taken = open_state(tmp_path / "one.pt")["norm.bias"].read()
    np.testing.assert_array_equal(taken, factor * PARAMS["norm"]["bias"])


def test_a_model_of_several_parts_has_a_file_for_each(public, tmp_path):
    whole = spec("toy_whole", ("hr", "s2"))
    convert(whole, [f"s2={public}", f"hr={public}"], tmp_path / "params", log=lambda line: None)
    convert(whole, [str(tmp_path / "params")], tmp_path / "out" / "w.pt", log=lambda line: None)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["w.hr.pt", "w.s2.pt"]
    assert values(tmp_path / "out" / "w.hr.pt") == values(public)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ([], "no file is given for hr, s2; add hr=PATH"),
        (["hr=a.pt"], "no file is given for s2"),
        (["hr=a.pt", "s2=b.pt", "hr=c.pt"], "hr=c.pt: the part 'hr' is given twice"),
        (["hr=a.pt", "s3=b.pt"], "no part 's3'; its parts are hr, s2"),
        (["a.pt"], "say which with PART=PATH"),
    ],
)
def test_parts_must_be_named_once_each(texts, complaint):
    with pytest.raises(WeightsError, match=complaint):
        parse_sources(texts, ("hr", "s2"))


def test_a_path_may_hold_an_equals_sign(tmp_path):
    path = tmp_path / "lr=3.pt"
    assert parse_sources([str(path)], ("model",)) == {"model": path}
    assert parse_sources([f"model={path}"], ("model",)) == {"model": path}


def test_nothing_is_overwritten_unasked(public, tmp_path):
    before = public.read_bytes()
    with pytest.raises(WeightsError, match="exists; choose another target or pass --overwrite"):
        convert(spec(), [str(public)], public)
    convert(spec(), [str(public)], public, overwrite=True, log=lambda line: None)
    assert public.read_bytes() == before
    convert(spec(), [str(public)], tmp_path / "params", log=lambda line: None)
    with pytest.raises(WeightsError, match="--overwrite"):
        convert(spec(), [str(public)], tmp_path / "params")
    convert(spec(), [str(public)], tmp_path / "params", overwrite=True, log=lambda line: None)


def test_a_folder_of_something_else_is_never_replaced(public, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    (tmp_path / "w.pt").mkdir()
    for target in ("home", "w.pt"):
        with pytest.raises(WeightsError, match="no earlier result of this kind"):
            convert(spec(), [str(public)], tmp_path / target, overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_what_does_not_fit_leaves_nothing_behind(public, tmp_path):
    state = dict(open_state(public))
    del state["norm.bias"]
    save_state(tmp_path / "short.pt", state)
    before = sorted(tmp_path.iterdir())
    for target in ("params", "out.pt"):
        with pytest.raises(WeightsError, match=r"short\.pt: does not fit the model: 1 missing \(norm.bias"):
            convert(spec(), [str(tmp_path / "short.pt")], tmp_path / target)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere", "nowhere: does not exist"),
        ("nowhere.pt", "cannot be read"),
        ("w.bin", "names no weight format; give a .pt"),
    ],
)
def test_a_source_that_is_no_source_is_named(tmp_path, source, complaint):
    (tmp_path / "w.bin").touch()
    with pytest.raises(WeightsError, match=complaint):
        convert(spec(), [str(tmp_path / source)], tmp_path / "params")


def test_the_wrong_model_and_the_wrong_choice_are_named(public, tmp_path):
    convert(spec(), [str(public)], tmp_path / "params", log=lambda line: None)
    with pytest.raises(CheckpointError, match="holds toy_small, not toy_large"):
        convert(spec("toy_large"), [str(tmp_path / "params")], tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="use one of teacher, student, ema"):
        convert(spec(), [str(public)], tmp_path / "w.pt", weights="master")
