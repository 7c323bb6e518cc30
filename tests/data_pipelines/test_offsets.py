"""Which Sentinel-2 products carry the offset, on real tiles and on drawn ones made hard."""

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from skies import changed, cut, interpolated, lifted, relief_corrected, spectrum, under_cirrus, uniform

from data_pipelines.modalities import Unit
from data_pipelines.offsets import find_offsets
from data_pipelines.radiometry import dn_to_reflectance
from data_pipelines.sample import Raster
from data_pipelines.sources import open_source
from data_pipelines.sources.procedural import ProceduralEarth

TILES = int(os.environ.get("TERRA_JAX_AUDIT_TILES", "5"))
"""Drawn tiles a sky; 200 is the full count."""

CASES = [(toa, surface) for toa in (0, 1000) for surface in (0, 1000)]

DESERT = spectrum(B01=0.18, B02=0.2, B03=0.28, B04=0.38, B05=0.42, B08=0.46, B09=0.3, B11=0.55, B12=0.5)
SNOW = spectrum(B01=0.85, B05=0.8, B08=0.75, B09=0.4, B11=0.08, B12=0.06)
SEA = spectrum(B01=0.12, B02=0.09, B03=0.05, B04=0.03, B05=0.02, B08=0.012, B09=0.006, B11=0.003, B12=0.002)
ROCK = spectrum(B01=0.14, B02=0.12, B03=0.11, B08=0.12, B09=0.07, B11=0.13, B12=0.12)

SKIES = {
    "as drawn": lambda sample, rng: sample,
    "thin cirrus": lambda sample, rng: under_cirrus(sample, rng, 0.02),
    "cirrus": lambda sample, rng: under_cirrus(sample, rng, 0.08),
    "overcast": lambda sample, rng: under_cirrus(sample, rng, 0.3),
    "relief": relief_corrected,
    "interpolated": lambda sample, rng: interpolated(interpolated(sample, "S2L1C"), "S2L2A"),
    "24 pixels": lambda sample, rng: cut(sample, 24),
    "desert": lambda sample, rng: uniform(sample, DESERT, rng),
    "even desert": lambda sample, rng: uniform(sample, DESERT, rng, 0.0005),
    "snow": lambda sample, rng: uniform(sample, SNOW, rng),
    "sea": lambda sample, rng: uniform(sample, SEA, rng),
    "sea under cirrus": lambda sample, rng: under_cirrus(uniform(sample, SEA, rng), rng, 0.1),
    "grey rock": lambda sample, rng: uniform(sample, ROCK, rng),
}
MAY_NOT_TELL = {"cirrus", "overcast", "relief", "even desert", "sea under cirrus"}


@pytest.fixture(scope="module")
def earth():
    drawn = ProceduralEarth(TILES, 72, seed=5, modalities=["S2L1C", "S2L2A", "NDVI"])
    return [drawn[i] for i in range(TILES)]


def values(sample) -> dict:
    return {name: found[0].value for name, found in find_offsets(sample).items()}


def only(sample, *names):
    return replace(sample, rasters={name: sample.rasters[name] for name in names})


def test_real_tiles(fixtures_dir):
    source = open_source("geotiff", path=str(fixtures_dir / "tiles"))
    samples = {sample.key: sample for sample in (source[i] for i in range(len(source)))}
    expected = {"282D_485L_3_3": (1000, 0), "38D_378R_2_3": (0, 0), "433D_629L_3_1": (1000, 1000)}
    for key, offsets in expected.items():
        assert tuple(values(samples[key]).values()) == offsets
        assert values(only(samples[key], "S2L2A"))["S2L2A"] in (offsets[1], None)
        assert tuple(values(cut(samples[key], 60)).values()) == offsets
    assert values(lifted(samples["38D_378R_2_3"], S2L2A=1000)) == {"S2L1C": 0, "S2L2A": 1000}
    assert values(lifted(samples["433D_629L_3_1"], S2L1C=-1000)) == {"S2L1C": 0, "S2L2A": 1000}


@pytest.mark.parametrize("sky", SKIES)
def test_no_drawn_tile_is_told_wrong(sky, earth):
    """Offsets put on both products, one or none: never a wrong verdict, and nearly always one where ground is seen."""
    told: Counter[str] = Counter()
    for i, sample in enumerate(earth):
        seen = SKIES[sky](sample, np.random.default_rng([i, 7]))
        for toa, surface in CASES:
            case = lifted(seen, S2L1C=toa, S2L2A=surface)
            for name, verdict in values(only(case, "S2L1C", "S2L2A")).items():
                true = toa if name == "S2L1C" else surface
                assert verdict in (true, None), (sample.key, name, true, find_offsets(case)[name])
                told[f"{name} {'unknown' if verdict is None else 'right'}"] += 1
            alone = values(only(case, "S2L2A"))["S2L2A"]
            assert alone in (surface, None), (sample.key, surface)
            told[f"S2L2A alone {'unknown' if alone is None else 'right'}"] += 1
    print(sky, dict(told))
    if sky not in MAY_NOT_TELL:
        assert all(told[f"{name} unknown"] <= 0.05 * told[f"{name} right"] for name in ("S2L1C", "S2L2A"))


def test_what_cannot_be_told_has_a_reason(earth):
    sample = lifted(earth[0], S2L1C=1000, S2L2A=1000)
    covered = find_offsets(under_cirrus(sample, np.random.default_rng(0), 0.4))
    assert "high cloud covers" in covered["S2L1C"][0].reason
    assert "the offset of S2L1C is unknown" in covered["S2L2A"][0].reason
    lonely = uniform(earth[0], DESERT, np.random.default_rng(0))
    assert "no S2L1C of the same image" in find_offsets(only(lonely, "S2L2A"))["S2L2A"][0].reason
    empty = changed(earth[0], {"S2L1C": lambda _, v: v * 0, "S2L2A": lambda _, v: v * 0})
    assert [one[0].reason for one in find_offsets(empty).values()] == [
        "the cirrus band B10 has no data",
        "it has no data",
    ]
    flat = uniform(earth[0], DESERT, np.random.default_rng(0), 0.0005)
    assert "too little spread" in find_offsets(flat)["S2L2A"][0].reason
    twice = changed(lifted(flat, S2L1C=1000), {"S2L2A": lambda _, v: v - 1000})
    assert find_offsets(twice)["S2L2A"][0].value is None


def test_under_cloud_a_dark_surface_image_tells_of_both(earth):
    veiled = lifted(under_cirrus(earth[0], np.random.default_rng(0), 0.12), S2L1C=1000)
    assert values(only(veiled, "S2L1C")) == {"S2L1C": None}
    assert values(veiled) == {"S2L1C": 1000, "S2L2A": 0}


def test_two_scenes_in_one_tile_are_not_told(earth):
    half = changed(earth[0], {"S2L1C": lambda _, v: v + 1000 * (np.arange(v.shape[-1]) >= v.shape[-1] // 2)})
    assert "two scenes in one" in find_offsets(half)["S2L1C"][0].reason


def test_missing_and_saturated_pixels_do_not_count(earth):
    def spoil(_, numbers):
        numbers = numbers + 1000
        numbers[: len(numbers) // 3] = 0
        numbers[-2:] = 32767
        return numbers

    assert values(changed(earth[1], {"S2L1C": spoil, "S2L2A": spoil})) == {"S2L1C": 1000, "S2L2A": 1000}


def test_reflectance_is_told_as_well(earth):
    sample = lifted(earth[2], S2L1C=1000)
    rasters = {name: dn_to_reflectance(sample.rasters[name]) for name in ("S2L1C", "S2L2A")}
    assert values(replace(sample, rasters=rasters)) == {"S2L1C": 1000, "S2L2A": 0}
    assert rasters["S2L1C"].unit is Unit.REFLECTANCE


def test_frames_of_a_series_are_told_one_by_one_and_paired_by_time(earth):
    def series(name, order, times):
        images = [lifted(earth[3], **{name: 1000 * (i % 2)}).rasters[name] for i in order]
        grids = {gsd: np.stack([image.grids[gsd] for image in images]) for gsd in images[0].grids}
        return Raster(grids, Unit.DN10000, np.array(times, "datetime64[s]"))

    times = [f"2020-0{month}-01T10:00:00" for month in (1, 4, 7)]
    rasters = {"S2L1C": series("S2L1C", (0, 1, 1), times), "S2L2A": series("S2L2A", (0, 0, 1), times)}
    found = find_offsets(replace(earth[3], rasters=rasters))
    assert [one.value for one in found["S2L1C"]] == [0, 1000, 1000]
    assert [one.value for one in found["S2L2A"]] == [0, 0, 1000]
    late = rasters | {"S2L2A": replace(rasters["S2L2A"], time=rasters["S2L2A"].time + np.timedelta64(5, "D"))}
    assert all("swir_intercept" not in one.evidence for one in find_offsets(replace(earth[3], rasters=late))["S2L2A"])


def test_a_stored_index_of_corrected_bands_shows_the_offset(earth):
    bright = uniform(earth[4], DESERT, np.random.default_rng(0))
    surface = bright.rasters["S2L2A"].grids[10].astype(np.float32)
    index = ((surface[3] - surface[2]) / (surface[3] + surface[2]))[None].astype(np.float16)
    raised = only(lifted(bright, S2L2A=1000), "S2L2A")
    assert values(raised)["S2L2A"] is None
    with_index = replace(raised, rasters={**raised.rasters, "NDVI": Raster({10: index}, Unit.INDEX)})
    assert values(with_index)["S2L2A"] in (1000, None)
    green = only(lifted(earth[4], S2L2A=1000), "S2L2A", "NDVI")
    assert values(green)["S2L2A"] == 1000
