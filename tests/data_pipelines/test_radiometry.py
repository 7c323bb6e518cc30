import numpy as np
import pytest
from fakes import plausible
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import radiometry
from data_pipelines.errors import DataError
from data_pipelines.modalities import MODALITIES, Unit, modality
from data_pipelines.sample import Raster


def one(values, unit: Unit) -> Raster:
    return Raster({10: np.asarray(values)[None]}, unit)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MODALITIES)), st.integers(1, 31), st.integers(0, 9), st.booleans())
def test_native_grids_lose_nothing(name, pixels, seed, series):
    array = plausible(name, pixels, seed)
    array = np.stack([array, array[:, ::1]]) if series else array
    raster = Raster({10: array}, modality(name).unit)
    native = radiometry.to_native_grids(name, raster)
    for gsd, grid in native.grids.items():
        assert grid.shape[-1] == -(-pixels // (gsd // 10)) and grid.dtype == array.dtype
    back = radiometry.to_10m(name, native)
    assert list(back.grids) == [10] and np.array_equal(back.grids[10], array)
    again = radiometry.to_native_grids(name, back)
    assert all(np.array_equal(again.grids[gsd], grid) for gsd, grid in native.grids.items())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 31), st.data())
def test_any_pixel_that_is_no_copy_is_noticed(pixels, data):
    array = plausible("S2L2A", pixels)
    coarse = [i for i, band in enumerate(modality("S2L2A").bands) if band.gsd > 10]
    band = data.draw(st.sampled_from(coarse))
    y, x = data.draw(st.integers(0, pixels - 1)), data.draw(st.integers(0, pixels - 1))
    step = modality("S2L2A").bands[band].gsd // 10
    alone = y // step * step == pixels - 1 and x // step * step == pixels - 1  # a cell of one pixel is its own copy
    array[band, y, x] += 1
    raster = Raster({10: array}, Unit.DN10000)
    if alone:
        radiometry.to_native_grids("S2L2A", raster)
    else:
        with pytest.raises(DataError, match=f"S2L2A band {modality('S2L2A').band_names[band]} .* 60 m lattice"):
            radiometry.to_native_grids("S2L2A", raster)


def test_grids_that_do_not_fit_are_refused():
    native = radiometry.to_native_grids("S2L2A", Raster({10: plausible("S2L2A", 12)}, Unit.DN10000))
    with pytest.raises(DataError, match="do not cover"):
        radiometry.to_10m("S2L2A", Raster({**native.grids, 20: native.grids[20][..., :5]}, Unit.DN10000))
    with pytest.raises(DataError, match="12 bands"):
        radiometry.to_native_grids("S2L2A", Raster({10: native.grids[10]}, Unit.DN10000))


def test_conversions_are_explicit_and_inverse():
    dn = one(np.arange(-5, 16_000, 7).astype(np.int16), Unit.DN10000)
    reflectance = radiometry.dn_to_reflectance(dn)
    assert reflectance.unit is Unit.REFLECTANCE and reflectance.grids[10].dtype == np.float32
    assert np.array_equal(radiometry.reflectance_to_dn(reflectance).grids[10], dn.grids[10])
    db = one(np.linspace(-35, 5, 100, dtype=np.float32), Unit.DB)
    power = radiometry.db_to_linear(db)
    assert power.unit is Unit.LINEAR and np.isclose(radiometry.db_to_linear(one([10.0], Unit.DB)).grids[10], 10)
    assert np.allclose(radiometry.linear_to_db(power).grids[10], db.grids[10], atol=1e-4)
    assert np.isnan(radiometry.linear_to_db(one([0.0, -1.0], Unit.LINEAR)).grids[10]).all()


@pytest.mark.parametrize(
    "convert, unit",
    [
        (radiometry.dn_to_reflectance, Unit.REFLECTANCE),
        (radiometry.reflectance_to_dn, Unit.DN10000),
        (radiometry.db_to_linear, Unit.LINEAR),
        (radiometry.linear_to_db, Unit.DB),
    ],
)
def test_a_mix_up_of_units_is_an_error(convert, unit):
    with pytest.raises(DataError, match=f"is in {unit.value}, expected"):
        convert(one([0.5], unit))


@pytest.mark.parametrize("value", [np.nan, 4.0])
def test_reflectance_that_is_no_digital_number_is_refused(value):
    with pytest.raises(DataError, match="int16"):
        radiometry.reflectance_to_dn(one([value], Unit.REFLECTANCE))


@pytest.mark.parametrize(
    "values, unit, hint",
    [
        (np.linspace(0.001, 1.5, 50), Unit.DB, "linear"),
        (np.linspace(-25, 1, 50), Unit.LINEAR, "db"),
        (np.linspace(100, 3000, 50), Unit.REFLECTANCE, "dn10000"),
        (np.linspace(0.01, 1.2, 50), Unit.DN10000, "reflectance"),
        (-np.linspace(1, 25, 50), Unit.DN10000, "db"),
        (np.linspace(100, 3000, 50), Unit.DB, "dn10000"),
        (np.array([1, 2, 11], np.uint8), Unit.CLASS, "class 11"),
        (np.array([1, -3], np.int16), Unit.CLASS, "class -3"),
        (np.array([1, 2.5]), Unit.CLASS, "class 2.5"),
        (np.array([100, -32768], np.int16), Unit.METRE, "what is no data"),
        (np.linspace(0, 200, 9), Unit.INDEX, "-1..1"),
    ],
)
def test_numbers_that_contradict_their_unit_are_refused(values, unit, hint):
    with pytest.raises(DataError, match=hint):
        radiometry.check_plausible("x.tif", one(values, unit))


def test_plausible_numbers_pass(fixtures_dir):
    for name in MODALITIES:
        radiometry.check_plausible(name, Raster({10: plausible(name, 12)}, modality(name).unit))
    radiometry.check_plausible("bright city", one(np.r_[np.full(95, 3.0), np.full(5, -2.0)], Unit.DB))
    radiometry.check_plausible("snow", one(np.full(9, 1.3), Unit.REFLECTANCE))
    radiometry.check_plausible("all no-data", one(np.full(9, np.nan), Unit.DB))
