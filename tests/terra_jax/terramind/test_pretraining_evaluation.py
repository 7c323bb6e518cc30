import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_pipelines"))
from dual_corpus import GRID, SENTINELS, TILE, pixels_of, record_of
from small_models import small_model
from small_tokenizers import small_tokenizer

from data_pipelines.modalities import LAND_COVER, modality
from data_pipelines.recipes.terramind import DualScaleLayout, StreamLayout, TranslationRecipe
from data_pipelines.sample import Raster
from data_pipelines.sources.dual_scale import DualScaleSample
from terra_jax.terramind.evaluation import (
    CEILING,
    GENERATED,
    Probe,
    ValidationLoss,
    ZeroShot,
    loss_figures,
    probe_figures,
    scores_table,
    unigram,
)
from terra_jax.terramind.objective import Trained, decode_batch
from terra_jax.terramind.streams import STREAMS

INPUTS, OUTPUTS = ("S2L2A", "tok_LULC"), ("tok_LULC", "tok_NDVI")


def layout_of(names):
    return tuple(StreamLayout(name, STREAMS[name].modality, STREAMS[name].kind, GRID**2) for name in names)


LAYOUT = DualScaleLayout(layout_of(INPUTS), layout_of(OUTPUTS), SENTINELS)


def sample_of(i: int) -> DualScaleSample:
    """A sample with random pixels, land cover and NDVI."""
    rng, plain = np.random.default_rng(i), pixels_of(i, ("S2L2A",))
    rasters = dict(plain.rasters)
    for name, drawn in (("LULC", rng.integers(1, 4, (1, 4, 4))), ("NDVI", rng.uniform(-1, 1, (1, 4, 4)))):
        blocks = drawn.repeat(9, 1).repeat(9, 2).astype(modality(name).dtype)
        rasters[name] = Raster({10: blocks}, modality(name).unit)
    return DualScaleSample(**{**vars(plain), "rasters": rasters}, records=(record_of(i, 0, ("LULC", "NDVI")),))


def batches(asked, truths=(), count=5, size=2):
    recipe = TranslationRecipe(LAYOUT, TILE, ("S2L2A",), asked, truths)
    examples = [{**recipe(sample_of(i), i), "number": np.asarray(i, np.int32)} for i in range(count)]
    for start in range(0, count, size):
        part = examples[start : start + size]
        yield {key: np.stack([example[key] for example in part]) for key in part[0]}


@pytest.fixture(scope="module")
def model():
    return small_model(inputs=INPUTS, outputs=OUTPUTS)


def test_a_unigram_is_the_frequencies_smoothed_as_suits_the_labels_best():
    counts, labels = np.array([70, 20, 10, 0]), np.array([0, 0, 1, 2, 0])
    plain = -np.log(np.array([0.7, 0.7, 0.2, 0.1, 0.7])).mean()
    assert plain < unigram(counts, labels) < plain + 0.01
    unseen = unigram(counts, np.array([3, 3]))
    assert unseen == pytest.approx(np.log(104))  # one added to each
    even = unigram(np.zeros(16, int), np.arange(16))
    assert even == pytest.approx(np.log(16))


def test_the_loss_on_unseen_regions_stands_beside_that_of_frequencies(model):
    counts = {"tok_LULC": np.zeros(4375, int), "tok_NDVI": np.arange(15360)}
    asked = []

    def count():
        asked.append(True)
        return counts

    score = ValidationLoss(partial(batches, OUTPUTS), count, outputs=OUTPUTS, size=32, batch_size=2)
    result = score(lambda _: Trained(model), {})
    assert result == score(lambda _: Trained(model), {}) and len(asked) == 1
    assert [row["targets"] for row in result.values()] == [5 * 16, 5 * 16]
    decoded = jax.jit(lambda batch: decode_batch(model, batch, 32)[0])
    for i, name in enumerate(OUTPUTS):
        table, expected = np.asarray(model.decoder.tables[name][...], np.float64), []
        for batch in batches(OUTPUTS):
            chosen = batch["targets/stream"] == i
            logits = np.asarray(decoded(batch), np.float64)[chosen] @ table.T
            logits -= logits.max(-1, keepdims=True)
            right = logits[np.arange(len(logits)), batch["targets/label"][chosen]]
            expected += (np.log(np.exp(logits).sum(-1)) - right).tolist()
        assert result[name]["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert result["tok_LULC"]["unigram"] == pytest.approx(np.log(4375))
    figures = loss_figures(result)
    assert list(figures)[:2] == ["loss", "unigram"]
    assert figures["loss"] == pytest.approx(np.mean([row["loss"] for row in result.values()]))


@pytest.fixture(scope="module")
def results(model):
    found = {}
    for asked in ("LULC", "NDVI"):
        probe = ZeroShot(
            Probe("S2L2A", asked),
            partial(batches, (f"tok_{asked}",), (asked,)),
            small_tokenizer(asked.lower()),
            size=32, batch_size=2, steps=2,
        )  # fmt: skip
        found[asked] = probe(lambda _: Trained(model), {}), probe.pictures(lambda _: Trained(model), {}, 2)
    return found


def test_land_cover_stands_beside_the_majority_class(results, model):
    result, pictures = results["LULC"]
    truth = np.stack([sample_of(i).rasters["LULC"].grids[10][0, :32, 2:32] for i in range(5)])
    share = np.bincount(truth.ravel()).max() / truth.size
    assert result["images"] == 5 and set(result["scores"]) == {GENERATED, CEILING}
    assert result["baselines"]["majority class"]["accuracy"] == pytest.approx(share, abs=0.02)  # 30 pixels become 32
    assert pictures["truth"].shape == pictures["estimate"].shape == (2, 32, 32)
    batch = next(batches(("tok_LULC",), ("LULC",)))
    decoded = jax.jit(lambda batch: decode_batch(model, batch, 32)[0])(batch)
    ids = model.logits(decoded, "tok_LULC").argmax(-1).reshape(-1, 4, 4)
    np.testing.assert_array_equal(pictures["estimate"], small_tokenizer("lulc").decode_tokens(ids))


def test_ndvi_stands_beside_its_mean(results):
    result, pictures = results["NDVI"]
    truth = pictures["truth"]
    assert truth.shape == (2, 32, 32, 1) and result["names"] == ["ndvi"]
    everything = np.concatenate([sample_of(i).rasters["NDVI"].grids[10][0, :32, 2:32].ravel() for i in range(5)])
    spread = np.abs(everything - everything.mean()).mean()
    assert result["baselines"]["mean"]["mae"][0] == pytest.approx(spread, rel=0.1)
    assert result["scores"][GENERATED]["mae"] != result["scores"][CEILING]["mae"]


def test_figures_and_table_name_both_sides(results):
    probes = {f"{asked} from S2L2A": result for asked, (result, _) in results.items()}
    figures = probe_figures(probes)
    assert {"LULC from S2L2A/accuracy", "LULC from S2L2A/accuracy of the majority class",
            "NDVI from S2L2A/mae", "NDVI from S2L2A/mae of the mean"} <= set(figures)  # fmt: skip
    row = {"loss": 3.21, "unigram": 4.5, "targets": 7}
    probes["S2L2A from S1GRD"] = "not made: no evaluation.tokenizers.S2L2A is given"
    text = scores_table({"validation": {"tok_LULC": row}, "zero_shot": probes})
    assert "3.210" in text and "4.500" in text and LAND_COVER[1] in text and "from the true tokens" in text
    assert "S2L2A from S1GRD: not made" in text
