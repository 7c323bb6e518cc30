import shutil
from dataclasses import replace

import numpy as np
import pytest
from fakes import ORIGIN, plausible, write_tif

from data_pipelines.errors import DataError
from data_pipelines.modalities import modality
from data_pipelines.recipes.skysense import SkySenseRecipe
from data_pipelines.recipes.spec import check_batch
from data_pipelines.regions import RegionTable
from data_pipelines.sources import open_source
from data_pipelines.sources.geotiff_series import TEN_BANDS, GeoTiffSeriesSource

PIXELS = 6
OPTICAL = ("2021-06-15", "2020-12-31", "2021-01-30")
RADAR = ("2021-01-02_descending", "2021-01-02_ascending")


def place(root, key, offset=0.0, bands=None):
    """One triple sample."""
    fine = np.random.default_rng(1).integers(0, 255, (3, 32 * PIXELS, 32 * PIXELS), dtype=np.uint8)
    write_tif(root / "HR" / f"{key}.tif", fine, gsd=10 / 32, offset=offset, datetime="2021-05-01T10:00:00")
    for n, date in enumerate(OPTICAL):
        image = plausible("S2L2A", PIXELS, n)
        image = image if bands is None else image[[modality("S2L2A").band_index(band) for band in bands]]
        write_tif(root / "S2L2A" / key / f"{date}.tif", image, offset=offset, cloud_fraction=str(n / 4))
    for n, date in enumerate(RADAR):
        tags = {"datetime": f"{date[:10]}T{6 + 12 * n:02d}:00:00", "orbit": date[11:]}
        write_tif(root / "S1GRD" / key / f"{date}.tif", plausible("S1GRD", PIXELS, n), offset=offset, **tags)
    write_tif(root / "LULC" / f"{key}.tif", plausible("LULC", PIXELS), offset=offset)


@pytest.fixture
def folder(tmp_path):
    place(tmp_path, "a")
    place(tmp_path, "b", offset=600_000.0 - 600.0, bands=TEN_BANDS)
    return tmp_path


def test_series_are_read_in_the_order_of_their_dates(folder):
    source = open_source("geotiff_series", path=str(folder), modalities=("HR", "S2L2A", "S1GRD"))
    assert source.index.keys.tolist() == ["a", "b"] and (source.index.scene >= 0).all()
    sample = source[0]
    assert set(sample.rasters) == {"HR", "S2L2A", "S1GRD", "LULC"} and sample.shape == (PIXELS, PIXELS)
    assert sample.transform == (10.0, 0.0, ORIGIN[0], 0.0, -10.0, ORIGIN[1])
    series = sample.rasters["S2L2A"]
    assert series.time.astype("datetime64[D]").astype(str).tolist() == sorted(OPTICAL)
    assert series.frames["cloud_fraction"].tolist() == [0.25, 0.5, 0.0]
    first = plausible("S2L2A", PIXELS, 1)
    assert np.array_equal(series.grids[10][0], first[[1, 2, 3, 7]])
    assert np.array_equal(series.grids[20][0], first[[4, 5, 6, 8, 10, 11]][:, ::2, ::2])
    radar = sample.rasters["S1GRD"]
    assert radar.time.astype(str).tolist() == ["2021-01-02T06:00:00", "2021-01-02T18:00:00"]
    assert radar.frames["ascending"].tolist() == [False, True]
    assert str(sample.rasters["HR"].time) == "2021-05-01T10:00:00"
    assert sample.rasters["HR"].grids[10].shape == (3, 32 * PIXELS, 32 * PIXELS)


def test_ten_bands_are_enough(folder):
    twelve, ten = (GeoTiffSeriesSource(folder)[i].rasters["S2L2A"].grids for i in (0, 1))
    assert set(twelve) == {10, 20, 60} and set(ten) == {10, 20}
    assert all(np.array_equal(ten[gsd], twelve[gsd]) for gsd in ten)


def test_the_recipe_serves_it(folder):
    source = GeoTiffSeriesSource(folder, ("HR", "S2L2A", "S1GRD"), tile=PIXELS)
    regions = RegionTable.of(source.index.lon, source.index.lat, 4)
    shipped = {"S2L2A": 4, "S1GRD": 2}
    recipe = SkySenseRecipe(PIXELS, {"S2L2A": 2, "S1GRD": 2}, shipped, regions)
    for i in range(2):
        example = recipe(source[i], i)
        check_batch(example, recipe.batch_spec)
        assert example["S2L2A/present"].all() and not example["S2L2A/10"][3].any()


def test_what_a_place_lacks_is_absent_or_named(folder):
    shutil.rmtree(folder / "S1GRD" / "b")
    assert "S1GRD" not in GeoTiffSeriesSource(folder)[1].rasters
    with pytest.raises(DataError, match=r"S1GRD/b is missing; add it or leave S1GRD out"):
        GeoTiffSeriesSource(folder, ("HR", "S1GRD"))


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


def written(path, image, **options):
    return lambda root: write_tif(root / path, image, **options)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (rename("S2L2A/a/2020-12-31.tif", "S2L2A/a/first.tif"), r"a/first.tif has no date; name it YYYY-MM-DD.tif"),
        (rename("S2L2A/a/2020-12-31.tif", "S2L2A/a/2020-13-31.tif"), r"2020-13-31.tif has no date"),
        (
            rename("S1GRD/a/2021-01-02_ascending.tif", "S1GRD/a/2021-01-03.tif"),
            "dated 2021-01-03 by its name and 2021-01-02T18:00:00 by its datetime tag; mend one",
        ),
        (
            written("S1GRD/a/2021-01-02_third.tif", plausible("S1GRD", PIXELS), datetime="2021-01-02T06:00:00"),
            r"are of the same time; tag them with their datetime or remove one",
        ),
        (
            written("HR/a.tif", np.zeros((3, 190, 192), np.uint8), gsd=10 / 32),
            r"HR/a.tif is 192 x 190 pixels, .* has 6 x 6 of 10 m; cut it to 192 x 192",
        ),
        (
            written("HR/a.tif", np.zeros((3, 192, 192), np.uint8), gsd=0.5),
            r"HR/a.tif has pixels of 0.5 x -0.5; resample it to a north-up grid of 0.3125 m",
        ),
        (
            written("HR/a.tif", np.zeros((3, 192, 192), np.uint8), gsd=10 / 32, offset=60.0),
            r"HR/a.tif lies 6 pixels off .*; cut both on the same grid",
        ),
        (written("S2L2A/a/2021-01-30.tif", plausible("S2L2A", PIXELS)[:7]), "has 7 bands, S2L2A has 12"),
        (written("S2L2A/a/2021-01-30.tif", plausible("S2L2A", PIXELS + 1)), "is 7 x 7 pixels"),
        (written("S1GRD/a/2021-02-01.tif", plausible("S1GRD", PIXELS), epsg=32632), "reproject one to the other"),
        (lambda root: (root / "S2L2A/a/2021-06-15.tif").write_bytes(b"II*"), "2021-06-15.tif cannot be read"),
    ],
)
def test_wrong_files_are_named_when_they_are_read(folder, harm, message):
    harm(folder)
    source = GeoTiffSeriesSource(folder, ("HR", "S2L2A", "S1GRD"))
    with pytest.raises(DataError, match=message):
        source[0]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (written("S2L2A/c.tif", plausible("S2L2A", PIXELS)), r"c.tif is no series; S2L2A wants one folder a place"),
        (written("DEM/a.tif", plausible("DEM", PIXELS)), "DEM is none of HR, S2L2A, S1GRD, LULC"),
        (lambda root: shutil.rmtree(root / "S1GRD"), "has no folder S1GRD"),
    ],
)
def test_wrong_folders_are_named_on_opening(folder, harm, message):
    harm(folder)
    with pytest.raises(DataError, match=message):
        GeoTiffSeriesSource(folder, ("HR", "S2L2A", "S1GRD"))


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "S2L2A").mkdir()
    with pytest.raises(DataError, match=r"holds no series; expected .*/S2L2A/<key>/<YYYY-MM-DD>\.tif"):
        GeoTiffSeriesSource(tmp_path)


def test_web_mercator_pixels_pass(tmp_path):
    """9.555 m of Sentinel-2 and a 32nd of it, as SkySense's own corpus has them."""
    size = 40_075_016.68557849 / 2**22
    for n, date in enumerate(OPTICAL):
        write_tif(tmp_path / "S2L2A/m" / f"{date}.tif", plausible("S2L2A", PIXELS, n), epsg=3857, gsd=size)
    fine = np.zeros((3, 32 * PIXELS, 32 * PIXELS), np.uint8)
    write_tif(tmp_path / "HR/m.tif", fine, epsg=3857, gsd=size / 32)
    sample = GeoTiffSeriesSource(tmp_path)[0]
    assert sample.transform[0] == pytest.approx(9.5546, abs=1e-4) and sample.epsg == 3857
    assert replace(sample, key="n").shape == (PIXELS, PIXELS)
