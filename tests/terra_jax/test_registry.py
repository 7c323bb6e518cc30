"""Models by name: sizes, mistakes, and weights carried through every form and back, bit for bit."""

from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import TINY, quick_compilation
from flax import nnx

import terra_jax
from terra_jax import registry
from terra_jax.errors import CheckpointError, ConfigError, WeightsError
from terra_jax.nn.initialisation import abstract
from terra_jax.parallel.mesh import make_mesh
from terra_jax.training.build import build as build_program
from terra_jax.training.config import load_config
from terra_jax.training.optimiser import AdamW

NANO = "terrafm_nano"


def params(model) -> dict[str, np.ndarray]:
    """Dotted path -> array."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def assert_same(left, right, but: str = "nothing") -> None:
    a, b = params(left), params(right)
    assert list(a) == list(b)
    different = [path for path in a if not np.array_equal(a[path], b[path])]
    assert [path for path in different if but not in path] == []


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def model():
    return terra_jax.build(NANO, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def exported(model, folder) -> Path:
    terra_jax.export_torch(model, folder / "nano.pt")
    return folder / "nano.pt"


def test_sizes_are_the_public_ones():
    counts = terra_jax.list_models()
    assert [name for name in counts if name.startswith("terrafm")] == [
        f"terrafm_{size}" for size in ("nano", "small", "base", "large")
    ]
    assert (counts["terrafm_base"], counts["terrafm_large"]) == (112_951_296, 345_010_176)
    tables = 2 * 768 * 16 * 16  # of positions, which PyTorch counts as parameters
    assert counts["terramind_v1_tokenizer_s2l2a"] == 289_290_693 - tables // 2
    assert counts["terramind_v1_tokenizer_lulc"] == 183_894_021 - tables


def test_shapes_are_told_without_building():
    shapes = terra_jax.state_dict_shapes("terrafm_large")
    assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == 345_010_176
    assert shapes["pos_embed"] == (1, 197, 1024) and shapes["blocks.23.mlp.fc1.weight"] == (4096, 1024)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("terrafm_bse", "unknown model 'terrafm_bse'; did you mean terrafm_base"),
        ("terafm_large", "unknown model 'terafm_large'; did you mean terrafm_large"),
        ("resnet50", "unknown model 'resnet50'; did you mean terrafm_nano, terrafm_small"),
        ("terramind_v1_tokenizer_s2l1c", "unknown model 'terramind_v1_tokenizer_s2l1c'; did you mean terramind_v1_"),
    ],
)
@pytest.mark.parametrize("function", [terra_jax.build, terra_jax.state_dict_shapes, lambda n: terra_jax.load(n, "x")])
def test_unknown_models_are_refused_with_the_nearest(function, name, message):
    with pytest.raises(ConfigError, match=message) as error:
        function(name)
    assert "\n" not in str(error.value)


def test_options_change_the_model_and_unknown_ones_are_refused():
    small = nnx.eval_shape(lambda: registry.family(NANO).maker(NANO, depth=2, upstream_compat=True)(nnx.Rngs(0)))
    assert small.variant.depth == 2 and small.stems["S2L2A"] == "s2_l1c"
    with pytest.raises(ConfigError, match="terrafm_nano has no option 'dept'; did you mean depth"):
        terra_jax.build(NANO, dept=2)


def test_build_is_a_function_of_the_seed(model):
    assert_same(terra_jax.build(NANO, seed=3), model)
    other = params(terra_jax.build(NANO, seed=4))
    assert not np.array_equal(other["cls"], params(model)["cls"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weight_files_there_and_back_are_bit_identical(model, folder, suffix, capsys):
    first, second = folder / f"first{suffix}", folder / f"second{suffix}"
    terra_jax.export_torch(model, first)
    assert "for training only, left out: patch_embed.fusion.key" in capsys.readouterr().out
    loaded = terra_jax.load(NANO, first)
    assert "not in the file, initialised: patch_embed.fusion.key" in capsys.readouterr().out
    assert_same(loaded, model, but="fusion")
    assert not np.any(params(loaded)["patch_embed.fusion.key"])  # uniform attention
    terra_jax.export_torch(loaded, second)
    assert first.read_bytes() == second.read_bytes()


def test_params_folder_there_and_back_is_bit_identical(exported, folder, terra_jax_command):
    result = terra_jax_command("convert", "--model", NANO, "--from", exported, "--to", folder / "params")
    assert result.status == 0, result.err
    assert "licence of the public weights" in result.out
    assert_same(terra_jax.load(NANO, folder / "params"), terra_jax.load(NANO, exported))
    assert_same(terra_jax.load(NANO, {"encoder": folder / "params"}), terra_jax.load(NANO, exported))


def test_a_working_folder_gives_its_teacher_student_and_steps(tiny_run, folder):
    teacher, student = terra_jax.load(NANO, tiny_run), terra_jax.load(NANO, tiny_run, copy="student")
    assert not np.array_equal(params(teacher)["cls"], params(student)["cls"])
    assert_same(terra_jax.load(NANO, tiny_run / "checkpoints" / "4"), teacher)
    assert not np.array_equal(
        params(terra_jax.load(NANO, tiny_run / "checkpoints" / "2"))["cls"], params(teacher)["cls"]
    )
    terra_jax.export_torch(teacher, folder / "teacher.safetensors")
    assert_same(terra_jax.load(NANO, folder / "teacher.safetensors"), teacher, but="fusion")


@pytest.mark.parametrize(
    ("weights", "kind", "message"),
    [
        ("nowhere.pt", WeightsError, "nowhere.pt: cannot be read"),
        ("nowhere", WeightsError, "nowhere: does not exist"),
        ({"model": "nano.pt"}, WeightsError, "no part 'model'; its parts are encoder"),
        ({}, WeightsError, "no file is given for encoder; add encoder=PATH"),
        ("", WeightsError, "no part|does not exist|holds no checkpoint"),
    ],
)
def test_sources_that_are_none_are_refused(weights, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((kind, CheckpointError), match=message) as error:
        terra_jax.load(NANO, weights)
    assert "\n" not in str(error.value)


def test_weights_of_another_model_are_refused(exported, tiny_run):
    with pytest.raises(WeightsError, match=r"nano.pt: does not fit the model: .* missing"):
        terra_jax.load("terrafm_small", exported)
    with pytest.raises(WeightsError, match="holds terrafm_nano, not terrafm_small; name the model that it holds"):
        terra_jax.load("terrafm_small", tiny_run)


def test_a_run_that_starts_from_weights_begins_as_the_converted_model(exported):
    config = load_config("terrafm/nano", [item.removeprefix("--") for item in (*TINY, f"--config.init={exported}")])
    experiment = registry.experiment(config)
    initial = experiment.init()
    assert sorted(path.rsplit(".", 1)[-1] for path in initial.fresh) == ["key", "pool", "query"]
    assert len(initial.loaded) + len(initial.fresh) == len(params(terra_jax.load(NANO, exported)))

    mesh = make_mesh(devices=jax.devices()[:1])
    optimiser = AdamW.from_config(config.optimizer, config.steps)
    program = build_program(experiment.objective, optimiser, mesh, seed=config.seed)
    state = program.init(initial.params)
    converted = terra_jax.load(NANO, exported)
    image = {"S2L2A": np.random.default_rng(0).uniform(0, 4000, (2, 48, 48, 12)).astype(np.float32)}
    for copy in (state["params"], state["extra"]["teacher"]):
        np.testing.assert_array_equal(program.bind(copy).encoder(image), converted(image))
    moments = [np.asarray(leaf) for leaf in jax.tree.leaves(state["opt"])]
    assert moments and not any(moment.any() for moment in moments) and int(state["step"]) == 0
    fresh_run = program.init(None)
    assert np.array_equal(  # training-only parts are the run's own
        *(
            np.asarray(jax.tree.leaves({k: v for k, v in s["params"].items() if k != "encoder"})[0])
            for s in (state, fresh_run)
        )
    )


def test_a_family_offers_what_the_registry_asks_for():
    family = registry.family(NANO)
    assert NANO in family.MODELS and "Apache-2.0" in family.LICENCE
    spec = family.spec(NANO)
    assert list(spec.parts) == ["encoder"] and spec.default_weights == "teacher"
    assert abstract(family.maker(NANO))[1].keys() == spec.parts["encoder"].template().keys()
