import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.sources import Index
from data_pipelines.sources.tokens import TokenCorpus
from data_pipelines.tokens import TokenJob, TokenRecord, TokenWriter, decode_record, encode_record
from data_pipelines.transforms.crops import Crop

JOB = TokenJob(
    source={"name": "fake", "keys": "0123"},
    tokenizers={"LULC": {"model": "lulc", "fingerprint": "aaaa", "codebook": 4375}},
    size=32,
    settings=2,
    scale=0.8,
    seed=0,
    samples=5,
    shard_size=2,
)


def made_of(i: int, setting: int, prefix: str = "s", fingerprint: str = "aaaa") -> TokenRecord:
    ids = np.full((2, 2), 10 * i + setting, np.int32)
    return TokenRecord(
        f"{prefix}{i}", setting, Crop(i, 0, 32, 32, bool(setting)), (40, 40), {"LULC": ids}, {"LULC": fingerprint}
    )


def commit(writer: TokenWriter, shard: int, prefix: str = "s", left_out=None, fingerprint: str = "aaaa") -> None:
    kept = [i for i in writer.job.positions(shard) if f"{prefix}{i}" not in (left_out or {})]
    index = Index.at([f"{prefix}{i}" for i in kept], np.full(len(kept), 3.0), np.full(len(kept), 45.0))
    records = [made_of(i, setting, prefix, fingerprint) for i in kept for setting in range(writer.job.settings)]
    writer.commit(shard, index, records, left_out)


def make(path, job=JOB, prefix="s", fingerprint="aaaa"):
    writer = TokenWriter(path, job)
    for shard in range(job.shards):
        commit(writer, shard, prefix, fingerprint=fingerprint)
    assert writer.finish()
    return path


def contents(path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def same(a: TokenRecord, b: TokenRecord) -> bool:
    rest = replace(a, ids={}) == replace(b, ids={})
    return rest and a.ids.keys() == b.ids.keys() and all(np.array_equal(a.ids[name], b.ids[name]) for name in a.ids)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=5), st.integers(0, 99), st.booleans(), st.integers(0, 65535), st.integers(0, 3))
def test_a_record_survives_exactly(key, setting, flip, largest, rows):
    ids = {"S2L2A": np.random.default_rng(0).integers(0, largest + 1, (rows, 3)).astype(np.int32)}
    ids["coords"] = np.array([7, largest, 3], np.int32)
    record = TokenRecord(key, setting, Crop(1, 2, 3, 4, flip), (9, 8), ids, {"S2L2A": "ab", "coords": "cd"})
    assert same(decode_record(encode_record(record)), record)


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_ids_that_do_not_fit_are_refused(wrong):
    with pytest.raises(DataError, match=r"s0: LULC has tokens beyond 0..65535"):
        encode_record(replace(made_of(0, 0), ids={"LULC": np.array([[wrong]])}))


def test_a_corpus_is_read_at_random(tmp_path):
    corpus = TokenCorpus(make(tmp_path / "c"))
    assert len(corpus) == 5 and corpus.settings == 2 and corpus.size == 32
    assert corpus.index.keys.tolist() == [f"s{i}" for i in range(5)] and set(corpus.index.split) == {"train"}
    for i, setting in ((4, 1), (0, 0), (2, 1), (0, 1)):
        assert same(corpus.read(i, setting), made_of(i, setting))
    for place in ((5, 0), (0, 2), (-1, 0)):
        with pytest.raises(IndexError):
            corpus.read(*place)


def test_shards_may_come_in_any_order_and_twice(tmp_path):
    whole = contents(make(tmp_path / "whole"))
    first, second = TokenWriter(tmp_path / "shared", JOB), TokenWriter(tmp_path / "shared", JOB)
    commit(second, 2)
    assert second.has(2) and not first.has(0) and second.finish() is None
    commit(first, 1)
    commit(second, 1)
    commit(first, 0)
    assert first.finish() and contents(tmp_path / "shared") == whole


def test_what_a_kill_leaves_is_no_shard(tmp_path):
    whole = contents(make(tmp_path / "whole"))
    writer = TokenWriter(tmp_path / "killed", JOB)
    for shard in range(3):
        commit(writer, shard)
    (tmp_path / "killed" / "shard-00000.parquet").unlink()  # between the two renames
    records = tmp_path / "killed" / "shard-00001.arrayrecord"
    records.write_bytes(records.read_bytes()[:1000])
    (tmp_path / "killed" / ".shard-00002.arrayrecord.77.part").write_bytes(b"half")
    assert [writer.has(shard) for shard in range(3)] == [False, False, True]
    for shard in range(2):
        commit(writer, shard)
    assert writer.finish() and contents(tmp_path / "killed") == whole


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    writer = TokenWriter(tmp_path, JOB)
    before = contents(tmp_path)

    def broken():
        yield made_of(0, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.commit(0, Index.at(["s0"], np.zeros(1), np.zeros(1)), broken())
    assert contents(tmp_path) == before


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self):
        raise RuntimeError("write() failed: No space left on device; writing there; at byte 4096")

    writer = TokenWriter(tmp_path, JOB)
    monkeypatch.setattr("data_pipelines.jobs.ArrayRecordWriter.close", full)
    with pytest.raises(DataError, match=r"cannot be written \(write\(\) failed: No space left on device\); make room"):
        commit(writer, 0)
    assert list(contents(tmp_path)) == ["job.json"]


def test_samples_left_out_are_named_in_the_manifest(tmp_path):
    writer = TokenWriter(tmp_path, JOB)
    commit(writer, 0)
    commit(writer, 1, left_out={"s2": "s2.tif cannot be read", "s3": "nor this"})
    commit(writer, 2)
    manifest = writer.finish()
    assert manifest["left_out"] == {"s2": "s2.tif cannot be read", "s3": "nor this"}
    assert manifest["samples"] == 3 and manifest["records"] == 6
    assert same(TokenCorpus(tmp_path).read(2, 1), made_of(4, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": 3}, "settings is 2 there and 3 here"),
        ({"source": {"name": "fake", "keys": "9999"}}, "source.keys is 0123 there and 9999 here"),
        ({"source": {"name": "fake", "keys": "0123", "tile": 96}}, "source.tile is absent there and 96 here"),
        (
            {"tokenizers": {"LULC": {"model": "lulc", "fingerprint": "bbbb", "codebook": 4375}}},
            "tokenizers.LULC.fingerprint is aaaa there and bbbb here",
        ),
    ],
)
def test_another_job_in_the_same_folder_is_refused(tmp_path, change, words):
    TokenWriter(tmp_path, JOB)
    with pytest.raises(DataError, match=f"holds another corpus: {words}; choose another folder"):
        TokenWriter(tmp_path, replace(JOB, **change))
    TokenWriter(tmp_path, JOB)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"holds thesis.tex but no job.json"):
        TokenWriter(tmp_path, JOB)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}
    with pytest.raises(DataError, match=r"thesis.tex.* cannot be written"):
        TokenWriter(tmp_path / "thesis.tex", JOB)


def test_corpora_are_joined_end_to_end(tmp_path):
    corpus = TokenCorpus(make(tmp_path / "a"), make(tmp_path / "b", prefix="t"))
    assert len(corpus) == 10 and corpus.index.keys[5] == "t0"
    assert same(corpus.read(7, 1), made_of(2, 1, "t"))


def other_job(fingerprint="aaaa", **changes) -> TokenJob:
    tokenizers = {"LULC": {"model": "lulc", "fingerprint": fingerprint, "codebook": 4375}}
    return replace(JOB, tokenizers=tokenizers, **changes)


@pytest.mark.parametrize(
    ("job", "prefix", "words"),
    [
        (other_job("bbbb"), "t", r"LULC: .*b has tokens of tokenizer bbbb, .*a of aaaa; .* do not mix"),
        (other_job(settings=1), "t", r"b has settings 1, .*a has 2"),
        (other_job(size=64), "t", r"b has size 64, .*a has 32"),
        (other_job(), "s", "sample 's0' occurs twice"),
    ],
)
def test_corpora_that_do_not_fit_are_not_joined(tmp_path, job, prefix, words):
    paths = make(tmp_path / "a"), make(tmp_path / "b", job, prefix)
    with pytest.raises(DataError, match=words) as error:
        TokenCorpus(*paths)
    assert "\n" not in str(error.value)


def test_a_record_of_another_tokenizer_is_refused(tmp_path):
    corpus = TokenCorpus(make(tmp_path / "a", fingerprint="cccc"))
    with pytest.raises(DataError, match=r"record 3: LULC: it has tokens of tokenizer cccc, the manifest of aaaa"):
        corpus.read(1, 1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "manifest.json").unlink(), "unfinished: .* run the same `terra-jax tokenize` again"),
        (lambda root: (root / "job.json").unlink(), "no corpus of tokens"),
        (lambda root: (root / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda root: (root / "shard-00001.arrayrecord").unlink(), "shard-00001.arrayrecord has 0 of"),
        (lambda root: (root / "shard-00002.parquet").write_bytes(b"PAR1"), "index of a shard"),
        (lambda root: _edit(root, version=9), "format version 9, this release reads up to 1"),
        (lambda root: _edit(root, format="terra_jax.records"), "of format 'terra_jax.records'"),
    ],
)
def test_a_damaged_corpus_is_refused_on_opening(tmp_path, damage, words):
    damage(make(tmp_path))
    with pytest.raises(DataError, match=words) as error:
        TokenCorpus(tmp_path)
    assert "\n" not in str(error.value)


def _edit(root, **changes):
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "manifest.json").write_text(json.dumps(manifest | changes))
