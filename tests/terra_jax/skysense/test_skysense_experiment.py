import jax
import numpy as np
import pytest

from data_pipelines.recipes.spec import check_batch
from terra_jax.errors import ConfigError
from terra_jax.nn.initialisation import abstract
from terra_jax.parallel.mesh import make_mesh
from terra_jax.skysense import experiment
from terra_jax.training.build import build
from terra_jax.training.config import load_config
from terra_jax.training.data import open_data, split_indices, training_indices
from terra_jax.training.optimiser import AdamW

ABSTRACT = {"samples": 64, "cache": False}


def _config(name, *changes):
    samples = [f"data.{key}={value}" for key, value in ABSTRACT.items()]
    return load_config(f"skysense/{name}", [*samples, *changes])


def _made(config):
    source = open_data(config)
    training = training_indices(source, config)
    regions = experiment.region_table(config, source, training)
    recipe = experiment.make_recipe(config, regions)
    return source, training, regions, recipe, experiment.make_objective(config, recipe.batch_spec)


@pytest.mark.parametrize("name", ["nano", "small", "huge"])
def test_every_config_makes_an_objective_whose_batches_fit(name):
    config = _config(name)
    *_, recipe, objective = _made(config)
    patch = objective.variant.s2.patch
    assert objective.global_size % patch == 0 and objective.local_size % patch == 0
    assert config.data.tile % patch == 0
    assert recipe.batch_spec["boxes"].shape == (2 + config.views.local_views, 4)
    assert set(objective.levels) <= set(objective.outputs)


def test_the_published_run_is_the_default():
    config = load_config("skysense/huge")
    assert (config.batch_size, config.steps, config.data.tile) == (240, 875_000, 64)
    assert (config.data.regions.rows, config.objective.region_prototypes) == (4096, 100)
    assert config.views.frames.to_dict() == {"S2L2A": 20, "S1GRD": 10}
    assert (config.encoder.hr_drop_path, config.encoder.drop_path) == (0.2, 0.3)


def test_the_parameters_add_up_to_the_papers_two_billion():
    """Public parts 1,658 M; prototypes 209.7 M of the paper's 215; heads and projections beside its 189 M."""
    *_, objective = _made(_config("huge"))
    _, params = abstract(objective.build)
    size = {part: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree)) for part, tree in params.items()}
    dates = int(np.prod(params["encoder"]["s2"]["dates"].shape))
    assert size["encoder"] - dates == 655_079_632 + 302_738_432 + 302_607_360 + 2 * 46_182_400 + 305_195_008
    assert objective.regions * objective.region_prototypes * objective.prototype_width == 209_715_200
    assert 2.0e9 < sum(size.values()) + 209_715_200 < 2.1e9


@pytest.mark.slow
def test_the_two_billion_step_lowers_for_eight_devices():
    config = _config("huge", "batch_size=8", "views.local_views=0")
    *_, objective = _made(config)
    mesh = make_mesh(data=1, fsdp=8)
    program = build(objective, AdamW.from_config(config.optimizer, config.steps), mesh)
    lowered = program.step.lower(program.abstract_state, program.abstract_batch(8))
    assert "stablehlo" in lowered.as_text()[:20_000]
    table = program.abstract_state["extra"]["prototypes"]
    assert table.shape == (4096, 100, 512) and table.sharding.shard_shape(table.shape)[0] == 512
    held = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
        for leaf in jax.tree.leaves(program.abstract_state["params"])
    )
    assert held < 0.2 * 1.9e9


def test_batches_are_what_the_objective_expects():
    config = _config("nano", "views.global_size=4")
    source, training, regions, recipe, objective = _made(config)
    example = recipe(source[int(training[0])], 0)
    check_batch(example, objective.batch_spec)
    assert example["region"] in regions.row


def test_training_never_sees_the_regions_that_are_scored():
    config = _config("nano", "data.samples=600")
    source, training, *_ = _made(config)
    trained = set(source.index.region[training])
    for split in ("val", "test"):
        scored = split_indices(source, split, 1000, labelled=True)
        assert len(scored) > 20 and trained.isdisjoint(source.index.region[scored])


def test_what_cannot_be_trained_is_named():
    with pytest.raises(ConfigError, match=r"data\.modalities: SkySense takes HR, S2L2A, S1GRD, not S1RTC"):
        experiment.run_modalities(_config("nano", "data.modalities=(S2L2A,S1RTC)"))
    with pytest.raises(ConfigError, match="cannot be trained by itself"):
        config = _config("nano", "model=skysense_fusion")
        experiment.make_objective(config, {})


def test_modalities_keep_the_order_of_the_fusion():
    assert experiment.run_modalities(_config("nano", "data.modalities=(S1GRD,HR)")) == ("HR", "S1GRD")
