import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.modalities import LAND_COVER, modality
from data_pipelines.radiometry import check_plausible
from data_pipelines.sources import open_source
from data_pipelines.sources.procedural import ProceduralEarth, places
from data_pipelines.sources.procedural.acquisition import acquire, seasons
from data_pipelines.sources.procedural.chance import layer_rng
from data_pipelines.sources.procedural.land_cover import map_land_cover
from data_pipelines.sources.procedural.passes import draw_passes
from data_pipelines.sources.procedural.series import ProceduralSeries
from data_pipelines.sources.procedural.surface import cover_ground
from data_pipelines.sources.procedural.terrain import make_terrain

BUILT, TREES, WATER = (LAND_COVER.index(name) for name in ("built", "trees", "water"))


@pytest.fixture(scope="module")
def earth():
    return ProceduralSeries(samples=400, tile=16)


@pytest.fixture(scope="module")
def samples(earth):
    return [earth[i] for i in range(30)]


def as_bytes(raster):
    facts = {name: fact.tolist() for name, fact in raster.frames.items()}
    return [grid.tobytes() for grid in raster.grids.values()], str(raster.time), facts


def brightness(sample):
    """(16, 16) mean of what the HR image shows of each 10 m pixel, as reflectance up to a factor."""
    picture = (sample.rasters["HR"].grids[10].astype(np.float32) / 255) ** 2
    return picture.reshape(3, 16, 32, 16, 32).mean((0, 2, 4))


def test_samples_hold_an_image_and_two_series(samples):
    for sample in samples:
        assert set(sample.rasters) == {"HR", "S2L2A", "S1GRD", "LULC"} and sample.shape == (16, 16)
        assert sample.rasters["HR"].grids[10].shape == (3, 512, 512)
        for name, most in (("S2L2A", 20), ("S1GRD", 10)):
            raster, table = sample.rasters[name], modality(name)
            assert 0.75 * most <= len(raster.time) <= most
            for gsd, bands in table.grids.items():
                side = -(-16 * 10 // gsd)
                assert raster.grids[gsd].shape == (len(raster.time), len(bands), side, side)
                assert raster.grids[gsd].dtype == table.dtype
            assert {len(fact) for fact in raster.frames.values()} == {len(raster.time)}
        for name, raster in sample.rasters.items():
            check_plausible(name, raster)


def test_a_sample_depends_on_seed_and_number_alone(earth, samples):
    other = ProceduralSeries(samples=8, tile=16)
    other[5]
    assert all(as_bytes(other[3].rasters[name]) == as_bytes(raster) for name, raster in samples[3].rasters.items())
    assert as_bytes(ProceduralSeries(8, 16, seed=1)[3].rasters["HR"]) != as_bytes(samples[3].rasters["HR"])


def test_a_modality_does_not_depend_on_the_others_asked_for(samples):
    for name in ("HR", "S2L2A", "S1GRD"):
        part = ProceduralSeries(400, 16, modalities=[name])[7]
        assert set(part.rasters) == {name, "LULC"}
        assert as_bytes(part.rasters[name]) == as_bytes(samples[7].rasters[name])


def test_the_ground_is_that_of_the_single_dates(earth, samples):
    single = ProceduralEarth(samples=400, tile=16, modalities=["LULC"])
    assert np.array_equal(single.index.keys, earth.index.keys) and np.array_equal(single.index.split, earth.index.split)
    for i in (0, 4, 9):
        assert single[i].rasters["LULC"].grids[10].tobytes() == samples[i].rasters["LULC"].grids[10].tobytes()
        assert (single[i].transform, single[i].epsg, single[i].lon) == (
            samples[i].transform,
            samples[i].epsg,
            samples[i].lon,
        )


def test_many_seasons_at_once_are_each_by_itself():
    for i in (2, 6, 93):
        place = places.draw_places(0, np.array([i]))[0]
        terrain = make_terrain(layer_rng(0, i, "terrain"), place, 18)
        land = map_land_cover(layer_rng(0, i, "pattern"), place, terrain, 16)
        passes = [acquire(np.random.default_rng(k), place) for k in range(5)]
        together = cover_ground(layer_rng(0, i, "surface"), place, land, seasons(passes))
        for k, seen in enumerate(passes):
            alone = cover_ground(layer_rng(0, i, "surface"), place, land, seen.season)
            np.testing.assert_allclose(together.visible[:, k], alone.visible, atol=1e-5)
            np.testing.assert_allclose(together.cover[:, k], alone.cover, atol=1e-5)


def test_the_image_shows_the_ground_of_the_series(samples):
    """Averaged over 10 m, it agrees with the clear Sentinel-2 picture of the nearest day."""
    agreement = []
    for sample in samples:
        series = sample.rasters["S2L2A"]
        apart = np.abs((series.time - sample.rasters["HR"].time) / np.timedelta64(1, "D"))
        apart[series.frames["cloud_fraction"] > 0] = np.inf
        if apart.min() < 20 and len(np.unique(sample.rasters["LULC"].grids[10])) > 1:
            visible = series.grids[10][int(apart.argmin()), :3].astype(np.float32).mean(0)
            agreement.append(np.corrcoef(visible.ravel(), brightness(sample).ravel())[0, 1])
    assert len(agreement) > 8 and np.median(agreement) > 0.7


def test_the_image_has_detail_within_10_m(earth):
    """Towns and woods are rough, water is smooth."""
    rough = {BUILT: [], TREES: [], WATER: []}
    drawn = ProceduralSeries(400, 16, modalities=["HR"])
    for land_cover, found in rough.items():
        for i in np.flatnonzero(earth.index.scene == land_cover)[:4]:
            sample = drawn[int(i)]
            mask = sample.rasters["LULC"].grids[10][0] == land_cover
            blocks = sample.rasters["HR"].grids[10].reshape(3, 16, 32, 16, 32).std((2, 4)).mean(0)
            found.append(float(np.median(blocks[mask])))
    assert np.median(rough[BUILT]) > 2 * np.median(rough[WATER])
    assert np.median(rough[TREES]) > 1.5 * np.median(rough[WATER])


def test_dates_run_through_a_year_with_gaps(samples):
    gaps = []
    for sample in samples:
        for name in ("S2L2A", "S1GRD"):
            times = sample.rasters[name].time
            days = times.astype("datetime64[D]")
            assert (np.diff(times) > np.timedelta64(0, "s")).all()
            assert days[-1] - days[0] <= np.timedelta64(366, "D")
        gaps.append(np.diff(sample.rasters["S2L2A"].time.astype("datetime64[D]")).astype(int))
    together = np.concatenate(gaps)
    assert together.min() >= 4 and np.median(together) < 25 and max(gap.max() for gap in gaps) > 45


def test_seasons_show_in_the_series(earth):
    """Temperate crops and woods are greener in summer than in winter."""
    swings = []
    for i in np.flatnonzero((np.abs(earth.index.lat) > 40) & (earth.index.scene == TREES))[:6]:
        series = ProceduralSeries(400, 16, modalities=["S2L2A"])[int(i)].rasters["S2L2A"]
        clear = series.frames["cloud_fraction"] < 0.05
        fine = series.grids[10][clear].astype(np.float32)
        index = ((fine[:, 3] - fine[:, 2]) / (fine[:, 3] + fine[:, 2])).mean((1, 2))
        if clear.sum() > 4:
            swings.append(index.max() - index.min())
    assert np.median(swings) > 0.2


def test_clouds_are_told_and_seen(samples):
    shares = np.concatenate([sample.rasters["S2L2A"].frames["cloud_fraction"] for sample in samples])
    assert 0.35 < (shares < 0.01).mean() < 0.85 and (shares > 0.5).mean() > 0.08
    for sample in samples:
        series = sample.rasters["S2L2A"]
        blue = series.grids[10][:, 0].astype(np.float32).mean((1, 2))
        covered, clear = series.frames["cloud_fraction"] > 0.9, series.frames["cloud_fraction"] == 0
        if covered.any() and clear.any() and blue[clear].min() < 2000:
            assert blue[covered].min() > blue[clear].min() + 1000


def test_both_orbits_pass_and_see_slopes_from_their_sides():
    place = places.draw_places(0, np.array([0]))[0]
    passes = draw_passes(np.random.default_rng(1), place, 20, 10)
    looks = {(seen.look, seen.incidence) for seen in passes.radar}
    assert len(looks) == 2 and len({look for look, _ in looks}) == 2
    drawn = ProceduralSeries(40, 16, modalities=["S1GRD"])
    shares = [drawn[i].rasters["S1GRD"].frames["ascending"].mean() for i in range(12)]
    assert any(0 < share < 1 for share in shares)


def test_radar_is_steadier_over_woods_than_over_water(earth):
    drawn = ProceduralSeries(400, 16, modalities=["S1GRD"])
    spread = {}
    for land_cover in (TREES, WATER):
        found = []
        for i in np.flatnonzero(earth.index.scene == land_cover)[:5]:
            sample = drawn[int(i)]
            mask = sample.rasters["LULC"].grids[10][0] == land_cover
            found.append(sample.rasters["S1GRD"].grids[10][:, 0, mask].astype(np.float32).mean(1).std())
        spread[land_cover] = np.median(found)
    assert spread[WATER] > spread[TREES]


def test_frames_and_sizes_are_options():
    sample = ProceduralSeries(4, tile=21, frames={"S2L2A": 4, "S1GRD": 3})[1]
    assert 3 <= len(sample.rasters["S2L2A"].time) <= 4 and 2 <= len(sample.rasters["S1GRD"].time) <= 3
    assert sample.rasters["HR"].grids[10].shape == (3, 672, 672)
    assert sample.rasters["S2L2A"].grids[20].shape[-2:] == (11, 11)
    opened = open_source("procedural_series", samples=4, tile=21, frames={"S2L2A": 4, "S1GRD": 3}, modalities=["S2L2A"])
    assert as_bytes(opened[1].rasters["S2L2A"]) == as_bytes(sample.rasters["S2L2A"])


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"modalities": ["S1RTC"]}, "S1RTC"),
        ({"modalities": []}, "nothing"),
        ({"frames": {"S2L2A": 0}}, "0 frames of S2L2A"),
        ({"frames": {"DEM": 3}}, "3 frames of DEM"),
        ({"tile": 4}, "tile=4"),
    ],
)
def test_bad_options_are_named(options, culprit):
    with pytest.raises(DataError, match=culprit):
        ProceduralSeries(**options)


def test_positions_outside_are_refused(earth):
    for i in (-1, 400):
        with pytest.raises(IndexError):
            earth[i]


def test_trees_of_the_map_are_crowns_in_the_image():
    """As much of the image is crowns as the map says of trees."""
    from data_pipelines.sources.procedural.textures import close_textures

    canopy = close_textures().canopy
    for share in (0.1, 0.5, 0.9):
        assert (canopy > 1 - share).mean() == pytest.approx(share, abs=1e-3)
