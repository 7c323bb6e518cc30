from dataclasses import replace

import numpy as np
import pytest
from dual_corpus import EVERYTHING, GRID, LAYOUT, SENTINELS, TILE, TOKENS, joined, pixels_of, without
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.recipes.spec import check_batch
from data_pipelines.recipes.terramind import RADARS, DualScaleLayout, DualScaleRecipe, TranslationRecipe
from data_pipelines.transforms.budgets import Component
from data_pipelines.transforms.spans import merge_spans

INPUTS, OUTPUTS = ([stream.name for stream in side] for side in (LAYOUT.inputs, LAYOUT.outputs))
ALL = Component(dict.fromkeys(INPUTS, 0.5), dict.fromkeys(OUTPUTS, 0.5))


def recipe(*mixture, seen=(24, 24), asked=(20, 20), **options) -> DualScaleRecipe:
    return DualScaleRecipe(LAYOUT, TILE, mixture or (ALL,), seen, asked, **options)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return joined(tmp_path_factory.mktemp("corpus") / "t")[1]


def slots(example, side, names):
    """Stream -> rows (position, token, ...) of its slots."""
    keys = ("position", "token", "label")[: 2 if side == "inputs" else 3]
    stream = example[f"{side}/stream"]
    table = np.stack([example[f"{side}/{key}"] for key in keys], 1)
    return {names[i]: table[stream == i] for i in np.unique(stream[stream >= 0])}


def both(example):
    return slots(example, "inputs", INPUTS), slots(example, "targets", OUTPUTS)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 10))
def test_whatever_is_drawn_fits(sample, position, seen, asked, alpha):
    made = recipe(Component(dict.fromkeys(INPUTS, alpha), dict.fromkeys(OUTPUTS, alpha)), seen=(1, seen),
                  asked=(1, asked))  # fmt: skip
    example = made(sample, position)
    check_batch(example, made.batch_spec)
    record = next(r for r in sample.records if tuple(example["boxes"][0]) == r.crop.box)
    assert example["flips"].tolist() == [[False, record.crop.flip]]
    shown, hidden = both(example)
    for name, rows in shown.items():
        assert len(set(rows[:, 0])) == len(rows) and rows[:, 0].max() < GRID**2
        if name in EVERYTHING:
            assert not rows[:, 1].any()
        elif name != "coords":
            assert np.array_equal(rows[:, 1], record.ids[name[4:]].ravel()[rows[:, 0]])
    for name, rows in hidden.items():
        if name == "coords":
            continue
        assert not rows[:, 1].any() and np.array_equal(rows[:, 2], record.ids[name[4:]].ravel()[rows[:, 0]])
        if name in shown:
            assert not set(rows[:, 0]) & set(shown[name][:, 0])
    for name, rows in (*shown.items(), *hidden.items()):
        if name != "coords":
            assert len(rows) <= GRID**2 and (np.diff(rows[:, 0]) > 0).all()
    if "coords" in hidden:
        _check_coordinates(shown.get("coords", np.zeros((0, 2), int)), hidden["coords"], record.ids["coords"])


def _check_coordinates(shown, hidden, ids):
    """Ranks count from 0, the decoder is fed what comes before, and nothing but the sequence is told."""
    assert shown[:, 0].tolist() == list(range(len(shown))) and hidden[:, 0].tolist() == list(range(len(hidden)))
    assert np.array_equal(hidden[1:, 1], hidden[:-1, 2]) and hidden[0, 1] in SENTINELS
    merged = merge_spans(shown[:, 1], np.append(hidden[:, 1], hidden[-1, 2]), SENTINELS)
    assert set(merged) <= set(ids)
    last = SENTINELS[max(int(np.isin(shown[:, 1], SENTINELS).sum()), not len(shown))]
    if hidden[0, 1] == SENTINELS[0] and hidden[-1, 2] == last:  # nothing was cut
        assert np.array_equal(merged, ids)


def test_a_place_may_be_seen_as_pixels_and_asked_for_as_a_token(sample):
    pixels = Component({"S2L2A": 1000.0}, {"tok_S2L2A": 1.0})
    shown, hidden = both(recipe(pixels, seen=(16, 16), asked=(16, 16))(sample, 0))
    assert shown["S2L2A"][:, 0].tolist() == hidden["tok_S2L2A"][:, 0].tolist() == list(range(16))


def test_an_example_follows_from_its_position_alone(sample):
    first, again, other = recipe()(sample, 7), recipe()(sample, 7), recipe()(sample, 8)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    reseeded = recipe(seed=1)(sample, 7)
    assert any(not np.array_equal(first[key], reseeded[key]) for key in first)


def test_one_radar_product_a_sample_and_every_crop_setting_now_and_then(sample):
    met, boxes = {name: 0 for name in RADARS}, set()
    for position in range(200):
        example = recipe(asked=(40, 40), seen=(60, 60))(sample, position)
        streams = {name.removeprefix("tok_") for side in both(example) for name in side}
        assert not set(RADARS) <= streams
        boxes.add(tuple(example["boxes"][0]))
        for name in RADARS:
            met[name] += name in streams
    assert min(met.values()) > 50 and len(boxes) == 3


def test_budgets_go_to_what_the_sample_has(sample):
    lacking = without(sample, "S2L2A", "NDVI", "S1GRD", "coords")
    for position in range(50):
        example = recipe(seen=(20, 20), asked=(16, 16))(lacking, position)
        shown, hidden = both(example)
        assert set(shown) <= {"S1RTC", "DEM", "tok_S1RTC", "tok_LULC"} and set(hidden) <= {"tok_S1RTC", "tok_LULC"}
        assert not example["S2L2A/10"].any() and not example["S1GRD/10"].any()
        assert (example["S1RTC/10"] == 1).all() and (example["DEM/10"] == 1).all()
    even = Component(dict.fromkeys(INPUTS, 1000.0), dict.fromkeys(OUTPUTS, 1000.0))
    example = recipe(even, seen=(20, 20), asked=(12, 12))(lacking, 0)
    assert (example["inputs/stream"] >= 0).all() and (example["targets/stream"] >= 0).all()  # none is lost


def test_components_that_a_sample_cannot_serve_are_passed_over(sample):
    made = recipe(Component({"S2L2A": 1.0}, {"tok_LULC": 1.0}, 50.0), Component({"DEM": 1.0}, {"tok_NDVI": 1.0}))
    shown, hidden = both(made(without(sample, "S2L2A"), 0))
    assert set(shown) == {"DEM"} and set(hidden) == {"tok_NDVI"}
    with pytest.raises(DataError, match=r"sample s1 has .*, to which no component of the mixture gives tokens"):
        made(without(sample, "S2L2A", "DEM"), 0)


def test_the_least_of_a_stream_is_kept(sample):
    even = Component(dict.fromkeys(INPUTS, 10.0), dict.fromkeys(OUTPUTS, 10.0))
    made = recipe(even, least={"tok_NDVI": 3})
    for position in range(40):
        shown, hidden = both(made(sample, position))
        assert len(shown.get("tok_NDVI", ())) >= 3 and len(hidden.get("tok_NDVI", ())) >= 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seen": (0, 8)}, r"input_tokens=\(0, 8\) is no budget"),
        ({"asked": (0, 0)}, r"target_tokens=\(0, 0\) is no budget"),
        ({"asked": (9, 8)}, r"target_tokens=\(9, 8\) is no budget"),
    ],
)
def test_impossible_budgets_are_refused(options, words):
    with pytest.raises(DataError, match=words):
        recipe(**options)


def test_streams_that_the_model_lacks_are_refused():
    with pytest.raises(DataError, match=r"the mixture's targets name 'tok_HR'; the model has tok_S2L2A, "):
        recipe(Component({"DEM": 1.0}, {"tok_HR": 1.0}))
    with pytest.raises(DataError, match="the mixture of budgets is empty"):
        DualScaleRecipe(LAYOUT, TILE, ())


def test_samples_that_do_not_fit_are_refused(sample):
    with pytest.raises(DataError, match="s1 has no tokens; join the source to a corpus"):
        recipe()(pixels_of(1), 0)
    with pytest.raises(DataError, match=r"s1 is 36 x 36 pixels, not 42 x 42; set --config.data.tile=36"):
        DualScaleRecipe(LAYOUT, 42, (ALL,))(sample, 0)
    wide = [tuple(replace(stream, length=25) for stream in side) for side in (LAYOUT.inputs, LAYOUT.outputs)]
    layout = DualScaleLayout(*wide, SENTINELS)
    with pytest.raises(DataError, match=r"s1 has 16 tokens of \w+, the model wants 25; tokenise at the model's size"):
        DualScaleRecipe(layout, TILE, (Component({"tok_LULC": 1.0}, {"tok_NDVI": 1.0}),))(sample, 0)


def test_a_translation_sees_all_and_asks_for_all(sample):
    made = TranslationRecipe(LAYOUT, TILE, ("S2L2A", "coords"), ("tok_LULC", "tok_NDVI", "coords"), ("DEM",))
    example = made(sample, 3)
    check_batch(example, made.batch_spec)
    shown, hidden = both(example)
    assert shown["S2L2A"][:, 0].tolist() == list(range(16)) and shown["coords"][:, 1].tolist() == [301, 2001, 3]
    for name in ("LULC", "NDVI"):
        first = 1000 * TOKENS.index(name)
        assert hidden[f"tok_{name}"][:, 2].tolist() == list(range(first, first + 16))
    assert hidden["coords"][:, 2].tolist() == [301, 2001, 3, SENTINELS[1]]
    assert tuple(example["boxes"][0]) == sample.records[0].crop.box
    for lost in ("S2L2A", "NDVI", "DEM"):
        with pytest.raises(DataError, match=f"s1 has no (tok_)?{lost}"):
            made(without(sample, lost), 0)
