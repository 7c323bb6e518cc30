import numpy as np
import pytest
from fakes import FakeRecipe, FakeSource
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.loader import Loader
from data_pipelines.mixture import Mixture, whole_weights
from data_pipelines.sample import Raster, Sample
from data_pipelines.sources.mixed import MixedSource, MixtureEntry, parse_mixture

SIZES, WEIGHTS = (7, 11, 20), (5, 2, 1)
WEIGHT_LISTS = st.lists(st.integers(1, 1000), min_size=1, max_size=6)


class Shifted(FakeSource):
    """A corpus whose samples say their number in the mixture."""

    def __init__(self, size: int, start: int, unreadable: tuple[int, ...] = ()):
        super().__init__(size, unreadable)
        self._start = start

    def __getitem__(self, i: int) -> Sample:
        sample = super().__getitem__(i)
        raster = sample.rasters["DEM"]
        return Sample(**{**vars(sample), "rasters": {"DEM": Raster({10: raster.grids[10] + self._start}, raster.unit)}})


def three(unreadable: tuple[int, ...] = ()) -> MixedSource:
    starts = np.cumsum((0, *SIZES))
    return MixedSource([Shifted(n, s, unreadable) for n, s in zip(SIZES, starts, strict=False)], WEIGHTS)


def stream(count: int, source: MixedSource | None = None, **options) -> dict[str, np.ndarray]:
    source = source or three()
    order = source.mixture(np.arange(len(source)))
    with Loader(source, FakeRecipe(), order, **{"seed": 3, "threads": 2, **options}) as loader:
        batches = [next(loader) for _ in range(count)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@given(WEIGHT_LISTS, st.integers(0, 2**45), st.integers(1, 200))
def test_corpora_take_turns_in_proportion_from_any_position(weights, start, count):
    mixture = Mixture(tuple(np.arange(3) for _ in weights), tuple(weights))
    located = [mixture.locate(position) for position in range(start, start + count)]
    shares = np.array(weights) / sum(weights)
    seen = np.bincount([part for part, _ in located], minlength=len(weights))
    assert np.abs(seen - count * shares).max() < 1 + len(weights)
    last: dict[int, int] = {}
    for part, before in located:  # each corpus counts its own samples, without gaps
        assert before == last.get(part, before - 1) + 1
        last[part] = before


@given(WEIGHT_LISTS, st.integers(0, 500))
def test_counts_are_exact_after_whole_rounds(weights, rounds):
    mixture = Mixture(tuple(np.arange(3) for _ in weights), tuple(weights))
    total = sum(weights)
    seen = np.bincount([mixture.locate(rounds * total + n)[0] for n in range(total)], minlength=len(weights))
    assert seen.tolist() == weights


@given(WEIGHT_LISTS, st.integers(0, 10**6))
def test_every_prefix_has_its_share(weights, count):
    mixture = Mixture(tuple(np.arange(3) for _ in weights), tuple(weights))
    before = {}
    for position in range(count, count + 50 * len(weights)):
        part, number = mixture.locate(position)
        before.setdefault(part, (position, number))
    for part, (position, number) in before.items():
        assert abs(number - position * weights[part] / sum(weights)) <= len(weights)


def test_weights_become_whole_numbers():
    assert whole_weights(["0.8", "0.2"]) == (4, 1)
    assert whole_weights([0.1, 0.2, 0.7]) == (1, 2, 7)
    assert whole_weights([30, 10]) == (3, 1) and whole_weights(["1/3", "2/3"]) == (1, 2)
    for wrong in (["0", "1"], ["-1"], ["much"], ["nan"], ["inf"]):
        with pytest.raises(DataError, match="must be numbers above 0"):
            whole_weights(wrong)


def test_each_corpus_passes_whole_epochs_of_its_own():
    seen = stream(40, batch_size=16, threads=0)["sample"]
    corpus = np.searchsorted(np.cumsum(SIZES), seen, side="right")
    assert np.bincount(corpus).tolist() == [400, 160, 80]
    for number, (size, start) in enumerate(zip(SIZES, np.cumsum((0, *SIZES)), strict=False)):
        own = seen[corpus == number]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert all(sorted(epoch) == list(range(start, start + size)) for epoch in epochs.tolist())
        assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 5), st.sampled_from([(6, 1), (4, 2), (8, 4)]), st.sampled_from([(3, 1), (8, 4), (10, 2), (5, 1)]))
def test_a_mixture_resumes_exactly_with_another_batch_and_number_of_processes(steps, before, after):
    source = three(unreadable=(4,))
    expected = stream(60, source, batch_size=2, threads=0)
    batch, processes = before
    order = source.mixture(np.arange(len(source)))
    with Loader(source, FakeRecipe(), order, batch_size=batch, seed=3, process_count=processes) as loader:
        for _ in range(steps):
            next(loader)
        position = loader.position
    batch, processes = after
    parts = [
        stream(3, source, batch_size=batch, start=position, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in expected}
    rows = np.argsort(joined["position"])
    for name, values in expected.items():  # nothing is lost, nothing comes twice, and substitutes are the same
        assert np.array_equal(joined[name][rows], values[position : position + 3 * batch]), name


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_are_disjoint_and_together_everything(processes):
    parts = [stream(5, batch_size=8, process_index=i, process_count=processes) for i in range(processes)]
    positions = [set(part["position"].tolist()) for part in parts]
    assert sum(map(len, positions)) == 40 and set().union(*positions) == set(range(40))


def test_an_unreadable_sample_is_replaced_from_its_own_corpus():
    whole, broken = stream(10, batch_size=16), stream(10, three(unreadable=(4,)), batch_size=16)
    corpus = [np.searchsorted(np.cumsum(SIZES), seen["sample"], side="right") for seen in (whole, broken)]
    assert np.array_equal(*corpus) and not np.array_equal(whole["sample"], broken["sample"])


def test_keys_are_told_apart_and_samples_read_where_they_lie():
    source = three()
    assert source.names == ("fake", "fake2", "fake3") and len(set(source.index.keys)) == len(source) == sum(SIZES)
    assert source.index.keys[7] == "fake2/s0" and source[7].key == "s0"
    assert [int(source[i].rasters["DEM"].grids[10][0, 0, 0]) for i in (0, 6, 7, 37, -1)] == [0, 6, 7, 37, 37]
    indices = np.array([0, 1, 7, 20])
    assert source.shares(indices).tolist() == pytest.approx([5 / 16, 5 / 16, 2 / 8, 1 / 8])


def test_a_corpus_without_samples_is_refused():
    with pytest.raises(DataError, match="corpus 2 of the mixture has no samples"):
        three().mixture(np.array([0, 30]))


def test_the_text_of_a_mixture():
    assert parse_mixture("0.8 terramesh gs://b/a folder where cloud < 20 and lat > 0; 1 procedural;") == (
        MixtureEntry("0.8", "terramesh", "gs://b/a folder", "cloud < 20 and lat > 0"),
        MixtureEntry("1", "procedural"),
    )
    assert parse_mixture("2 procedural where lat > 0") == (MixtureEntry("2", "procedural", "", "lat > 0"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("terramesh", "'terramesh' is not WEIGHT SOURCE"),
        ("0.5 teramesh dir", "'0.5 teramesh dir' names no source; choose from procedural"),
        ("all records dir", "weights all of a mixture must be numbers"),
        (" ; ", "names no corpus"),
    ],
)
def test_mistakes_in_the_text_are_one_line(text, message):
    with pytest.raises(DataError, match=message) as error:
        parse_mixture(text)
    assert "\n" not in str(error.value)
