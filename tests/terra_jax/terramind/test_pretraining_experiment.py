import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from random_tokenizer import random_tokenizer

import terra_jax
from data_pipelines.errors import DataError
from data_pipelines.records import RecordWriter
from data_pipelines.sources.procedural import ProceduralEarth
from data_pipelines.tokens import TokenJob, TokenRecord, TokenWriter
from data_pipelines.transforms.crops import crop_setting
from terra_jax.errors import ConfigError
from terra_jax.terramind.coordinates import CoordinateTokenizer
from terra_jax.terramind.evaluation import unigram
from terra_jax.terramind.experiment import Scorer, experiment, load_tokenizers, token_counts
from terra_jax.terramind.fingerprint import fingerprint
from terra_jax.terramind.pretraining import Run, make_objective, make_recipe, open_corpus
from terra_jax.terramind.streams import INPUTS, OUTPUTS
from terra_jax.training import checkpoints
from terra_jax.training.config import load_config
from terra_jax.training.data import split_indices, training_indices

LULC = "terramind_v1_tokenizer_lulc_nano"
SAMPLES, TILE, SIZE = 120, 36, 32
SIZES = ("tiny", "small", "base", "large")


def write_tokens(path: Path, made_by: str, coordinates: CoordinateTokenizer) -> Path:
    """Tokens of the procedural Earth that depend on the crop, as if tokenised at 32 pixels."""
    earth = ProceduralEarth(SAMPLES, TILE)
    cards = {
        "LULC": {"model": LULC, "fingerprint": made_by, "codebook": 4375},
        "coords": {"model": "coords", "fingerprint": coordinates.fingerprint, "codebook": coordinates.vocabulary_size},
    }
    job = TokenJob({"name": "procedural", "keys": "0"}, cards, SIZE, 2, 0.8, 0, samples=SAMPLES, shard_size=SAMPLES)
    records = []
    for i, key in enumerate(earth.index.keys):
        for setting in range(2):
            ids = np.random.default_rng([i, setting]).integers(0, 50, (4, 4)).astype(np.int32)
            places = coordinates.tokenize(earth.index.lon[i], earth.index.lat[i])
            crop = crop_setting(str(key), setting, (TILE, TILE), SIZE, scale=0.8, seed=0)
            prints = {name: str(card["fingerprint"]) for name, card in cards.items()}
            records.append(TokenRecord(str(key), setting, crop, (TILE, TILE), {"LULC": ids, "coords": places}, prints))
    writer = TokenWriter(path, job)
    writer.commit(0, earth.index, records)
    assert writer.finish()
    return path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """A folder with a corpus "tokens" and the tokenizer that is said to have made it, "lulc.safetensors"."""
    folder = tmp_path_factory.mktemp("dual")
    tokenizer = random_tokenizer(LULC)
    terra_jax.export_torch(tokenizer, folder / "lulc.safetensors")
    write_tokens(folder / "tokens", fingerprint(tokenizer), CoordinateTokenizer.build())
    return folder


def overrides(tokens: Path, *more: str) -> list[str]:
    changes = (
        f"data.tokens={tokens / 'tokens'}", f"data.samples={SAMPLES}", f"data.tile={TILE}", "data.threads=0",
        "streams.inputs=(S2L2A,tok_LULC)", "streams.outputs=(tok_LULC)", "steps=4", "batch_size=4",
        "masking.input_tokens=(8,8)", "masking.target_tokens=(6,8)", "checkpoint.every=2", "evaluation.every=2",
        "evaluation.samples=6", "evaluation.unigram_samples=40", "evaluation.probe_samples=4",
        "evaluation.batch_size=4", f"evaluation.tokenizers.LULC={tokens / 'lulc.safetensors'}", *more,
    )  # fmt: skip
    return [f"--config.{change}" for change in changes]


def config_of(tokens: Path, *more: str):
    return load_config("terramind/nano", [change.removeprefix("--") for change in overrides(tokens, *more)])


@pytest.mark.parametrize("size", SIZES)
def test_what_is_known_of_the_published_run_is_the_default(size):
    config = load_config(f"terramind/{size}")
    optimizer, masking = config.optimizer, config.masking
    assert config.model == f"terramind_v1_{size}_encdec" and config.batch_size == 4096
    seen = config.steps * config.batch_size * (masking.input_tokens[1] + masking.target_tokens[1])
    assert 4.99e11 < seen <= 5e11 and config.data.tile == 264
    assert tuple(config.streams.inputs) == INPUTS and tuple(config.streams.outputs) == OUTPUTS
    assert (tuple(optimizer.betas), optimizer.eps, optimizer.weight_decay) == ((0.9, 0.95), 1e-8, 0.05)
    assert (optimizer.learning_rate, optimizer.final_learning_rate, optimizer.clip_norm) == (2e-4, 0, 0)
    assert optimizer.undecayed == "norms" and config.objective.loss == "mod"


@pytest.mark.parametrize("size", ("nano", *SIZES))
def test_every_config_makes_an_objective_without_data(size):
    config = load_config(f"terramind/{size}")
    objective = make_objective(config, make_recipe(config, 0))
    slots = (config.masking.input_tokens[1],)
    assert objective.batch_spec["inputs/stream"].shape == slots
    assert objective.size == objective.variant.image and objective.outputs == tuple(config.streams.outputs)


def test_training_never_sees_the_regions_that_are_scored(tokens):
    config = config_of(tokens)
    run = Run(config, open_corpus(config))
    source = run.open()
    trained = set(source.index.region[training_indices(source, config)])
    for split in ("val", "test"):
        scored = split_indices(source, split, 100)
        assert len(scored) and trained.isdisjoint(source.index.region[scored])


def test_the_unigram_counts_every_token_of_training(tokens):
    config = config_of(tokens, "streams.outputs=(tok_LULC,coords)", "evaluation.unigram_samples=1000")
    run = Run(config, open_corpus(config))
    keys = run.corpus.index.keys[:7]
    counts = token_counts(run, keys)
    assert counts["tok_LULC"].sum() == 7 * 2 * 16 and counts["tok_LULC"][50:].sum() == 0
    expected = np.bincount(
        np.concatenate([run.corpus.read(i, s).ids["LULC"].ravel() for i in range(7) for s in (0, 1)])
    )
    assert np.array_equal(counts["tok_LULC"][: len(expected)], expected)
    ends = CoordinateTokenizer.build()
    assert counts["coords"].sum() == 7 * 2 * 4 and counts["coords"][ends.eos] == 14
    assert counts["coords"][ends.sentinels[1]] == 14
    assert unigram(counts["tok_LULC"], np.array([0])) < np.log(4375)


TRAIN = ("train", "--config", "terramind/nano")


@pytest.fixture(scope="module")
def run(terra_jax_command, tokens, tmp_path_factory) -> Path:
    """Working folder of a finished run; not to be changed."""
    workdir = tmp_path_factory.mktemp("pretraining") / "run"
    result = terra_jax_command(*TRAIN, "--workdir", workdir, *overrides(tokens))
    assert result.status == 0, result.err
    return workdir


def losses(workdir):
    return [(row["step"], row["loss"]) for row in csv.DictReader((workdir / "metrics.csv").read_text().splitlines())]


@pytest.mark.slow
def test_a_run_reports_losses_and_probes_beside_trivial_ones(run):
    report = json.loads((run / "report.json").read_text())
    row = report["validation"]["tok_LULC"]
    assert row["targets"] >= 6 * 6 and 3 < row["unigram"] < 5 and row["loss"] > 0
    probe = report["zero_shot"]["LULC from S2L2A"]
    assert probe["images"] == 4 and "majority class" in probe["baselines"]
    assert report["zero_shot"]["NDVI from S2L2A"].startswith("not made: streams lack")
    assert [line["step"] for line in report["evaluations"]] == [0, 2, 4]
    assert report["evaluations"][-1]["val/unigram"] == pytest.approx(row["unigram"])
    assert "val/LULC from S2L2A/accuracy of the majority class" in report["evaluations"][-1]
    assert (run / "report.png").stat().st_size > 10_000 and report["metrics"]["loss/tok_LULC"] > 0


@pytest.mark.slow
def test_a_run_goes_on_from_its_last_checkpoint_bit_for_bit(run, tokens, terra_jax_command, tmp_path):
    cut = Path(shutil.copytree(run, tmp_path / "cut"))
    shutil.rmtree(cut / "checkpoints" / "4")
    (cut / "report.json").unlink()
    result = terra_jax_command(*TRAIN, "--workdir", cut, *overrides(tokens, "evaluation.every=0"))
    assert result.status == 0 and "going on from step 2" in result.out, result.err
    assert losses(cut) == losses(run)
    before, after = (checkpoints.load_params(path, part="model") for path in (run, cut))
    np.testing.assert_array_equal(before["decoder"]["tables"]["tok_LULC"], after["decoder"]["tables"]["tok_LULC"])


@pytest.mark.slow
def test_records_give_the_losses_of_their_source(run, tokens, terra_jax_command, tmp_path):
    earth = ProceduralEarth(SAMPLES, TILE)
    with RecordWriter(tmp_path / "records") as writer:
        for i in range(len(earth)):
            writer.write(earth[i], split=str(earth.index.split[i]))
    records = ("data.source=records", f"data.path={tmp_path / 'records'}", "evaluation.every=0")
    result = terra_jax_command(*TRAIN, "--workdir", tmp_path / "run", *overrides(tokens, *records))
    assert result.status == 0, result.err
    assert losses(tmp_path / "run") == losses(run)


@pytest.mark.slow
def test_a_run_is_loaded_converted_and_gone_on_from(run, tokens, terra_jax_command, tmp_path):
    model = terra_jax.load("terramind_v1_nano_encdec", run)
    assert model.inputs == ("S2L2A", "tok_LULC") and model.outputs == ("tok_LULC",)
    assert dict(model.fingerprints) == {"LULC": fingerprint(random_tokenizer(LULC))}
    converted = ("convert", "--model", "terramind_v1_nano_encdec", "--from", run, "--to")
    for target in ("folder", "file.safetensors"):
        result = terra_jax_command(*converted, tmp_path / target)
        assert result.status == 0, result.err
        result = terra_jax_command(
            *TRAIN, "--workdir", tmp_path / f"from-{target}",
            *overrides(tokens, f"init={tmp_path / target}", "steps=1", "optimizer.learning_rate=0.0",
                       "evaluation.every=0", "evaluation.samples=0"),
        )  # fmt: skip
        assert result.status == 0 and "left 0 fresh: none" in result.out, result
        after = checkpoints.load_params(tmp_path / f"from-{target}", part="model")
        np.testing.assert_array_equal(model.decoder.mask[...], after["decoder"]["mask"])


@pytest.mark.slow
def test_weights_are_scored(run, tokens, terra_jax_command, tmp_path):
    result = terra_jax_command(
        "evaluate", "--config", "terramind/nano", "--weights", run, *overrides(tokens), "--json", tmp_path / "s.json"
    )
    assert result.status == 0 and "tok_LULC" in result.out and "LULC from S2L2A, 4 images" in result.out, result
    assert json.loads((tmp_path / "s.json").read_text())["validation"]["tok_LULC"]["unigram"] > 3


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("data.tokens=nowhere", DataError, "nowhere is no corpus of tokens: job.json is missing"),
        ("data.tokens=()", ConfigError, "data.tokens names no folder; give those that `terra-jax tokenize` made"),
        ("streams.inputs=(S2L2A,tok_LULX)", ConfigError, "has no stream 'tok_LULX' here; did you mean tok_LULC"),
        ("streams.outputs=(S2L2A)", ConfigError, "has no stream 'S2L2A' here"),
        ("streams.outputs=(tok_NDVI)", ConfigError, "has no tokens of NDVI, it has LULC, coords; leave tok_NDVI out"),
        ("streams.inputs=(tok_LULC)", ConfigError, "streams.inputs has no pixels"),
        ("masking.input_tokens=(0,0)", DataError, r"input_tokens=\(0, 0\) is no budget"),
        ("masking.target_tokens=(0,8)", DataError, r"target_tokens=\(0, 8\) is no budget"),
        ("masking.alphas=(-1.0)", DataError, "0 or more"),
        ("objective.loss=sum", ConfigError, "objective.loss='sum' is unknown"),
        ("data.coordinates=vocabulary.json", ConfigError, "vocabulary.json cannot be read"),
        ("evaluation.tokenizers.S2L2A=x.pt", ConfigError, "data.tokens has no tokens of S2L2A; it has LULC"),
    ],
)
def test_what_does_not_fit_is_one_line(tokens, change, error, words):
    with pytest.raises(error, match=words) as caught:
        experiment(config_of(tokens, "evaluation.tokenizers.LULC=", change))
    assert "\n" not in str(caught.value)


def test_tokens_of_another_tokenizer_are_refused(tokens, tmp_path):
    write_tokens(tmp_path / "tokens", "f" * 32, CoordinateTokenizer.build())
    config = config_of(tokens, f"data.tokens={tmp_path / 'tokens'}")
    with pytest.raises(ConfigError, match=rf"LULC=.*lulc.safetensors is tokenizer \w+, but .* made by {'f' * 32}"):
        load_tokenizers(config.evaluation.tokenizers, open_corpus(config))


def test_coordinates_of_another_vocabulary_are_refused(tokens, tmp_path):
    words = {word: i + 7 for i, word in enumerate(CoordinateTokenizer.build()._words)}
    write_tokens(tmp_path / "tokens", "a", CoordinateTokenizer(words))
    config = config_of(tokens, f"data.tokens={tmp_path / 'tokens'}")
    with pytest.raises(ConfigError, match=r"data.coordinates='' is not the vocabulary that made the coordinates"):
        Run(config, open_corpus(config))


def test_without_unseen_regions_there_are_no_figures(tokens):
    config = config_of(tokens)
    run = Run(config, open_corpus(config))
    scorer = Scorer(run, run.open(), "none such", np.arange(3))
    assert not scorer.applies and scorer.reason.startswith("no figures")
