import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from command_line import quick_compilation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "terramind"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "data_pipelines"))
from fakes import plausible, write_tif
from small_tokenizers import small_tokenizer

from data_pipelines.errors import DataError
from terra_jax.errors import ConfigError
from terra_jax.inference.reconstruct import TokenMap, read_tokens, reconstruct, write_tokens

ORIGINS = {"model": "m", "fingerprint": "f" * 32}


@pytest.fixture(scope="module", autouse=True)
def quickly():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def lulc():
    return small_tokenizer("lulc")


@pytest.fixture(scope="module")
def s2():
    return small_tokenizer("s2l2a")


def opened(path: Path):
    with rasterio.open(path) as file:
        return file.read(), file.crs, file.transform, file.descriptions, file.tags()


def test_land_cover_keeps_its_place_and_its_legend(lulc, tmp_path):
    write_tif(tmp_path / "a.tif", plausible("LULC", 48)[:, :, :40], epsg=32722, offset=120)
    reconstruct(lulc, tmp_path / "a.tif", tmp_path / "b.tif", **ORIGINS)
    given, crs, transform, *_ = opened(tmp_path / "a.tif")
    array, new_crs, new_transform, names, tags = opened(tmp_path / "b.tif")
    assert (new_crs, new_transform) == (crs, transform) and names == ("class",) and tags["model"] == "m"
    assert array.shape == given.shape and array.dtype == np.uint8 and array.max() < 10
    assert np.array_equal(array, lulc.decode_tokens(lulc.tokenize(given)))


def test_tokens_are_a_half_way_house(lulc, tmp_path):
    write_tif(tmp_path / "a.tif", plausible("LULC", 32))
    reconstruct(lulc, tmp_path / "a.tif", tmp_path / "whole.tif", **ORIGINS)
    reconstruct(lulc, tmp_path / "a.tif", tmp_path / "t.npz", **ORIGINS)
    reconstruct(lulc, tmp_path / "t.npz", tmp_path / "halves.tif", **ORIGINS)
    assert read_tokens(tmp_path / "t.npz").ids.shape == (4, 4)
    for one, other in zip(opened(tmp_path / "whole.tif"), opened(tmp_path / "halves.tif"), strict=True):
        assert np.array_equal(one, other)
    with rasterio.open(tmp_path / "halves.tif") as file:
        assert file.crs.to_epsg() == 32631
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_reflectance_is_drawn_from_the_seed(s2, tmp_path):
    write_tif(tmp_path / "a.tif", plausible("S2L2A", 32))
    options = {"steps": 2, "clip": "unit", **ORIGINS}
    for name, seed in (("b", 0), ("c", 0), ("d", 1)):
        reconstruct(s2, tmp_path / "a.tif", tmp_path / f"{name}.tif", seed=seed, **options)
    b, c, d = (opened(tmp_path / f"{name}.tif")[0] for name in "bcd")
    assert b.shape == (12, 32, 32) and b.dtype == np.int16
    assert np.array_equal(b, c) and not np.array_equal(b, d)


def test_a_raster_without_a_place_has_none_afterwards(lulc, tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        profile = {"driver": "GTiff", "count": 1, "height": 32, "width": 32, "dtype": "uint8"}
        with rasterio.open(tmp_path / "a.tif", "w", **profile) as file:
            file.write(plausible("LULC", 32))
    reconstruct(lulc, tmp_path / "a.tif", tmp_path / "b.tif", **ORIGINS)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        assert opened(tmp_path / "b.tif")[1] is None


def described(path: Path, array: np.ndarray, names: tuple[str, ...]) -> None:
    write_tif(path, array)
    with rasterio.open(path, "r+") as file:
        file.descriptions = names


S2 = plausible("S2L2A", 32)
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")


@pytest.mark.parametrize(
    ("kind", "write", "words"),
    [
        ("s2l2a", lambda f: write_tif(f, S2 / np.float32(1e4)), "look like reflectance; convert it to dn10000"),
        ("s2l2a", lambda f: write_tif(f, -S2 / np.float32(200)), "look like db"),
        ("s2l2a", lambda f: write_tif(f, S2[:10]), r"10 bands, S2L2A has 12 \(B01, B02"),
        ("s2l2a", lambda f: described(f, S2, BANDS[::-1]), "has the bands B12, B11.*reorder them to B01"),
        ("s2l2a", lambda f: write_tif(f, plausible("S2L2A", 30)), "30 x 30 pixels.*sides divisible by 8"),
        ("s2l2a", lambda f: write_tif(f, np.where(S2 > 3900, np.nan, S2).astype(np.float32)), "has no data"),
        ("s1rtc", lambda f: write_tif(f, 10 ** (plausible("S1RTC", 32).astype(np.float32) / 10)), "look like linear"),
        ("s1rtc", lambda f: write_tif(f, S2[:2]), "look like dn10000"),
        ("dem", lambda f: write_tif(f, np.full((1, 32, 32), -32768, np.int16)), r"within -12000..9000 m"),
        ("ndvi", lambda f: write_tif(f, S2[:1]), r"lies within -1..1"),
        ("lulc", lambda f: write_tif(f, np.full((1, 32, 32), 10, np.uint8)), "holds class 10; renumber"),
        ("lulc", lambda f: write_tif(f, np.full((1, 32, 32), -1, np.int16)), "holds class -1; renumber"),
        ("lulc", lambda f: write_tif(f, np.full((1, 32, 32), 2.5, np.float32)), "holds class 2.5; renumber"),
        ("lulc", lambda f: write_tif(f, plausible("LULC", 1032)), "at most 1024 a side"),
        ("lulc", lambda f: f.write_bytes(b"no tiff"), "cannot be read"),
        ("lulc", lambda f: None, "does not exist"),
    ],
)  # fmt: skip
def test_bad_rasters_are_refused_in_one_line(tmp_path, kind, write, words):
    write(tmp_path / "a.tif")
    with pytest.raises((ConfigError, DataError), match=words) as error:
        reconstruct(small_tokenizer(kind), tmp_path / "a.tif", tmp_path / "b.tif", **ORIGINS)
    assert "a.tif" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "b.tif").exists()


TOKENS = np.full((4, 4), 7, np.int32)


def tokens(ids=TOKENS, fingerprint="f" * 32) -> TokenMap:
    return TokenMap(ids, "m", fingerprint, "", (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda f: write_tokens(f, tokens(TOKENS + 4370)), "tokens 4377..4377, those of LULC are 0..4374; make"),
        (lambda f: write_tokens(f, tokens(-TOKENS)), "tokens -7..-7"),
        (lambda f: write_tokens(f, tokens(TOKENS / 2)), "ids of .* float64; expected"),
        (lambda f: write_tokens(f, tokens(TOKENS[0])), r"expected \(h, w\)"),
        (lambda f: write_tokens(f, tokens(fingerprint="0" * 32)), "tokens of m 0{32}, the weights given are f{32}"),
        (lambda f: np.savez(f, ids=TOKENS), "holds no tokens or is damaged"),
        (lambda f: f.write_bytes(b"PK no zip"), "holds no tokens or is damaged"),
    ],
)
def test_bad_tokens_are_refused_in_one_line(lulc, tmp_path, write, words):
    write(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match=words) as error:
        reconstruct(lulc, tmp_path / "a.npz", tmp_path / "b.tif", **ORIGINS)
    assert "a.npz" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "b.tif").exists()


def test_outputs_are_not_replaced_unasked(lulc, tmp_path):
    write_tif(tmp_path / "a.tif", plausible("LULC", 32))
    (tmp_path / "b.tif").write_text("mine")
    (tmp_path / "c.tif").mkdir()
    for target, words in (
        ("b.tif", "b.tif exists; .* --overwrite"),
        ("a.tif", "a.tif is the input"),
        ("c.tif", "c.tif is a folder"),
        ("b.png", "b.png is neither a raster nor tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            reconstruct(lulc, tmp_path / "a.tif", tmp_path / target, **ORIGINS)
    with pytest.raises(ConfigError, match="seed -1 is out of range"):
        reconstruct(lulc, tmp_path / "a.tif", tmp_path / "d.tif", seed=-1, **ORIGINS)
    assert (tmp_path / "b.tif").read_text() == "mine"
    reconstruct(lulc, tmp_path / "a.tif", tmp_path / "b.tif", overwrite=True, **ORIGINS)
    assert opened(tmp_path / "b.tif")[0].shape == (1, 32, 32)
