"""Statistics: exact, whoever counts what, and sets that configs name."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from fakes import FakeSource, plausible
from hypothesis import given, settings
from hypothesis import strategies as st
from skies import Few

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, Statistics, modality
from data_pipelines.radiometry import db_to_linear, to_native_grids
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources.procedural import ProceduralEarth
from data_pipelines.statistics import Counts, count, count_share, read_set, remove_shares, statistics_table, write_set


def quiet(_):
    pass


def sample(key, seed, names=("S2L2A", "S1RTC", "DEM", "LULC", "NDVI")):
    rasters = {}
    for name in names:
        raster = Raster({10: plausible(name, 12, seed)}, modality(name).unit)
        rasters[name] = to_native_grids(name, raster)
    return Sample(key, rasters, 3.0, 45.0, 32631, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))


@pytest.fixture(scope="module")
def few():
    return Few([sample(f"s{i}", i) for i in range(9)])


def test_figures_are_those_of_all_pixels(few):
    told = count(few, say=quiet).describe()
    for name in ("S2L2A", "S1RTC", "DEM", "NDVI"):
        for i, band in enumerate(modality(name).bands):
            place = modality(name).grids[band.gsd].index(i)
            pixels = np.concatenate([few[n].rasters[name].grids[band.gsd][place].ravel() for n in range(9)])
            exact = [Fraction(float(value)) for value in pixels]
            mean = sum(exact) / len(exact)
            variance = sum((value - mean) ** 2 for value in exact) / len(exact)
            assert told[name]["mean"][i] == float(mean) and told[name]["std"][i] == float(variance) ** 0.5
            assert told[name]["min"][i] == pixels.min() and told[name]["max"][i] == pixels.max()
            assert told[name]["quantiles"][i]["0.5"] == np.quantile(
                pixels.astype(np.float64), 0.5, method="inverted_cdf"
            )
            assert told[name]["pixels"][i] == len(pixels)
    cover = np.concatenate([few[n].rasters["LULC"].grids[10].ravel() for n in range(9)])
    assert told["LULC"]["frequencies"] == {n: float(np.mean(cover == i)) for i, n in enumerate(LAND_COVER)}


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(9)), st.integers(1, 8), st.integers(1, 4))
def test_any_division_among_workers_gives_the_same_to_the_last_bit(few, order, cut, threads):
    whole = count(few, say=quiet).describe()
    parts = [count(few, part, threads=threads, say=quiet) for part in (order[:cut], order[cut:])]
    parts[1].merge(parts[0])
    assert parts[1].describe() == whole and parts[1].samples == 9


def test_missing_pixels_do_not_count(few):
    spoilt = few[0]
    optical = {gsd: grid.copy() for gsd, grid in spoilt.rasters["S2L2A"].grids.items()}
    optical[20][:, 0] = 0
    optical[10][1, 0, 0] = 0  # zero in one band alone is a number
    radar = spoilt.rasters["S1RTC"].grids[10].copy()
    radar[0, :2] = np.nan
    rasters = {
        "S2L2A": replace(spoilt.rasters["S2L2A"], grids=optical),
        "S1RTC": replace(spoilt.rasters["S1RTC"], grids={10: radar}),
    }
    counts = count(Few([replace(spoilt, rasters=rasters)]), say=quiet)
    told = counts.describe()
    assert told["S2L2A"]["no_data"] == [0, 0, 0, 0, 6, 6, 6, 0, 6, 0, 6, 6]
    assert told["S1RTC"]["no_data"] == [24, 0] and told["S1RTC"]["pixels"] == [120, 144]
    assert told["S2L2A"]["min"][2] == 0


def test_what_cannot_be_counted_is_left_out_by_name_or_stops(few):
    linear = few[1].rasters | {"S1RTC": db_to_linear(few[1].rasters["S1RTC"])}
    mixed = Few([few[0], replace(few[1], rasters=linear)])
    counts = count(mixed, say=quiet)
    assert counts.samples == 1 and "is in linear" in counts.left_out["s1"]
    assert count(Few([few[0]]), say=quiet).describe() == counts.describe()  # nothing of it was counted
    with pytest.raises(DataError, match="is in linear"):
        count(mixed, strict=True, say=quiet)
    with pytest.raises(DataError, match="no sample could be read"):
        count(FakeSource(3, unreadable=(0, 1, 2)), say=quiet)
    with pytest.raises(DataError, match="none of the first 32"):
        count(FakeSource(500, unreadable=tuple(range(500))), say=quiet)


def test_shares_of_several_processes_make_the_whole(few, tmp_path):
    path, origin = tmp_path / "set.json", {"source": "few", "samples": 9}
    alone = count_share(few, path, origin, say=quiet)
    assert count_share(few, path, origin, (0, 3), say=quiet) is None
    assert count_share(few, path, origin, (2, 3), threads=1, say=quiet) is None
    said = []
    assert count_share(few, path, origin, (2, 3), say=said.append) is None and "counted before" in said[0]
    whole = count_share(few, path, origin, (1, 3), say=quiet)
    assert whole.describe() == alone.describe() and whole.samples == 9
    with pytest.raises(DataError, match="share of another count"):
        count_share(few, path, {"source": "other", "samples": 9}, (0, 3), say=quiet)
    part = tmp_path / ".set.json.1-of-3.npz"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        count_share(few, path, origin, (0, 3), say=quiet)
    remove_shares(path)
    assert not list(tmp_path.iterdir())


def test_a_set_is_named_by_its_path(few, tmp_path):
    path = tmp_path / "mine.json"
    content = write_set(path, "mine", count(few, say=quiet), {"source": "few"})
    assert json.loads(path.read_text()) == content and content["name"] == "mine" and list(tmp_path.iterdir()) == [path]
    for name in ("S2L2A", "S1RTC", "DEM", "NDVI"):
        mean, std = modality(name).statistics_for(str(path))
        assert np.array_equal(mean, np.float32(content["modalities"][name]["mean"]))
        assert np.array_equal(std, np.float32(content["modalities"][name]["std"]))
    mean, _ = modality("S2L2A").statistics_for(str(path), ["B04", "red", "B02"])
    assert mean[0] == mean[1] == np.float32(content["modalities"]["S2L2A"]["mean"][3])
    assert isinstance(read_set(path)["DEM"], Statistics) and "LULC" not in read_set(path)
    with pytest.raises(DataError, match=r"mine\.json has no statistics of S2L1C; it has S2L2A"):
        modality("S2L1C").statistics_for(str(path))
    table = statistics_table(content)
    assert "mine: 9 samples" in table and "B8A" in table and "elevation" in table


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "terra_jax.statistics", "version": 1, "modalities": 3}'])
def test_a_file_that_is_no_set_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"x\.json holds no statistics"):
        modality("DEM").statistics_for(str(path))


def test_unknown_sets_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as statistics; write it with `terra-jax stats"):
        modality("DEM").statistics_for(str(tmp_path / "absent.json"))
    with pytest.raises(DataError, match="known sets: terramesh, terramind_v1, or a"):
        modality("DEM").statistics_for("terramesh2")
    path = tmp_path / "other.json"
    entry = {"unit": "metre", "bands": ["height"], "mean": [1.0], "std": [1.0]}
    path.write_text(json.dumps({"format": "terra_jax.statistics", "version": 1, "modalities": {"DEM": entry}}))
    with pytest.raises(DataError, match="DEM has other bands"):
        modality("DEM").statistics_for(str(path))


def test_a_set_is_read_again_when_it_changes(few, tmp_path):
    path = tmp_path / "set.json"
    for n in (1, 2):
        content = write_set(path, "set", count(few, range(n), say=quiet), {})
        assert modality("DEM").statistics_for(str(path))[0] == np.float32(content["modalities"]["DEM"]["mean"])


def test_counts_survive_a_file(tmp_path):
    counts = count(ProceduralEarth(3, 32), say=quiet)
    counts.left_out["x"] = "why"
    counts.save(tmp_path / "a.npz", {"n": 1})
    again = Counts.load(tmp_path / "a.npz", {"n": 1})
    assert again.describe() == counts.describe() and again.left_out == {"x": "why"} and again.samples == 3
