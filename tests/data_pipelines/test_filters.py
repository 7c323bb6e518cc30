import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.filters import matching, parse_filter
from data_pipelines.modalities import SCENE_CLASSES
from data_pipelines.sources import Index

CROPS, BUILT = SCENE_CLASSES.index("crops"), SCENE_CLASSES.index("built")


def index() -> Index:
    return Index.at(
        ["a", "b c", "d", "e"],
        np.array([3.0, -60.0, 100.0, np.nan]),
        np.array([45.0, -10.0, 70.0, np.nan]),
        np.array([CROPS, BUILT, 1, -1]),
        further={
            "cloud": np.array([5.0, 20.0, np.nan, 0.0], np.float32),
            "time": np.array(["2019-06-01", "2021-01-01", "2022-07-01", "NaT"], "datetime64[s]"),
            "country": np.array(["Ireland", "New Zealand", "", "Chad"]),
        },
    )


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", "a,b c,d,e"),
        ("cloud < 20", "a,e"),
        ("cloud<=20", "a,b c,e"),
        ("cloud != 5", "b c,e"),  # where it is unknown, nothing holds
        ("cloud >= 0 and lat > 0", "a"),
        ("scene == crops", "a"),
        ("scene != crops", "b c,d"),
        ("scene in (crops, built)", "a,b c"),
        ("scene not in (crops, built)", "d"),
        (f"scene = {CROPS}", "a"),
        ("climate == polar", "d"),
        ("climate in (tropical, temperate)", "a,b c"),
        ("time >= 2020-06-30", "b c,d"),
        ("time < 2022", "a,b c"),
        ("key == 'b c'", "b c"),
        ('country in ("New Zealand", Chad)', "b c,e"),
        ("split == train and country != Chad", "a,b c,d"),
        ("lon > -70.5 and lon < -1e-3", "b c"),
    ],
)
def test_what_is_kept(text, kept):
    data = index()
    assert ",".join(data.keys[matching(data, text)]) == kept


def test_regions_are_numbers():
    data = index()
    assert data.keys[matching(data, f"region in ({data.region[0]}, {data.region[2]})")].tolist() == ["a", "d"]
    assert not matching(data, "region != 5")[3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clouds < 20", r"unknown column 'clouds' \(did you mean cloud\?\); there are key, lon, lat, region, climate"),
        ("cloud < 20 or lat > 0", "expected and, not 'or'"),
        ("cloud <", "expected a value, not its end"),
        ("cloud", "expected one of .* not, not its end"),
        ("< 20", "expected a column, not '<'"),
        ("cloud < 20 and", "expected a column, not its end"),
        ("cloud near 20", "expected one of < <= > >= == = != in not, not 'near'"),
        ("scene in crops", r"expected \(, not 'crops'"),
        ("scene in (crops built)", r"expected , or \), not 'built'"),
        ("scene == wheat", "'wheat' is no scene; there are nodata, water"),
        ("cloud < low", "cloud is compared with a number, not 'low'"),
        ("time > yesterday", r"time is compared with a date \(2020-01-31\), not 'yesterday'"),
        ("country < Chad", "country has no order"),
        ("country == 'Chad", 'cannot be read at "\'Chad"; close what is quoted'),
        ("__import__('os') == 1", "expected"),
    ],
)
def test_mistakes_are_one_line(text, message):
    with pytest.raises(DataError, match=message) as error:
        matching(index(), text)
    assert "\n" not in str(error.value) and repr(text) in str(error.value)


@given(st.text(max_size=30))
def test_no_text_does_anything_but_filter_or_be_refused(text):
    data = index()
    try:
        kept = matching(data, text)
    except DataError:
        return
    assert kept.shape == (4,) and (kept.all() or parse_filter(text))
