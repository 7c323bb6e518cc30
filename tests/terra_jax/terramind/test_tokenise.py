import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_tokenizers import LandCoverSource, land_cover_sample, small_tokenizer
from tokenise_run import SAMPLES, SETTINGS, SHARD, TOKENIZERS, SlowEarth, run

from data_pipelines.errors import DataError
from data_pipelines.sample import Raster
from data_pipelines.sources.tokens import TokenCorpus
from data_pipelines.work import BROKEN
from terra_jax.errors import ConfigError
from terra_jax.nn.resizing import crop_resize
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.tokenise import common_size, parse_models, tokenise
from terra_jax.terramind.variants import TOKENIZERS as VARIANTS

HERE = Path(__file__).parent
KILLS = int(os.environ.get("TERRA_JAX_KILLS", "1"))
"""How many kills at a random moment; the full count is 20."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "unbroken"
    assert run(out)
    return out


@pytest.fixture(scope="module")
def lulc():
    return small_tokenizer("lulc", 1)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


# ---- what the records hold ----------------------------------------------------------------------------------------


def test_every_sample_is_there_once_under_every_setting(unbroken):
    corpus, earth = TokenCorpus(unbroken), SlowEarth(SAMPLES, tile=40)
    for column in ("keys", "split", "region", "scene", "lon"):
        assert np.array_equal(getattr(corpus.index, column), getattr(earth.index, column))
    places = CoordinateTokenizer.build().tokenize(earth.index.lon, earth.index.lat)
    for i in range(SAMPLES):
        for setting in range(SETTINGS):
            record = corpus.read(i, setting)
            assert (record.key, record.setting, record.shape) == (earth.index.keys[i], setting, (40, 40))
            assert record.ids["LULC"].shape == record.ids["S1RTC"].shape == (4, 4)
            assert np.array_equal(record.ids["coords"], places[i])
    assert len(np.unique(np.stack([corpus.read(i).ids["S1RTC"] for i in range(SAMPLES)]))) > 50


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pixels_cut_by_the_box_align_with_the_tokens(unbroken, kind):
    (modality, seed), corpus = TOKENIZERS[kind], TokenCorpus(unbroken)
    earth = SlowEarth(SAMPLES, tile=40, modalities=[modality])
    pixels = np.stack([earth[i].rasters[modality].grids[10] for i in range(4)])
    records = [[corpus.read(i, setting) for setting in range(SETTINGS)] for i in range(4)]
    boxes = jnp.array([[record.crop.box for record in row] for row in records], jnp.float32)
    flips = jnp.array([[[False, record.crop.flip] for record in row] for row in records])
    cutting = jax.jit(crop_resize, static_argnames=("size", "order", "nearest"))
    bands = tuple(range(pixels.shape[1]))
    cut = cutting({10: pixels}, boxes, size=32, order=bands, flips=flips, nearest=modality == "LULC")
    ids = small_tokenizer(kind, seed).tokenize(cut.reshape(-1, *cut.shape[2:]))
    written = [record.ids[modality] for row in records for record in row]
    assert flips.any() and np.mean(np.asarray(ids) == written) > 0.99  # a latent may lie within noise of a boundary


def test_setting_0_is_the_centre_pixel_for_pixel(unbroken):
    sample, record = SlowEarth(SAMPLES, tile=40)[3], TokenCorpus(unbroken).read(3)
    centre = sample.rasters["LULC"].grids[10][:, 4:36, 4:36]
    assert np.array_equal(record.ids["LULC"], small_tokenizer("lulc", 1).tokenize(centre)[0])


def test_samples_of_several_shapes_make_one_corpus(lulc, tmp_path):
    shapes = {i: land_cover_sample(i, (40, 40) if i % 5 else (44, 36)) for i in range(6)}
    assert tokenise({"lulc": lulc}, LandCoverSource(6, replaced=shapes), tmp_path / "t", batch_size=8)
    corpus = TokenCorpus(tmp_path / "t")
    assert [corpus.read(i).shape for i in range(6)] == [shapes[i].shape for i in range(6)]


def test_samples_may_lack_modalities_where_that_is_said(tmp_path):
    earth = SlowEarth(4, tile=40, modalities=("LULC", "S1RTC"))
    bare = replace(land_cover_sample(9), rasters={"DEM": earth[0].rasters["LULC"]})
    samples = {0: earth[0], 1: replace(earth[1], rasters={"LULC": earth[1].rasters["LULC"]}), 2: bare, 3: earth[3]}
    source = LandCoverSource(4, replaced=samples)
    tokenizers = {kind: small_tokenizer(kind, seed) for kind, (_, seed) in TOKENIZERS.items()}
    places = CoordinateTokenizer.build()
    assert tokenise(tokenizers, source, tmp_path / "t", coordinates=places, batch_size=8, partial=True)
    corpus = TokenCorpus(tmp_path / "t")
    held = [set(corpus.read(i).ids) for i in range(3)]
    assert held == [{"LULC", "S1RTC", "coords"}, {"LULC", "coords"}, {"LULC", "S1RTC", "coords"}]
    assert set(corpus.read(1).fingerprints) == {"LULC", "coords"} and corpus.index.keys.tolist() == ["s0", "s1", "s3"]
    assert tokenise(tokenizers, source, tmp_path / "whole", coordinates=places, batch_size=8)
    whole = TokenCorpus(tmp_path / "whole")
    assert whole.index.keys.tolist() == ["s0", "s3"]
    for name, ids in whole.read(1).ids.items():
        assert np.array_equal(ids, corpus.read(2).ids[name])
    with pytest.raises(DataError, match="partial is False there and True here"):
        tokenise(tokenizers, source, tmp_path / "whole", coordinates=places, batch_size=8, partial=True)


# ---- going on -----------------------------------------------------------------------------------------------------


def test_two_processes_give_the_union(unbroken, tmp_path):
    assert not run(tmp_path / "t", (1, 2))
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 3 and not (tmp_path / "t" / "manifest.json").exists()
    assert run(tmp_path / "t", (0, 2))
    assert contents(tmp_path / "t") == contents(unbroken)


def test_a_finished_run_does_nothing(unbroken):
    before = {file: file.stat().st_mtime_ns for file in unbroken.glob("shard-*")}
    assert run(unbroken)
    assert {file: file.stat().st_mtime_ns for file in unbroken.glob("shard-*")} == before


@pytest.mark.slow
def test_killed_processes_and_whoever_goes_on_give_the_same_records(unbroken, tmp_path):
    out, moment = tmp_path / "t", random.Random()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), str(HERE)])}
    shards = -(-SAMPLES // SHARD)
    for _ in range(KILLS):
        before = len(list(out.glob("*.parquet")))
        runs = [
            subprocess.Popen(
                [sys.executable, str(HERE / "tokenise_run.py"), str(out), f"{i}/2", "0.3"], env=environment
            )
            for i in range(2)
        ]
        while len(list(out.glob("*.parquet"))) in range(before, min(before + 1, shards)):
            assert None in [process.poll() for process in runs]
            time.sleep(0.02)
        time.sleep(moment.uniform(0, 1))
        for process in runs:
            process.kill()
            process.wait()
    assert not (out / "manifest.json").exists() or KILLS > 1
    assert run(out)
    assert contents(out) == contents(unbroken)


# ---- what cannot be read ------------------------------------------------------------------------------------------


def test_unreadable_samples_are_left_out_and_named(lulc, tmp_path):
    said: list[str] = []
    broken = LandCoverSource(9, unreadable=[0, 5])
    assert tokenise({"lulc": lulc}, broken, tmp_path / "t", batch_size=8, shard_size=4, say=said.append)
    assert said[-1].endswith("7 records of 7 samples; 2 left out, named in manifest.json")
    corpus = TokenCorpus(tmp_path / "t")
    assert corpus.index.keys.tolist() == ["s1", "s2", "s3", "s4", "s6", "s7", "s8"]
    assert "s5.tif cannot be read" in (tmp_path / "t" / "manifest.json").read_text()
    with pytest.raises(DataError, match=r"s0.tif cannot be read"):
        tokenise({"lulc": lulc}, broken, tmp_path / "strict", batch_size=8, strict=True)


def test_data_that_is_out_of_reach_is_no_corpus(lulc, tmp_path):
    source = LandCoverSource(40, unreadable=range(3, 40))
    with pytest.raises(DataError, match=f"{BROKEN} samples in a row could not be read"):
        tokenise({"lulc": lulc}, source, tmp_path / "t", batch_size=8)
    assert [file.name for file in (tmp_path / "t").iterdir()] == ["job.json"]


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (lambda s: replace(s, rasters={}), "has no LULC"),
        (lambda s: land_cover_sample(1, (40, 31)), "31 x 40 pixels, smaller than 32"),
        (lambda s: _with_pixels(s, np.full((1, 40, 40), 11, np.uint8)), "holds class 11"),
        (lambda s: _with_pixels(s, np.full((1, 40, 40), np.nan, np.float32)), "has NaN"),
    ],
)
def test_samples_that_would_be_tokenised_wrongly_are_refused(lulc, tmp_path, spoilt, words):
    sample = spoilt(land_cover_sample(0))
    source = LandCoverSource(1, replaced={0: sample})
    with pytest.raises(DataError, match=words):
        tokenise({"lulc": lulc}, source, tmp_path, batch_size=8, strict=True)


def _with_pixels(sample, pixels):
    return replace(sample, rasters={"LULC": Raster({10: pixels}, sample.rasters["LULC"].unit)})


# ---- requests that do not fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": 0}, "--settings 0"),
        ({"seed": -1}, "--seed -1"),
        ({"scale": 1.5}, "--scale 1.5"),
        ({"shard_size": 0}, "--shard-size 0"),
        ({"threads": 0}, "--threads 0"),
        ({"process": (2, 2)}, "--process 2/2"),
        ({"size": 20}, "--size 20 does not suit lulc; use a multiple of 8"),
        ({"batch_size": 12}, "--batch-size 12 does not divide among 8 devices"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(lulc, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words) as error:
        tokenise({"lulc": lulc}, LandCoverSource(2), tmp_path / "t", **{"batch_size": 8, **options})
    assert "\n" not in str(error.value) and not (tmp_path / "t").exists()


def test_another_tokenizer_does_not_go_on(lulc, tmp_path):
    tokenise({"lulc": lulc}, LandCoverSource(2), tmp_path, batch_size=8)
    with pytest.raises(DataError, match=r"tokenizers.LULC.fingerprint is \w{32} there and \w{32} here"):
        tokenise({"lulc": small_tokenizer("lulc", 2)}, LandCoverSource(2), tmp_path, batch_size=8)


def test_one_tokenizer_a_modality(lulc, tmp_path):
    with pytest.raises(ConfigError, match="b and a are both of LULC"):
        tokenise({"a": lulc, "b": lulc}, LandCoverSource(2), tmp_path / "t")


def test_sizes_are_shared():
    nano, public = "terramind_v1_tokenizer_lulc_nano", "terramind_v1_tokenizer_s2l2a"
    variants = {name: VARIANTS[name] for name in (nano, public)}
    assert common_size({nano: VARIANTS[nano]}) == 64 and common_size({public: VARIANTS[public]}) == 224
    assert common_size(variants, 256) == 256
    with pytest.raises(ConfigError, match=f"{nano} takes images of 64 pixels, {public} of 224; choose one --size"):
        common_size(variants)
    with pytest.raises(ConfigError, match=f"--size 240 does not suit {public}; use a multiple of 32"):
        common_size(variants, 240)


def test_models_are_parsed(tmp_path):
    CoordinateTokenizer.build().to_json(tmp_path / "v.json")
    nano = "terramind_v1_tokenizer_lulc_nano"
    assert parse_models([f"{nano}=a=b.pt"]) == ({nano: "a=b.pt"}, None)
    for text in ("coords", f"coords={tmp_path / 'v.json'}"):
        weights, coordinates = parse_models([text, f"{nano}=x"])
        assert weights == {nano: "x"} and coordinates.fingerprint == CoordinateTokenizer.build().fingerprint
    for texts, words in (
        (["terramind_v1_tokenizer_lulk=x"], "unknown tokenizer 'terramind_v1_tokenizer_lulk'; did you mean .*_lulc"),
        ([nano], f"no weights are given; write {nano}=PATH"),
        ([f"{nano}=x", f"{nano}=y"], "is given twice"),
        (["coords=nowhere.json"], "nowhere.json cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_models(texts)
