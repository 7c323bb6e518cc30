import numpy as np
import pytest
import rasterio
from fakes import plausible, write_folder, write_tif

from data_pipelines import radiometry
from data_pipelines.errors import DataError
from data_pipelines.modalities import SCENE_CLASSES, Unit, modality
from data_pipelines.sources.geotiff import GeoTiffSource, scene_class


def test_real_tiles(fixtures_dir):
    source = GeoTiffSource(fixtures_dir / "tiles")
    assert source.index.keys.tolist() == ["282D_485L_3_3", "38D_378R_2_3", "433D_629L_3_1"]
    assert np.allclose(source.index.lon, [-48.106, 34.066, -72.479], atol=1e-3)
    assert np.allclose(source.index.lat, [-25.316, -3.401, -38.831], atol=1e-3)
    assert set(source.index.split) == {"train"}
    sample = source[0]
    assert [SCENE_CLASSES[i] for i in source.index.scene] == ["water", "rangeland", "crops"]
    assert sample.epsg == 32722 and sample.shape == (224, 224) and sample.attributes["scene"] == 1
    for name, raster in sample.rasters.items():
        table = modality(name)
        assert raster.unit is table.unit and all(grid.dtype == table.dtype for grid in raster.grids.values())
        with rasterio.open(fixtures_dir / "tiles" / name / f"{sample.key}.tif") as file:
            assert np.array_equal(radiometry.to_10m(name, raster).grids[10], file.read())
    assert sample.rasters["S2L2A"].grids[60].shape == (2, 38, 38)
    assert sample.rasters["S1RTC"].time == np.datetime64("2021-07-21T08:40:10")
    # The Sentinel-2 files carry no time of their own; the composite of the same image does.
    assert sample.rasters["S2L1C"].time == np.datetime64("2021-07-23T13:22:41")
    assert sample.rasters["DEM"].time is None


def test_only_what_is_asked_for_is_read_and_required(tmp_path):
    root = write_folder(tmp_path)
    assert list(GeoTiffSource(root, modalities=("S1RTC", "S2L2A"))[1].rasters) == ["S2L2A", "S1RTC"]
    (root / "DEM" / "b.tif").unlink()
    assert list(GeoTiffSource(root)[1].rasters) == ["S2L2A", "S1RTC", "LULC"]
    assert len(GeoTiffSource(root, modalities=("S2L2A",), samples=2)) == 2
    with pytest.raises(DataError, match=r"DEM/b.tif is missing; add it or leave DEM out"):
        GeoTiffSource(root, modalities=("S2L2A", "DEM"))
    with pytest.raises(DataError, match="no folder NDVI"):
        GeoTiffSource(root, modalities=("NDVI",))


def test_aliases_name_folders_too(tmp_path):
    write_folder(tmp_path, modalities=("RGB",))
    assert list(GeoTiffSource(tmp_path)[0].rasters) == ["S2RGB"]
    write_folder(tmp_path, modalities=("S2RGB",))
    with pytest.raises(DataError, match="same modality"):
        GeoTiffSource(tmp_path)


def test_half_a_pixel_is_tolerated(tmp_path):
    root = write_folder(tmp_path, keys=("a",))
    write_tif(root / "DEM" / "a.tif", plausible("DEM", 24), offset=4.9)
    assert GeoTiffSource(root)[0].transform[2] == 600_000
    write_tif(root / "DEM" / "a.tif", plausible("DEM", 24), offset=-5.1)
    with pytest.raises(DataError, match=r"DEM/a.tif lies 0.51 pixels off .*S2L2A/a.tif"):
        GeoTiffSource(root)


def s2(pixels=24, bands=12):
    return plausible("S2L2A", pixels)[:bands]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: write_tif(f, s2(30)), r"S2L2A/b.tif is 30 x 30 pixels, most others 24 x 24"),
        (lambda f: write_tif(f, s2(bands=11)), r"S2L2A/b.tif has 11 bands, S2L2A has 12 \(B01, .*B12\)"),
        (lambda f: write_tif(f, s2(), epsg=32632), r"b.tif is in EPSG:326\d\d, .*b.tif in EPSG:326\d\d; reproject"),
        (lambda f: write_tif(f, s2(), epsg=4326, gsd=1e-4), "resample it to a north-up grid of 10 m"),
        (lambda f: write_tif(f, s2(), gsd=20), "pixels of 20 x -20; resample"),
        (lambda f: write_tif(f, s2(), datetime="yesterday"), "datetime tag 'yesterday'"),
    ],
)
def test_a_header_that_does_not_fit_is_refused_on_opening(tmp_path, spoil, message):
    root = write_folder(tmp_path)
    spoil(root / "S2L2A" / "b.tif")
    with pytest.raises(DataError, match=message) as error:
        GeoTiffSource(root)
    assert "\n" not in str(error.value)


def no_coordinates(path):
    with rasterio.open(path, "w", driver="GTiff", count=12, width=24, height=24, dtype="int16") as file:
        file.write(s2())


def test_a_tile_without_coordinates_is_refused_without_noise(tmp_path, recwarn):
    root = write_folder(tmp_path, keys=("a",))
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        no_coordinates(root / "S2L2A" / "a.tif")
    recwarn.clear()
    with pytest.raises(DataError, match=r"S2L2A/a.tif has no coordinate system"):
        GeoTiffSource(root)
    assert not recwarn.list


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def with_nan(path):
    array = plausible("S1RTC", 24)
    array[1, 3, 4] = np.nan
    write_tif(path, array)


def with_nodata(path):
    write_tif(path, plausible("S1RTC", 24))
    with rasterio.open(path, "r+") as file:
        file.nodata = float(file.read(1)[0, 0])


@pytest.mark.parametrize(
    "file, spoil, message",
    [
        ("S2L2A", lambda f: truncate(f, 3000), "cannot be read"),
        ("S2L2A", lambda f: truncate(f, 0), "cannot be read"),
        ("S2L2A", lambda f: f.write_text("no tiff"), "cannot be read"),
        ("S1RTC", with_nan, "no data .NaN. in 0.17% of band VH"),
        ("S1RTC", with_nodata, "no data .NaN. in .* of band VV"),
        ("S1RTC", lambda f: write_tif(f, 10 ** (plausible("S1RTC", 24).astype("f4") / 10)), "look like linear"),
        ("S2L2A", lambda f: write_tif(f, s2() / np.float32(10_000)), "look like reflectance"),
        ("S2L2A", lambda f: write_tif(f, s2() + np.float32(0.5)), "float32 numbers that int16 cannot"),
        ("LULC", lambda f: write_tif(f, plausible("LULC", 24) + np.uint8(3)), "class"),
    ],
)
def test_pixels_that_cannot_be_used_are_refused_on_reading(tmp_path, file, spoil, message):
    root = write_folder(tmp_path)
    spoil(root / file / "b.tif")
    source = GeoTiffSource(root)
    with pytest.raises(DataError, match=f"{file}/b.tif.*{message}") as error:
        source[1]
    assert "\n" not in str(error.value)
    assert source[0].key == "a" and source[2].key == "c"


def test_a_spoilt_modality_that_is_not_used_does_no_harm(tmp_path):
    root = write_folder(tmp_path)
    with_nan(root / "S1RTC" / "b.tif")
    truncate(root / "LULC" / "b.tif", 100)
    source = GeoTiffSource(root, modalities=("S2L2A",))
    assert list(source[1].rasters) == ["S2L2A"] and source.index.scene[1] == -1 and source.index.scene[0] >= 0


def test_a_sample_of_which_nothing_opens_stays_in_the_index(tmp_path):
    root = write_folder(tmp_path, modalities=("S2L2A",))
    truncate(root / "S2L2A" / "b.tif", 0)
    source = GeoTiffSource(root)
    assert len(source) == 3 and np.isnan(source.index.lon[1]) and source.index.region[1] == -1
    with pytest.raises(DataError, match=r"b.tif cannot be read"):
        source[1]
    for key in ("a", "c"):
        truncate(root / "S2L2A" / f"{key}.tif", 0)
    with pytest.raises(DataError, match=r"none of the files in .* can be read"):
        GeoTiffSource(root)


def test_folders_that_are_no_dataset_are_refused(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        GeoTiffSource(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is empty"):
        GeoTiffSource(tmp_path)
    (tmp_path / "S2L2A").mkdir()
    with pytest.raises(DataError, match=r"holds no .tif files"):
        GeoTiffSource(tmp_path)
    (tmp_path / "S2L2B").mkdir()
    with pytest.raises(DataError, match=r"S2L2B: unknown modality .* did you mean S2L2A"):
        GeoTiffSource(tmp_path)


def test_tiles_smaller_than_asked_for_are_refused(tmp_path):
    root = write_folder(tmp_path)
    assert len(GeoTiffSource(root, tile=24)) == 3
    with pytest.raises(DataError, match="24 x 24 pixels, smaller than tile=30"):
        GeoTiffSource(root, tile=30)


def test_float64_is_stored_as_the_float16_that_it_is(tmp_path):
    root = write_folder(tmp_path, keys=("a",), modalities=("S1RTC",))
    array = plausible("S1RTC", 24)
    write_tif(root / "S1RTC" / "a.tif", array.astype(np.float64))
    raster = GeoTiffSource(root)[0].rasters["S1RTC"]
    assert raster.unit is Unit.DB and np.array_equal(raster.grids[10], array)


@pytest.mark.parametrize(
    "cover, elevation, expected",
    [
        ([1] * 95 + [2] * 5, [0] * 100, "ocean"),
        ([1] * 95 + [2] * 5, [0] * 99 + [1], "water"),
        ([1] * 94 + [2] * 6, [0] * 100, "water"),
        ([1] * 100, None, "water"),
        ([0] * 90 + [4] * 6 + [5] * 4, [9] * 100, "crops"),
    ],
)
def test_scene_class(cover, elevation, expected):
    elevation = None if elevation is None else np.asarray(elevation)
    assert SCENE_CLASSES[scene_class(np.asarray(cover, np.uint8), elevation)] == expected


def test_a_tile_without_land_cover_has_no_class():
    assert scene_class(np.zeros(9, np.uint8), None) == -1


def test_bands_that_are_no_copies_of_coarse_pixels_stay_at_10_m(tmp_path):
    root, image = write_folder(tmp_path), np.random.default_rng(0).integers(1, 9999, (12, 24, 24), "int16")
    write_tif(root / "S2L2A" / "b.tif", image)
    source = GeoTiffSource(root)
    assert list(source[1].rasters["S2L2A"].grids) == [10] and list(source[0].rasters["S2L2A"].grids) == [10, 20, 60]
    assert np.array_equal(source[1].rasters["S2L2A"].grids[10], image)


def test_an_audit_tells_of_wrong_headers_and_goes_on(tmp_path):
    root = write_folder(tmp_path)
    write_tif(root / "S1RTC" / "b.tif", plausible("S1RTC", 24), epsg=32632)
    with pytest.raises(DataError, match=r"S1RTC/b.tif is in EPSG:32632"):
        GeoTiffSource(root)
    source = GeoTiffSource(root, check=False)
    sample, flags = source.unchecked(1)
    assert "S1RTC" not in sample.rasters and set(sample.rasters) == {"S2L2A", "DEM", "LULC"}
    assert len(flags["S1RTC"]) == 1 and flags["S1RTC"][0].startswith("header: ") and "EPSG:32632" in flags["S1RTC"][0]
    assert source.unchecked(0)[1]["S1RTC"] == [] and len(source) == 3
