"""Offsets taken off: exactly, without wrapping, on record, once."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skies import Few, lifted

from data_pipelines.audit import audit, read_offsets
from data_pipelines.errors import DataError
from data_pipelines.harmonise import harmonise, harmonised
from data_pipelines.modalities import MODALITIES, Unit
from data_pipelines.offsets import find_offsets
from data_pipelines.radiometry import dn_to_reflectance
from data_pipelines.records import decode_sample, encode_sample
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources.procedural import ProceduralEarth


@pytest.fixture(scope="module")
def clean():
    return ProceduralEarth(3, 48, seed=2, modalities=["S2L1C", "S2L2A", "NDVI", "DEM"])[1]


@pytest.mark.parametrize("toa, surface", [(0, 0), (1000, 0), (0, 1000), (1000, 1000)])
def test_what_was_put_on_is_taken_off_to_the_bit(clean, toa, surface):
    raised = lifted(clean, S2L1C=toa, S2L2A=surface)
    lowered = harmonise(raised)
    for name in ("S2L1C", "S2L2A", "NDVI", "DEM"):
        for gsd, grid in clean.rasters[name].grids.items():
            assert np.array_equal(lowered.rasters[name].grids[gsd], grid, equal_nan=grid.dtype.kind == "f")
            assert lowered.rasters[name].grids[gsd].dtype == grid.dtype
    assert lowered.attributes["S2L1C_offset_removed"] == toa
    assert lowered.attributes["S2L2A_offset_removed"] == surface
    assert ("NDVI_recomputed" in lowered.attributes) == bool(surface)
    assert same(decode_sample(encode_sample(lowered)), lowered)
    assert {one[0].value for one in find_offsets(lowered).values()} == {0}
    assert same(harmonise(lowered), lowered)


def test_the_caller_s_sample_stays_as_it_is(clean):
    raised = lifted(clean, S2L1C=1000, S2L2A=1000)
    copy = lifted(clean, S2L1C=1000, S2L2A=1000)
    harmonise(raised)
    assert same(raised, copy)


NUMBERS = hnp.arrays(st.sampled_from([np.int16, np.uint16, np.int32]), (4, 3, 5), elements=st.integers(0, 32767))


@settings(max_examples=60, deadline=None)
@given(NUMBERS)
def test_nothing_wraps_and_no_data_stay(numbers):
    raster = Raster({10: numbers}, Unit.DN10000)
    sample = Sample("a", {"S2L2A": raster}, 3.0, 45.0, 32631, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
    got = harmonise(sample, {"S2L2A": [1000]}).rasters["S2L2A"].grids[10]
    expected = np.where((numbers == 0) | (numbers == 32767), numbers, np.maximum(numbers.astype(int) - 1000, 1))
    assert got.dtype == numbers.dtype and np.array_equal(got, expected)


def test_negative_numbers_of_dark_water_become_one(clean):
    raster = replace(clean.rasters["S2L2A"], grids={g: a * 0 - 5 for g, a in clean.rasters["S2L2A"].grids.items()})
    sample = replace(clean, rasters={"S2L2A": raster})
    assert set(np.unique(harmonise(sample, {"S2L2A": [1000]}).rasters["S2L2A"].grids[20])) == {1}


def test_reflectance_loses_a_tenth(clean):
    raised = replace(clean, rasters={"S2L1C": dn_to_reflectance(lifted(clean, S2L1C=1000).rasters["S2L1C"])})
    lowered, true = harmonise(raised).rasters["S2L1C"], dn_to_reflectance(clean.rasters["S2L1C"])
    assert all(np.allclose(lowered.grids[gsd], grid, atol=1e-6) for gsd, grid in true.grids.items())


def test_frames_lose_their_own(clean):
    both = [clean, lifted(clean, S2L1C=1000)]
    grids = {gsd: np.stack([s.rasters["S2L1C"].grids[gsd] for s in both]) for gsd in (10, 20, 60)}
    series = replace(clean, rasters={"S2L1C": Raster(grids, Unit.DN10000)})
    lowered = harmonise(series)
    assert lowered.attributes["S2L1C_offset_removed"] == "0,1000"
    for gsd, grid in clean.rasters["S2L1C"].grids.items():
        assert all(np.array_equal(frame, grid) for frame in lowered.rasters["S2L1C"].grids[gsd])


def test_what_is_unknown_is_left_alone_and_said(clean):
    kept = harmonise(clean, {"S2L1C": [None], "S2L2A": [0]})
    assert kept.attributes["S2L1C_offset_removed"] == "unknown"
    assert kept.rasters == clean.rasters


@pytest.mark.parametrize(
    "offsets, said",
    [({"S2L1C": [1000, 0]}, "do not fit"), ({"S2L1C": [500]}, "do not fit"), ({"S2L1C": []}, "do not fit")],
)
def test_offsets_that_do_not_fit_are_refused(clean, offsets, said):
    with pytest.raises(DataError, match=said):
        harmonise(clean, offsets)


def test_nothing_is_taken_off_twice(clean):
    raised = lifted(clean, S2L1C=1000)
    found = {"S2L1C": [1000], "S2L2A": [0]}
    with pytest.raises(DataError, match="harmonised before"):
        harmonise(harmonise(raised, found), found)


def test_a_source_is_harmonised_by_an_audit_on_file(clean, tmp_path):
    samples = [lifted(clean, S2L1C=1000, S2L2A=1000), replace(clean, key="other")]
    source = Few(samples)
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(audit(source, say=lambda _: None).as_json()))
    offsets = read_offsets(path)
    assert offsets[clean.key] == {"S2L1C": [1000], "S2L2A": [1000]} and offsets["other"]["S2L1C"] == [0]
    for wrapped in (harmonised(source, offsets), harmonised(source)):
        assert len(wrapped) == 2 and wrapped.index is source.index
        for i in range(2):
            for name in set(MODALITIES) & set(clean.rasters):
                for gsd, grid in clean.rasters[name].grids.items():
                    assert np.array_equal(wrapped[i].rasters[name].grids[gsd], grid, equal_nan=grid.dtype.kind == "f")
    with pytest.raises(DataError, match="not in the audit"):
        harmonised(source, {"other": offsets["other"]})[0]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": "x", "version": 1}', '{"format": "terra_jax.audit", "version": 9}']
)
def test_a_file_that_is_no_audit_is_refused(tmp_path, text):
    path = tmp_path / "audit.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"audit\.json is no audit"):
        read_offsets(path)
