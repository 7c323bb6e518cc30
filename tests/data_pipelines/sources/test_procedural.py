from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from rasterio.warp import transform as warp

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, MODALITIES, SCENE_CLASSES, modality
from data_pipelines.radiometry import check_plausible, to_10m
from data_pipelines.sources import open_source
from data_pipelines.sources.procedural import ProceduralEarth, places, utm
from data_pipelines.sources.procedural.spectra import MATERIALS

WATER, TREES, SNOW = (LAND_COVER.index(name) for name in ("water", "trees", "snow_ice"))
EVERYTHING = {"S2L1C", "S2L2A", "S2RGB", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI"}


def assert_same(one, other, names=None):
    assert (one.key, one.lon, one.lat, one.epsg, one.transform) == (
        other.key,
        other.lon,
        other.lat,
        other.epsg,
        other.transform,
    )
    for name in names or one.rasters:
        assert one.rasters[name].time == other.rasters[name].time
        for gsd, image in one.rasters[name].grids.items():
            assert image.tobytes() == other.rasters[name].grids[gsd].tobytes(), name


def bands(sample, name):
    """Band name -> (y, x) float32 at 10 m."""
    image = to_10m(name, sample.rasters[name]).grids[10].astype(np.float32)
    return dict(zip(modality(name).band_names, image, strict=True))


@pytest.fixture(scope="module")
def scenes():
    """Forty whole samples of 96 pixels."""
    earth = ProceduralEarth(samples=40, tile=96, seed=3)
    return [earth[i] for i in range(len(earth))]


@pytest.fixture(scope="module")
def clear(scenes):
    return [scene for scene in scenes if scene.attributes["cloud_fraction"] == 0]


def test_a_sample_depends_on_seed_and_number_alone():
    earth = ProceduralEarth(samples=50, tile=64, seed=5)
    first = earth[17]
    again = ProceduralEarth(samples=20, tile=64, seed=5)
    again[3]
    assert_same(first, again[17])
    assert_same(first, earth[np.int64(17)])
    other = ProceduralEarth(samples=50, tile=64, seed=6)[17]
    assert not np.array_equal(first.rasters["S2L2A"].grids[10], other.rasters["S2L2A"].grids[10])


def test_threads_draw_what_one_thread_draws():
    earth = ProceduralEarth(samples=12, tile=48)
    alone = [earth[i] for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(earth.__getitem__, reversed(range(12))))
    for one, other in zip(alone, reversed(together), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("tile", [16, 64, 96, 130, 534])
def test_rasters_have_the_tables_grids_and_dtypes(tile):
    sample = ProceduralEarth(samples=3, tile=tile)[1]
    assert set(sample.rasters) == EVERYTHING
    assert sample.shape == (tile, tile)
    for name, raster in sample.rasters.items():
        table = modality(name)
        assert raster.unit == table.unit
        assert set(raster.grids) == set(table.grids)
        for gsd, members in table.grids.items():
            side = -(-tile * 10 // gsd)
            assert raster.grids[gsd].shape == (len(members), side, side)
            assert raster.grids[gsd].dtype == table.dtype
            assert raster.grids[gsd].base is None or raster.grids[gsd].nbytes * 4 >= raster.grids[gsd].base.nbytes
        check_plausible(name, raster)


def test_a_modality_does_not_depend_on_the_others_asked_for():
    for i in (0, 3, 8):
        whole = ProceduralEarth(samples=10, tile=66)[i]
        for names in (["S2L1C"], ["NDVI"], ["RGB", "DEM"], ["S1GRD"], ["S1RTC", "S2L2A"], ["LULC"]):
            part = ProceduralEarth(samples=10, tile=66, modalities=names)[i]
            assert set(part.rasters) == {modality(name).name for name in names}
            assert_same(part, whole)


def test_index_is_exact_and_does_not_depend_on_length():
    earth = ProceduralEarth(samples=500, tile=42, seed=1, modalities=["LULC", "DEM"])
    index = earth.index
    ocean = SCENE_CLASSES.index("ocean")
    for i, sample in enumerate(earth[i] for i in range(len(earth))):
        land_cover = sample.rasters["LULC"].grids[10]
        counts = np.bincount(land_cover.ravel(), minlength=10)
        at_sea = counts[WATER] >= 0.95 * land_cover.size and sample.rasters["DEM"].grids[10].max() <= 0
        assert index.scene[i] == (ocean if at_sea else counts.argmax())
        assert counts[LAND_COVER.index("clouds")] == counts[0] == 0
        assert (sample.key, sample.lon, sample.lat) == (index.keys[i], index.lon[i], index.lat[i])
    short = ProceduralEarth(samples=20, tile=42, seed=1).index
    for column in ("keys", "lon", "lat", "region", "scene"):
        assert np.array_equal(getattr(short, column), getattr(index, column)[:20])
    assert (index.scene == ocean).any()
    assert len(np.unique(index.keys)) == 500


def test_a_large_index_looks_like_the_world_and_splits_by_region():
    index = ProceduralEarth(samples=100_000).index
    share = np.bincount(index.scene, minlength=len(SCENE_CLASSES)) / len(index)
    order = ("rangeland", "trees", "crops", "built", "flooded_vegetation")
    assert all(share[SCENE_CLASSES.index(a)] > share[SCENE_CLASSES.index(b)] for a, b in pairwise(order))
    assert share[[SCENE_CLASSES.index(name) for name in ("water", "bare", "snow_ice", "ocean")]].min() > 0.01
    assert {"train", "val", "test"} == set(index.split)
    regions = [set(index.region[index.split == split]) for split in ("train", "val", "test")]
    assert not (regions[0] & regions[1] or regions[0] & regions[2] or regions[1] & regions[2])
    assert (np.abs(index.lon) <= 180).all() and (np.abs(index.lat) < 84).all()


def test_every_class_has_exactly_its_share():
    earth = ProceduralEarth(samples=30, tile=50, modalities=["LULC"])
    drawn = places.draw_places(0, np.arange(30))
    expected = places.class_counts(drawn.fractions, 2500)
    assert (expected.sum(1) == 2500).all()
    for i in range(30):
        counts = np.bincount(earth[i].rasters["LULC"].grids[10].ravel(), minlength=10)
        assert np.array_equal(counts, expected[i])


def test_samples_lie_on_the_60_m_lattice_at_their_place(scenes):
    for scene in scenes:
        a, _, left, _, e, top = scene.transform
        assert (a, e) == (10, -10) and left % 60 == 0 and top % 60 == 0
        (lon,), (lat,) = warp(f"EPSG:{scene.epsg}", "EPSG:4326", [left + 480], [top - 480])
        assert abs(lat - scene.lat) < 0.0006
        assert abs((lon - scene.lon) * np.cos(np.deg2rad(scene.lat))) < 0.0006


@pytest.mark.parametrize(("lon", "lat"), [(9.1, 57.2), (-48.1, -25.3), (179.9, 70.0), (-0.1, 0.0), (33.2, -3.4)])
def test_utm_agrees_with_a_projection_library(lon, lat):
    epsg = utm.utm_zone(lon, lat)
    (east,), (north,) = warp("EPSG:4326", f"EPSG:{epsg}", [lon], [lat])
    assert utm.to_utm(lon, lat, epsg) == pytest.approx((east, north), abs=0.01)


def test_satellites_pass_within_days_of_each_other_in_daylight(scenes):
    for scene in scenes:
        optical, radar = scene.rasters["S2L2A"].time, scene.rasters["S1RTC"].time
        assert np.datetime64("2016-12-31") < optical < np.datetime64("2025-01-02")
        assert abs(optical - radar) < np.timedelta64(4, "D")
        assert scene.rasters["S2L1C"].time == optical and scene.rasters["DEM"].time is None
        assert 0 <= scene.attributes["sun_zenith"] <= 84


def test_ndvi_is_that_of_the_stored_bands(scenes):
    for scene in scenes[:10]:
        optical = bands(scene, "S2L2A")
        expected = (optical["B08"] - optical["B04"]) / (optical["B08"] + optical["B04"])
        np.testing.assert_allclose(scene.rasters["NDVI"].grids[10][0], expected, atol=1e-3)


def test_materials_look_like_themselves():
    earth = ProceduralEarth(samples=1500, tile=48, modalities=["S2L2A", "LULC"])

    def looks(number):
        """Median spectra of a class in clear scenes that it dominates."""
        for i in np.flatnonzero(earth.index.scene == number)[:25]:
            scene = earth[int(i)]
            if scene.attributes["cloud_fraction"] == 0:
                mask = scene.rasters["LULC"].grids[10][0] == number
                yield {name: np.median(image[mask]) for name, image in bands(scene, "S2L2A").items()}

    water = [look for look in looks(WATER) if look["B04"] < 2500]  # without ice
    snow = list(looks(SNOW))
    trees = [look for look in looks(TREES) if look["B03"] < 900]  # without snow
    assert min(len(water), len(snow), len(trees)) > 5
    assert np.median([look["B11"] for look in water]) < 150
    assert np.median([look["B03"] for look in snow]) > 6000
    assert all(look["B11"] < 0.4 * look["B03"] for look in snow)
    assert np.median([look["B08"] / look["B04"] for look in trees]) > 4


def test_the_air_brightens_blue_and_hides_the_ground_in_b10(clear):
    blue = [np.median(bands(s, "S2L1C")["B02"]) - np.median(bands(s, "S2L2A")["B02"]) for s in clear]
    dark = [s for s in clear if np.median(bands(s, "S2L2A")["B02"]) < 1500]
    assert np.median(blue) > 200
    assert all(np.median(bands(s, "S2L1C")["B02"]) > np.median(bands(s, "S2L2A")["B02"]) for s in dark)
    cirrus = [np.median(bands(s, "S2L1C")["B10"]) for s in clear if s.rasters["DEM"].grids[10].mean() < 1500]
    assert np.median(cirrus) < 60 and np.mean(np.array(cirrus) < 150) > 0.75


def test_clouds_are_as_frequent_as_in_screened_archives():
    earth = ProceduralEarth(samples=300, tile=32, modalities=["NDVI"])
    cover = np.array([earth[i].attributes["cloud_fraction"] for i in range(300)])
    assert 0.15 < (cover > 0).mean() < 0.45
    assert 0.01 < (cover > 0.7).mean() < 0.15


def test_clouds_brighten_optical_pictures_and_leave_radar_alone(scenes):
    cloudy = [scene for scene in scenes if scene.attributes["cloud_fraction"] > 0.3]
    assert cloudy
    for scene in cloudy:
        assert np.quantile(bands(scene, "S2L2A")["B02"], 0.95) > 3000
        assert np.nanmax(bands(scene, "S1RTC")["VV"]) < 20


def test_radar_levels_are_those_of_c_band(scenes):
    levels = {
        name: np.mean([[b.mean() for b in bands(s, name).values()] for s in scenes], 0) for name in ("S1GRD", "S1RTC")
    }
    for vv, vh in levels.values():
        assert -16 < vv < -8 and 5 < vv - vh < 9
    for scene in scenes:
        classes = scene.rasters["LULC"].grids[10][0]
        if min((classes == WATER).mean(), (classes == TREES).mean()) > 0.05:
            vertical = bands(scene, "S1RTC")["VV"]
            assert np.median(vertical[classes == WATER]) < np.median(vertical[classes == TREES]) - 2


def test_terrain_correction_takes_the_slopes_out_of_radar():
    earth = ProceduralEarth(samples=3000, tile=96, modalities=["S1GRD", "S1RTC", "DEM"])
    drawn = places.draw_places(0, np.arange(3000))
    steep = np.flatnonzero((drawn.relief > 100) & (drawn.fractions[:, WATER] < 0.2))[:8]
    assert len(steep) == 8
    dependence = []
    for i in steep:
        scene = earth[int(i)]
        rise = np.gradient(bands(scene, "DEM")["elevation"], axis=1).ravel()
        pair = [abs(np.corrcoef(rise, bands(scene, name)["VV"].ravel())[0, 1]) for name in ("S1GRD", "S1RTC")]
        dependence.append(pair)
    grd, rtc = np.mean(dependence, 0)
    assert grd > 0.3 and rtc < 0.6 * grd


def test_speckle_is_that_of_four_to_five_looks_with_correlated_neighbours():
    from data_pipelines.sources.procedural.radar import make_speckle

    speckle = make_speckle(np.random.default_rng(0), (1, 300, 300))[0]
    assert speckle.mean() == pytest.approx(1, abs=0.02)
    assert 1 / speckle.var() == pytest.approx(4.6, rel=0.12)
    around = speckle - speckle.mean()
    lags = [(around[:, :-k] * around[:, k:]).mean() / around.var() for k in (1, 2, 4)]
    assert 0.7 < lags[0] < 0.85 and 0.3 < lags[1] < 0.5 and abs(lags[2]) < 0.05


def test_coarse_bands_average_the_scene():
    """B8A (20 m) and B08 (10 m) see almost the same; averaged to 20 m they agree closely in structure."""
    earth = ProceduralEarth(samples=20, tile=96, modalities=["S2L2A"])
    agreement = []
    for i in range(20):
        grids = earth[i].rasters["S2L2A"].grids
        fine = grids[10][3].reshape(48, 2, 48, 2).mean((1, 3))
        agreement.append(np.corrcoef(fine.ravel(), grids[20][3].ravel())[0, 1])
    assert np.median(agreement) > 0.98


def test_samples_differ():
    earth = ProceduralEarth(samples=8, tile=32, modalities=["S2L2A"])
    looks = [earth[i].rasters["S2L2A"].grids[10].tobytes() for i in range(8)]
    assert len(set(looks)) == 8


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"modalities": ["S2L2B"]}, "S2L2B"),
        ({"modalities": []}, "nothing"),
        ({"tile": 4}, "tile=4"),
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options_are_named(options, culprit):
    with pytest.raises(DataError, match=culprit):
        ProceduralEarth(**options)


def test_positions_outside_are_refused():
    earth = ProceduralEarth(samples=3, tile=32)
    for i in (-1, 3):
        with pytest.raises(IndexError):
            earth[i]


def test_opens_by_name():
    earth = open_source("procedural", samples=4, tile=32, seed=2, modalities=["DEM"])
    assert len(earth) == 4
    assert_same(earth[1], ProceduralEarth(samples=4, tile=32, seed=2, modalities=["DEM"])[1])


def test_palettes_cover_every_material():
    from data_pipelines.sources.procedural import spectra
    from data_pipelines.sources.procedural.chance import layer_rng

    for i in range(20):
        place = places.draw_places(0, np.array([i]))[0]
        reflectance = spectra.draw_palette(layer_rng(0, i, "spectra"), place).at(0.7, 12.0)
        assert reflectance.shape == (len(MATERIALS), len(MODALITIES["S2L1C"].bands))
        assert reflectance.min() >= 0 and reflectance.max() <= 0.98
        power = spectra.backscatter_palette(layer_rng(0, i, "radar"), place, 12.0)
        assert power.shape == (len(MATERIALS), 2) and (power > 0).all()
