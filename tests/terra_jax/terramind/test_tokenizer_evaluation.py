from functools import partial

import jax
import numpy as np
import pytest
from command_line import quick_compilation
from flax import nnx

from data_pipelines.recipes.tokenizer import WindowRecipe
from data_pipelines.sources import open_source
from terra_jax.nn.initialisation import abstract, initial_params
from terra_jax.nn.unet import UNetSize
from terra_jax.terramind.tokenizer_evaluation import TokenizerScorer, figures, scores_table
from terra_jax.terramind.tokenizer_objective import TokenizerObjective
from terra_jax.terramind.variants import TokenizerVariant
from terra_jax.training.data import numbered_batches

UNET = UNetSize(channels=16, multipliers=(1,), blocks=1, attention=(), groups=8)
VARIANTS = {
    name: TokenizerVariant(name, (4, 3, 3), width=16, depth=1, heads=2, patch=8, table=2, image=16, unet=unet)
    for name, unet in (("S1RTC", UNET), ("LULC", None))
}


@pytest.fixture(scope="module", autouse=True)
def fast(tmp_path_factory):
    with quick_compilation(tmp_path_factory.mktemp("compiled")):
        yield


def scored(name, batch_size, clips=("none",)):
    """A random tokenizer's figures on six tiles of four windows."""
    source = open_source("procedural", samples=6, tile=36, modalities=(name,))
    recipe = WindowRecipe(name, 36, 16)
    objective = TokenizerObjective(VARIANTS[name], recipe.batch_spec, sizes=(16,))
    graphdef, _ = abstract(objective.build)
    batches = partial(numbered_batches, source, recipe, np.arange(6), batch_size)
    scorer = TokenizerScorer(batches, batches, variant=VARIANTS[name], size=16, batch_size=batch_size, steps=2)
    bind = lambda params: nnx.merge(graphdef, nnx.State(params))  # noqa: E731
    params = initial_params(objective.build)
    if name == "S1RTC":  # a decoder that has learned nothing gives zeros, whatever the noise
        decoder = params["tokenizer"]["decoder"]
        decoder["out"]["kernel"] = jax.random.normal(jax.random.key(1), decoder["out"]["kernel"].shape)
    return scorer(bind, params, clips)


@pytest.mark.parametrize("name", ["S1RTC", "LULC"])
def test_figures_do_not_depend_on_the_batch_size(name):
    first, second = (figures(scored(name, size)) for size in (6, 4))  # the last batch of 4 is filled up
    assert first == pytest.approx(second, rel=1e-4)


def test_bands_are_scored_beside_the_mean_and_the_bound():
    result = scored("S1RTC", 6, ("none", "unit"))
    assert (result["names"], result["unit"], result["images"]) == (["VV", "VH"], "db", 24)
    assert list(result["scores"]) == ["reconstruction", "sampled within 1 std"]
    assert list(result["baselines"]) == ["mean of the image", "original within 1 std"]
    assert result["scores"]["reconstruction"]["mae"] != result["scores"]["sampled within 1 std"]["mae"]
    assert all(len(band) == 2 for scores in result["baselines"].values() for band in scores.values())
    assert list(figures(result))[:3] == ["mae", "psnr", "ssim"] and "mae/VH" in figures(result)
    table = scores_table(result)
    assert "S1RTC, 24 images of 16 x 16 pixels, 2 steps; MAE in db" in table and "MAE, VH" in table
    assert "of 36 codes used" in table


def test_classes_are_scored_beside_majorities():
    result = scored("LULC", 6)
    assert list(result["baselines"]) == ["majority class", "majority of the image"]
    trivial, better = (scores["accuracy"] for scores in result["baselines"].values())
    assert 0 < trivial <= better <= 1
    assert result["codebook"]["tokens"] == 24 * 4 and "peak" not in result
    assert "mean IoU, %" in scores_table(result) and list(figures(result))[:2] == ["accuracy", "miou"]
