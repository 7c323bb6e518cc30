import subprocess
import sys

import numpy as np
import pytest
from fakes import FakeRecipe, FakeSource
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.loader import Loader, one_pass
from data_pipelines.sources.cached import CachedSource


def stream(count: int, source=None, indices=None, **options) -> dict[str, np.ndarray]:
    """The next `count` batches, end to end."""
    source = source or FakeSource(11)
    indices = np.arange(len(source)) if indices is None else indices
    with Loader(source, FakeRecipe(), indices, **{"seed": 3, "threads": 2, **options}) as loader:
        batches = [next(loader) for _ in range(count)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(left, right):
    assert set(left) == set(right)
    for name in left:
        assert np.array_equal(left[name], right[name]), name


def test_epochs_are_complete_and_shuffled_anew():
    seen = stream(3, indices=np.array([2, 3, 5, 7]), batch_size=4)["sample"].reshape(3, 4)
    assert all(sorted(epoch) == [2, 3, 5, 7] for epoch in seen.tolist())
    assert len({tuple(epoch) for epoch in seen.tolist()}) > 1
    assert not np.array_equal(seen, stream(3, indices=np.array([2, 3, 5, 7]), batch_size=4, seed=4)["sample"])


def test_the_stream_does_not_depend_on_threads():
    expected = stream(5, batch_size=6, threads=0)
    for threads in (1, 3):
        assert_same(stream(5, batch_size=6, threads=threads), expected)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 40), st.integers(0, 2**40))
def test_processes_share_each_global_batch(processes, start, seed):
    whole = stream(2, batch_size=12, start=start, seed=seed)
    parts = [
        stream(2, batch_size=12, start=start, seed=seed, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    half = 12 // processes
    for batch in (slice(0, half), slice(half, None)):  # parts in the order of processes are the very batch
        joined = {name: np.concatenate([part[name][batch] for part in parts]) for name in whole}
        first = 0 if batch.start == 0 else 12
        assert_same(joined, {name: array[first : first + 12] for name, array in whole.items()})


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 4), st.sampled_from([(6, 1), (6, 2), (4, 2), (12, 3)]), st.sampled_from([(3, 1), (8, 4), (12, 2)])
)
def test_a_run_resumes_exactly_with_another_layout(steps, before, after):
    source, indices = FakeSource(11, unreadable=(4,)), np.arange(11)
    expected = stream(80, source, batch_size=1, threads=0)
    batch, processes = before
    with Loader(source, FakeRecipe(), indices, batch_size=batch, seed=3, process_count=processes) as loader:
        for _ in range(steps):
            next(loader)
        position = loader.position
    assert position == steps * batch
    batch, processes = after
    parts = [
        stream(2, source, batch_size=batch, start=position, process_index=i, process_count=processes)
        for i in range(processes)
    ]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in expected}
    order = np.argsort(joined["position"])
    rest = slice(position, position + 2 * batch)
    assert_same({k: a[order] for k, a in joined.items()}, {k: a[rest] for k, a in expected.items()})


def test_unreadable_samples_are_replaced_counted_and_named():
    source = FakeSource(11, unreadable=(4, 9))
    with Loader(source, FakeRecipe(), np.arange(11), batch_size=11, seed=3, threads=2) as loader:
        batches = [next(loader) for _ in range(3)]
        assert loader.failures == {f"s{i}": f"s{i}.tif cannot be read; copy it again" for i in (4, 9)}
    whole = stream(3, batch_size=11)
    for n, batch in enumerate(batches):
        good = ~np.isin(whole["sample"][11 * n : 11 * n + 11], (4, 9))
        assert not np.isin(batch["sample"], (4, 9)).any()
        assert np.array_equal(batch["sample"][good], whole["sample"][11 * n : 11 * n + 11][good])
        assert np.array_equal(batch["position"], np.arange(11 * n, 11 * n + 11))


def test_keys_tell_what_a_batch_held():
    with Loader(FakeSource(11), FakeRecipe(), np.arange(11), batch_size=4, seed=3, start=6, threads=2) as loader:
        batch = next(loader)
        assert loader.keys(6, 10) == [f"s{i}" for i in batch["sample"]]


def test_strict_raises_the_reason():
    with pytest.raises(DataError, match=r"s4.tif cannot be read"):
        stream(1, FakeSource(11, unreadable=(4,)), batch_size=11, strict=True)


def test_data_that_is_all_unreadable_is_an_error():
    with pytest.raises(DataError, match=r"s\d.tif cannot be read.*substitutes"):
        stream(1, FakeSource(3, unreadable=(0, 1, 2)), batch_size=2)


def test_a_cached_source_is_read_once():
    source = FakeSource(11)
    expected = stream(5, batch_size=11)
    assert_same(stream(5, CachedSource(source), batch_size=11, threads=0), expected)
    assert source.reads == 11
    assert_same(stream(5, CachedSource(source), batch_size=11, threads=4), expected)


def test_what_cannot_be_loaded_is_refused():
    with pytest.raises(DataError, match="no samples of fake"):
        stream(1, indices=np.array([], int), batch_size=2)
    with pytest.raises(DataError, match="batch_size 3 does not divide among 2 processes"):
        stream(1, batch_size=3, process_count=2)


SCRIPT = """
import numpy as np
from fakes import FakeRecipe, FakeSource
from data_pipelines.loader import Loader, one_pass
loader = Loader(FakeSource(11), FakeRecipe(), np.arange(11), batch_size=4, seed=0)
next(loader)
{ending}
"""


@pytest.mark.parametrize("ending", ["", "loader.close(); loader.close()"])
def test_it_ends_without_noise_and_without_parsed_flags(ending):
    path = [str(folder) for folder in sys.path if folder]
    script = f"import sys; sys.path[:0] = {path!r}\n" + SCRIPT.format(ending=ending)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_pass_reads_each_once_in_order_without_the_unreadable():
    example = lambda sample, i: {"sample": np.int64(sample.rasters["DEM"].grids[10][0, 0, 0]), "i": np.int64(i)}  # noqa: E731
    batches = list(one_pass(FakeSource(9, unreadable=(4,)), example, np.array([1, 3, 4, 5, 8]), 2))
    assert [batch["sample"].tolist() for batch in batches] == [[1, 3], [5], [8]]
    assert all(np.array_equal(batch["sample"], batch["i"]) for batch in batches)
