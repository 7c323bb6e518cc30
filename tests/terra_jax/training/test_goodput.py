import time

import pytest

from terra_jax.training.goodput import CATEGORIES, Ledger, line, shares


def test_every_second_is_charged_once(tmp_path):
    began = time.perf_counter()
    ledger = Ledger(tmp_path / "goodput.json", {"step": 10.0}, began)
    ledger.switch("other")
    with ledger.during("step"):
        time.sleep(0.05)
        with ledger.during("checkpoint"):
            time.sleep(0.02)
    seconds = ledger.seconds
    assert tuple(seconds) == CATEGORIES
    assert sum(seconds.values()) == pytest.approx(10 + time.perf_counter() - began, abs=0.02)
    assert seconds["step"] >= 10.05 and seconds["checkpoint"] >= 0.02 and seconds["lost"] == 0


def test_what_a_killed_run_did_after_its_checkpoint_is_lost(tmp_path):
    first = Ledger(tmp_path / "goodput.json", {}, time.perf_counter() - 30)
    saved = first.seconds  # the checkpoint
    first._since -= 12  # twelve seconds later
    first.note()
    second = Ledger(tmp_path / "goodput.json", saved, time.perf_counter())
    assert second.seconds["start"] == pytest.approx(30, abs=0.5)
    assert second.seconds["lost"] == pytest.approx(12, abs=0.5)
    (tmp_path / "goodput.json").write_text("{")  # torn: nothing is known to be lost
    assert Ledger(tmp_path / "goodput.json", saved, time.perf_counter()).seconds["lost"] == 0


def test_the_line_says_what_took_the_rest():
    seconds = dict.fromkeys(CATEGORIES, 0.0) | {"step": 80.0, "compile": 15.0, "lost": 5.0}
    assert line(seconds) == "goodput 80.0% of 100 s; compile 15.0%  lost 5.0%"
    assert sum(shares(seconds).values()) == pytest.approx(1)
    assert set(shares(dict.fromkeys(CATEGORIES, 0.0)).values()) == {0.0}
