"""Work done ahead by threads: in order, and no further ahead than asked."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.work import Progress, SoundReader, run_ahead


def test_results_come_in_order_and_few_wait():
    started, lock = [], threading.Lock()

    def work(i):
        with lock:
            started.append(i)
        time.sleep(0.002 * (i % 3))
        return i

    with ThreadPoolExecutor(3) as pool:
        for taken, future in enumerate(run_ahead(pool, work, range(40), 5)):
            assert future.result() == taken and len(started) <= taken + 5
    assert sorted(started) == list(range(40))


def test_what_was_begun_is_called_off_when_nobody_takes_it():
    done = []
    with ThreadPoolExecutor(1) as pool:
        results = run_ahead(pool, lambda i: (time.sleep(0.01), done.append(i)), range(100), 10)
        next(results).result()
        results.close()
    assert len(done) < 10


def test_progress_is_told_now_and_then(monkeypatch):
    said = []
    monkeypatch.setattr(Progress, "EVERY", 0.0)
    with Progress(10, 4, said.append) as progress:
        progress.add(3)
    assert said and said[0].startswith("7/10 samples") and "samples/s" in said[0]


class Counted:
    """Positions, of which some cannot be read."""

    def __init__(self, *bad: int):
        self.bad = bad

    def __call__(self, i: int) -> int:
        if i in self.bad:
            raise DataError(f"{i} cannot be read")
        return 10 * i


KEYS = np.array([f"k{i}" for i in range(40)])


def test_what_cannot_be_read_is_accounted_for():
    reader = SoundReader(Counted(2, 7), KEYS)
    with ThreadPoolExecutor(3) as pool:
        assert list(reader.read(range(1, 9), pool, 4)) == [10, 30, 40, 50, 60, 80]
    assert reader.kept == [1, 3, 4, 5, 6, 8]
    assert reader.left_out == {"k2": "2 cannot be read", "k7": "7 cannot be read"}


@pytest.mark.parametrize(
    ("options", "words"), [({}, r"^17 cannot be read \(16 samples in a row"), ({"strict": True}, "^2 cannot be read$")]
)
def test_too_much_of_it_is_an_error(options, words):
    with ThreadPoolExecutor(3) as pool:
        with pytest.raises(DataError, match=words):
            list(SoundReader(Counted(*range(2, 30)), KEYS, **options).read(range(40), pool, 4))
        patient = SoundReader(Counted(*range(2, 30)), KEYS, broken=0)
        assert len(list(patient.read(range(40), pool, 4))) == 12 and len(patient.left_out) == 28
