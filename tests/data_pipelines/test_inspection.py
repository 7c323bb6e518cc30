"""What is said of samples that are spoilt in one known way."""

from dataclasses import replace

import numpy as np
import pytest
from skies import changed, interpolated, lifted

from data_pipelines.inspection import inspect
from data_pipelines.modalities import Unit, modality
from data_pipelines.radiometry import db_to_linear, dn_to_reflectance, to_10m
from data_pipelines.sample import Raster
from data_pipelines.sources.procedural import ProceduralEarth


@pytest.fixture(scope="module")
def clean():
    return ProceduralEarth(24, 72, seed=3)[22]  # green, clear


def with_raster(sample, name, **grids):
    changed = {int(gsd[1:]): grid for gsd, grid in grids.items()}
    return replace(sample, rasters={**sample.rasters, name: replace(sample.rasters[name], grids=changed)})


def flags(sample, known=None):
    return inspect(sample, known).all_flags


def test_a_sound_sample_has_no_flags(clean):
    finding = inspect(clean)
    assert finding.all_flags == []
    assert {name: one.unit for name, one in finding.modalities.items()} == {n: modality(n).unit for n in clean.rasters}
    assert finding.land_cover.sum() == 72 * 72


def test_units_that_are_not_those_stated(clean):
    linear = replace(db_to_linear(clean.rasters["S1RTC"]), unit=Unit.DB)
    reflectance = replace(dn_to_reflectance(clean.rasters["S2L2A"]), unit=Unit.DN10000)
    finding = inspect(replace(clean, rasters={**clean.rasters, "S1RTC": linear, "S2L2A": reflectance}))
    assert finding.modalities["S1RTC"].unit is Unit.LINEAR
    assert "S1RTC unit: said to be in db, looks like linear" in finding.all_flags
    optical = finding.modalities["S2L2A"]
    assert optical.unit is Unit.REFLECTANCE and optical.offset is None and "look like reflectance" in optical.reason
    wrapped = Raster({10: (clean.rasters["S1GRD"].grids[10] - 0.5).astype(np.int64).astype(np.uint16)}, Unit.DB)
    assert any("without a sign" in flag for flag in flags(replace(clean, rasters={"S1GRD": wrapped})))


@pytest.mark.parametrize(
    "name, gsd, value, said",
    [
        ("S1RTC", 10, np.nan, "S1RTC no_data: 8.33% of VV and 1 more bands"),
        ("NDVI", 10, np.nan, "NDVI no_data: 8.33% of ndvi"),
        ("DEM", 10, -9999, "DEM no_data: 8.33% of elevation"),
        ("LULC", 10, 0, "LULC no_data"),
        ("S2L2A", 20, 0, "S2L2A no_data: 8.33% of B05 and 5 more bands"),
    ],
)
def test_missing_pixels(clean, name, gsd, value, said):
    grids = {f"_{g}": grid.copy() for g, grid in clean.rasters[name].grids.items()}
    grids[f"_{gsd}"][..., : 6 * 10 // gsd, :] = value
    assert any(flag.startswith(said) for flag in flags(with_raster(clean, name, **grids)))


def test_saturated_and_dead_bands(clean):
    cut = changed(clean, {"S2L2A": lambda band, v: np.minimum(v * 4, 10_000)})
    assert any("S2L2A saturated: " in flag and "at 10000" in flag for flag in flags(cut))
    dead = changed(clean, {"S2L2A": lambda band, v: v * 0 + 77 if band == "B05" else v})
    assert "S2L2A constant: B05" in flags(dead)


def test_bands_out_of_order(clean):
    radar = clean.rasters["S1RTC"].grids[10]
    assert "S1RTC band_order: VH comes before VV" in flags(with_raster(clean, "S1RTC", _10=radar[::-1]))
    colour = clean.rasters["S2RGB"].grids[10]
    assert "S2RGB band_order: blue comes before red" in flags(with_raster(clean, "S2RGB", _10=colour[::-1]))
    for name in ("S2L1C", "S2L2A"):
        fine = to_10m(name, clean.rasters[name]).grids[10]
        place = modality(name).band_index("B8A")
        last = np.concatenate([np.delete(fine, place, 0), fine[place : place + 1]])
        assert f"{name} band_order: B8A comes last" in flags(with_raster(clean, name, _10=last))
        assert not any("band_order" in flag for flag in flags(with_raster(clean, name, _10=fine)))
    grids = dict(clean.rasters["S2L2A"].grids)
    grids[10] = grids[10][[2, 1, 0, 3]]
    told = [
        flag for flag in flags(with_raster(clean, "S2L2A", **{f"_{g}": a for g, a in grids.items()})) if "order" in flag
    ]
    assert told and "B02 of S2L2A is like B04 of S2L1C" in told[0]


def test_cirrus_in_the_place_of_b09(clean):
    grids = {gsd: grid.copy() for gsd, grid in clean.rasters["S2L1C"].grids.items()}
    coarse = grids[60].copy()
    grids[60][1], grids[60][2] = coarse[2], 1500 + coarse[0] // 9
    assert any(
        "B8A comes last" in flag
        for flag in flags(with_raster(clean, "S2L1C", **{f"_{g}": a for g, a in grids.items()}))
    )


def test_interpolated_bands_are_no_copies(clean):
    finding = inspect(interpolated(clean, "S2L2A"))
    assert finding.modalities["S2L2A"].replicated is False and finding.modalities["S2L1C"].replicated is True
    assert any(flag.startswith("S2L2A resampled: ") for flag in finding.all_flags)


def test_an_index_of_uncorrected_or_other_bands(clean):
    surface = lifted(clean, S2L2A=1000).rasters["S2L2A"].grids[10].astype(np.float32)
    stale = ((surface[3] - surface[2]) / (surface[3] + surface[2]))[None].astype(np.float16)
    told = flags(with_raster(lifted(clean, S2L2A=1000), "NDVI", _10=stale))
    assert any(flag.startswith("NDVI ndvi: was made of S2L2A with its offset still on") for flag in told)
    other = np.flip(clean.rasters["NDVI"].grids[10], -1)
    assert any(
        flag.startswith("NDVI ndvi: is not that of S2L2A") for flag in flags(with_raster(clean, "NDVI", _10=other))
    )


def test_times_and_places_that_do_not_fit(clean):
    late = replace(clean.rasters["S1RTC"], time=clean.rasters["S1RTC"].time + np.timedelta64(40, "D"))
    rasters = {"S2L2A": clean.rasters["S2L2A"], "S1RTC": late}
    assert any("days apart" in flag for flag in flags(replace(clean, rasters=rasters)))
    elsewhere = replace(clean, epsg=32600 + (clean.epsg % 100 + 25) % 60 + 1)
    assert any(flag.startswith("place: EPSG:") for flag in flags(elsewhere))
