import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terra_jax.errors import ConfigError
from terra_jax.terramind.coordinates import CoordinateTokenizer


@pytest.fixture(scope="module")
def built() -> CoordinateTokenizer:
    return CoordinateTokenizer.build()


def released(path, change=lambda words: words):
    """A file as the released one is: special words among the added tokens, places in the model's vocabulary."""
    special = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", *(f"[S_{i}]" for i in range(200))]
    places = [f"lon={v / 4:.2f}" for v in range(-720, 721)] + [f"lat={v / 4:.2f}" for v in range(-360, 361)]
    words = change({word: i + len(special) for i, word in enumerate(["the", "##ing", *places])})
    added = [{"id": i, "content": word, "special": True} for i, word in enumerate(special)]
    content = {"version": "1.0", "added_tokens": added, "model": {"type": "WordPiece", "vocab": words}}
    path.write_text(json.dumps(content))
    return path


@settings(max_examples=50, deadline=None)
@given(st.floats(-180, 180), st.floats(-90, 90))
def test_places_come_back_within_an_eighth_of_a_degree(built, lon, lat):
    ids = built.tokenize(lon, lat)
    assert ids.shape == (3,) and ids.dtype == np.int32 and ids[2] == 3
    back = built.decode(ids)
    assert abs(back[0] - lon) <= 0.125 and abs(back[1] - lat) <= 0.125


def test_every_grid_value_has_a_token_of_its_own(built):
    lon, lat = np.meshgrid(np.arange(-720, 721) / 4, np.arange(-360, 361) / 4)
    ids = built.tokenize(lon, lat)
    assert len(np.unique(ids[..., 0])) == 721 and len(np.unique(ids[..., 1])) == 1441
    assert np.array_equal(built.decode(ids), (lon, lat))


def test_order_halves_and_negative_nought(built):
    words = {i: word for word, i in built._words.items()}

    def said(lon, lat):
        return [words[i] for i in built.tokenize(lon, lat)]

    assert said(30.1, -12.3) == ["lat=-12.25", "lon=30.00", "[EOS]"]
    assert said(0.125, 0.375) == ["lat=0.50", "lon=0.00", "[EOS]"]  # halves of a step to the even step
    assert said(-0.01, -0.0) == ["lat=0.00", "lon=0.00", "[EOS]"]


def test_the_released_file_is_read(built, tmp_path):
    read = CoordinateTokenizer.from_json(released(tmp_path / "config.json"))
    assert read.decode(read.tokenize([30.1, -7.9], [-12.3, 51.1]))[0].tolist() == [30.0, -8.0]
    assert read.tokenize(0, 0)[2] == 3 and read.vocabulary_size == 204 + 2 + 1441 + 721
    assert read.fingerprint != built.fingerprint
    again = CoordinateTokenizer.from_json(released(tmp_path / "b.json", lambda words: dict(reversed(words.items()))))
    assert again.fingerprint == read.fingerprint


def test_a_built_vocabulary_survives_its_file(built, tmp_path):
    built.to_json(tmp_path / "v.json")
    read = CoordinateTokenizer.from_json(tmp_path / "v.json")
    assert read.fingerprint == built.fingerprint and read.vocabulary_size == built.vocabulary_size == 2366
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]


@pytest.mark.parametrize(
    ("lon", "lat", "words"),
    [
        (181, 0, "lon=181"),
        (0, -90.5, "lat=-90.5"),
        (float("nan"), 0, "lon=nan"),
        ([0, 1e9], [0, 0], "within -180..180"),
    ],
)
def test_what_is_no_place_is_refused(built, lon, lat, words):
    with pytest.raises(ConfigError, match=words):
        built.tokenize(lon, lat)


@pytest.mark.parametrize("ids", [[3, 3, 3], [2000, 210, 3], [210, 99_999, 3], [-1, 2000, 3], 7])
def test_tokens_that_are_no_place_are_refused(built, ids):
    with pytest.raises(ConfigError, match=r"coordinate tokens|is no l"):
        built.decode(np.array(ids))


def test_a_vocabulary_with_gaps_is_refused_where_they_are_met(tmp_path):
    path = released(tmp_path / "v.json", lambda words: {w: i for w, i in words.items() if w != "lat=1.00"})
    gappy = CoordinateTokenizer.from_json(path)
    assert gappy.tokenize(0, 1.25).shape == (3,)
    with pytest.raises(ConfigError, match=r"v.json lacks 'lat=1.00'"):
        gappy.tokenize(0, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no vocabulary"),
        ("[]", "no vocabulary"),
        ('{"model": {"vocab": {"[EOS]": 3}}}', "coordinates"),
        ('{"model": {"vocab": {"[EOS]": 3, "lat=0.00": 5, "lat=0.25": 5, "lon=0.00": 6}}}', "one id"),
    ],
)
def test_files_that_are_no_vocabulary_are_refused(tmp_path, text, words):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        CoordinateTokenizer.from_json(tmp_path / "v.json")
    assert "v.json" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        CoordinateTokenizer.from_json(tmp_path / "nowhere.json")
