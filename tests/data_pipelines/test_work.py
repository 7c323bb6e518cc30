"""Work done ahead by threads: in order, and no further ahead than asked."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from data_pipelines.work import Progress, run_ahead


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
