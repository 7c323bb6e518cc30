import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import quick_compilation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "terra_jax" / "terramind"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import tim_ablation
from small_models import small_model

from terra_jax.errors import ConfigError

QUICK = {"seeds": 1, "labels": (4,), "inputs": ("S2L2A",), "steps": 2, "tested": 6}


@pytest.fixture(scope="module")
def result():
    said: list[str] = []
    with quick_compilation():
        found = tim_ablation.compare(small_model(), say=said.append, **QUICK)
    assert len(said) == len(found["runs"])
    return found


@pytest.mark.slow
def test_every_rung_is_fine_tuned_and_scored(result):
    settings = [(run["rung"], run["input"], run["labels"], run["seed"]) for run in result["runs"]]
    assert settings == [(rung, "S2L2A", 4, 0) for rung in tim_ablation.RUNGS]
    json.dumps(result)
    assert all(
        0 <= run["miou"] <= 1 and run["iou"].keys() == result["baseline"]["iou"].keys() for run in result["runs"]
    )


def test_the_table_has_means_and_spreads_over_seeds():
    runs = [
        {"rung": rung, "input": "S2L2A", "labels": 8, "seed": seed, "miou": 0.1 * seed}
        for seed in (1, 3)
        for rung in tim_ablation.RUNGS
    ]
    lines = tim_ablation.table({"runs": runs, "baseline": {"miou": 0.1}}).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["mean IoU, %", *tim_ablation.RUNGS, "commonest class"]
    assert lines[1].endswith("20.0 +- 14.1") and lines[-1].endswith("10.0")


def test_every_label_is_used_as_often():
    for count in (3, 8, 20):
        steps = 5 * count
        chosen = np.concatenate(list(tim_ablation.batches(count, steps, seed=1)))
        assert len(chosen) == steps * tim_ablation.BATCH and set(Counter(chosen.tolist()).values()) == {5 * 8}


def test_pixels_without_a_class_do_not_count():
    truth = np.array([[[0, 0, 0, 1, 1, 2]]])
    assert tim_ablation.commonest(truth)["accuracy"] == pytest.approx(2 / 3)
    assert tim_ablation.commonest(truth)["iou"] == {"water": pytest.approx(2 / 3), "trees": 0}


def test_labelled_and_unseen_tiles_lie_apart():
    labelled, unseen = (tim_ablation.tiles(("S2L2A",), 16, split, 3, seed=0) for split in ("train", "test"))
    assert labelled["S2L2A"].shape == (3, 16, 16, 12) and labelled["LULC"].shape == (3, 16, 16)
    assert not any(np.array_equal(one, other) for one in labelled["S2L2A"] for other in unseen["S2L2A"])


def test_inputs_that_the_model_lacks_are_refused():
    with pytest.raises(ConfigError, match="the model takes no S2RGB"):
        tim_ablation.compare(small_model(), inputs=("S2RGB",))
