from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.loader import Loader
from data_pipelines.modalities import modality
from data_pipelines.recipes.skysense import SkySenseRecipe, SkySenseTileRecipe
from data_pipelines.recipes.spec import check_batch
from data_pipelines.regions import RegionTable
from data_pipelines.sources import open_source

SHIPPED = {"S2L2A": 6, "S1GRD": 4}


@pytest.fixture(scope="module")
def earth():
    return open_source("procedural_series", samples=6, tile=16, frames=SHIPPED)


@pytest.fixture(scope="module")
def sample(earth):
    return earth[1]


@pytest.fixture(scope="module")
def regions(earth):
    return RegionTable.of(earth.index.lon, earth.index.lat, 16)


@pytest.fixture(scope="module")
def recipe(regions):
    return SkySenseRecipe(16, {"S2L2A": 3, "S1GRD": 2}, SHIPPED, regions, local_views=2)


def test_examples_keep_the_spec_and_ship_what_was_drawn(recipe, sample, regions):
    example = recipe(sample, 0)
    check_batch(example, recipe.batch_spec)
    assert example["HR"].tobytes() == sample.rasters["HR"].grids[10].tobytes()
    series = sample.rasters["S2L2A"]
    count = len(series.time)
    assert np.array_equal(example["S2L2A/10"][:count], series.grids[10]) and not example["S2L2A/10"][count:].any()
    assert np.array_equal(example["S2L2A/20"][:count], series.grids[20])
    assert "S2L2A/60" not in example
    assert np.array_equal(example["S1GRD/10"][: len(sample.rasters["S1GRD"].time)], sample.rasters["S1GRD"].grids[10])
    assert example["region"] == regions.find(sample.lon, sample.lat, "")
    np.testing.assert_allclose(example["lonlat"], [sample.lon, sample.lat], rtol=1e-6)


def test_an_example_is_a_function_of_sample_position_and_seed(recipe, sample):
    first, again, later = recipe(sample, 5), recipe(sample, 5), recipe(sample, 6)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], later[key]) for key in ("boxes", "S2L2A/frames", "flips"))
    other = replace(recipe, seed=1)(sample, 5)
    assert any(not np.array_equal(first[key], other[key]) for key in ("boxes", "S2L2A/frames", "flips"))


def test_days_are_those_of_the_frames_but_for_the_jitter(recipe, sample):
    for jitter in (0, 4):
        example = replace(recipe, date_jitter=jitter)(sample, 3)
        series = sample.rasters["S2L2A"].time.astype("datetime64[D]")
        of_year = (series - series.astype("datetime64[Y]")).astype(int)
        away = example["S2L2A/days"] - of_year[example["S2L2A/frames"]]
        assert (np.abs((away + 180) % 365 - 180) <= jitter).all()


def test_longer_series_are_drawn_from_and_shorter_ones_padded(recipe, sample):
    frames = {"S2L2A": 2, "S1GRD": 2}
    few = replace(recipe, frames=frames, shipped=frames)
    check_batch(few(sample, 0), few.batch_spec)
    pixels = {few(sample, position)["S2L2A/10"].tobytes() for position in range(12)}
    assert len(pixels) > 3
    many = replace(recipe, frames={"S2L2A": 9, "S1GRD": 9}, shipped={"S2L2A": 9, "S1GRD": 9})
    example = many(sample, 0)
    assert (example["S2L2A/present"].sum(1) == len(sample.rasters["S2L2A"].time)).all()


def test_larger_samples_are_cut_with_one_geometry(regions):
    sample = open_source("procedural_series", samples=6, tile=28, frames=SHIPPED)[1]
    recipe = SkySenseRecipe(16, {"S2L2A": 3, "S1GRD": 2}, SHIPPED, regions)
    for position in range(4):
        example = recipe(sample, position)
        check_batch(example, recipe.batch_spec)
        whole, count = sample.rasters["S2L2A"].grids[10], len(sample.rasters["S2L2A"].time)
        tops = [
            (top, left)
            for top in (0, 6, 12)
            for left in (0, 6, 12)
            if np.array_equal(whole[..., top : top + 16, left : left + 16], example["S2L2A/10"][:count])
        ]
        ((top, left),) = tops
        fine = sample.rasters["HR"].grids[10]
        assert np.array_equal(fine[:, 32 * top : 32 * top + 512, 32 * left : 32 * left + 512], example["HR"])


def test_modalities_may_be_left_out_or_lack(recipe, sample):
    radar = SkySenseRecipe(16, {"S1GRD": 2}, {"S1GRD": 4}, recipe.regions, high_resolution=False)
    example = radar(sample, 0)
    check_batch(example, radar.batch_spec)
    assert not any(key.startswith(("HR", "S2L2A")) for key in example)
    without = replace(sample, rasters={"S1GRD": sample.rasters["S1GRD"]})
    example = recipe(without, 0)
    check_batch(example, recipe.batch_spec)
    assert not example["HR/present"].any() and not example["S2L2A/present"].any() and example["S1GRD/present"].all()
    with pytest.raises(DataError, match="has none of HR, S2L2A, S1GRD"):
        recipe(replace(sample, rasters={"LULC": sample.rasters["LULC"]}), 0)


def test_single_dates_of_other_sources_are_series_of_one(recipe):
    single = open_source("procedural", samples=6, tile=16, modalities=["S2L2A", "S1GRD"])[1]
    example = recipe(single, 0)
    check_batch(example, recipe.batch_spec)
    assert example["S2L2A/present"].sum(1).tolist() == [1, 1, 1, 1]
    assert example["S2L2A/10"][0].tobytes() == single.rasters["S2L2A"].grids[10].tobytes()


def test_wrong_samples_are_named(recipe, sample):
    def changed(name, **changes):
        return replace(sample, rasters={**sample.rasters, name: replace(sample.rasters[name], **changes)})

    short = changed("HR", grids={10: sample.rasters["HR"].grids[10][:, :480]})
    with pytest.raises(DataError, match=r"HR is 512 x 480 pixels and S2L2A 16 x 16; cut HR to 32 pixels for each"):
        recipe(short, 0)
    with pytest.raises(DataError, match="S2L2A has no date for every frame"):
        recipe(changed("S2L2A", time=None), 0)
    with pytest.raises(DataError, match="S1GRD is out of order"):
        recipe(changed("S1GRD", time=sample.rasters["S1GRD"].time[::-1]), 0)
    with pytest.raises(DataError, match="lies outside all"):
        recipe(replace(sample, lon=-150.0, lat=0.0), 0)
    assert replace(recipe, outside="nearest")(replace(sample, lon=-150.0, lat=0.0), 0)["region"] >= 0
    with pytest.raises(DataError, match="smaller than a tile of 36"):
        replace(recipe, tile=36)(sample, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": {"S2L2A": 7}}, "S2L2A: views of 7 frames out of 6; ship more"),
        ({"frames": {"S1RTC": 1}}, "'S1RTC' is no series of SkySense"),
        ({"frames": {"S2L2A": 0}}, "give at least one"),
        ({"global_scale": (0.9, 0.4)}, r"global_scale=\(0.9, 0.4\) is impossible"),
        ({"local_scale": (0.001, 0.4)}, "share no ground"),
    ],
)
def test_impossible_options_are_named(recipe, changes, message):
    with pytest.raises(DataError, match=message):
        replace(recipe, **changes)


def test_whole_tiles_carry_labels_and_clouds(sample, regions):
    recipe = SkySenseTileRecipe(16, {"S2L2A": 20, "S1GRD": 10}, regions)
    example = recipe(sample, 0)
    check_batch(example, recipe.batch_spec)
    count = len(sample.rasters["S2L2A"].time)
    assert np.array_equal(example["labels"], sample.rasters["LULC"].grids[10][0])
    assert np.array_equal(example["cloud"][:count], sample.rasters["S2L2A"].frames["cloud_fraction"])
    assert np.isnan(example["cloud"][count:]).all() and example["S2L2A/present"].sum() == count
    assert (np.diff(example["S2L2A/days"][:count]) % 366 > 0).all()
    away = recipe(replace(sample, lon=-150.0, lat=0.0), 0)
    assert away["region"] in regions.row


def test_the_loader_serves_it(earth, recipe):
    with Loader(earth, recipe, np.arange(6), batch_size=4, seed=0, threads=2) as loader:
        batch = next(loader)
    check_batch(batch, recipe.batch_spec, (4,))
    assert modality("HR").detail * 16 == batch["HR"].shape[-1]
