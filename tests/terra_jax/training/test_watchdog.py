import time

import pytest

from terra_jax.training import watchdog as module
from terra_jax.training.watchdog import Watchdog


class Group:
    index = 1

    def __init__(self, ended=None):
        self.ended = ended

    def failure(self):
        return self.ended


@pytest.fixture
def exits(monkeypatch):
    """Exit statuses, instead of exits."""
    found = []
    monkeypatch.setattr(module.os, "_exit", found.append)
    monkeypatch.setattr(module, "POLL", 0.02)
    return found


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_a_hung_step_is_named_with_stacks_and_then_ended(tmp_path, exits, capfd):
    with Watchdog(Group(), tmp_path, 0.2) as dog:
        dog.expect("step 7")
        wait_until(lambda: exits)
    assert set(exits) == {3}
    err = capfd.readouterr().err
    assert err.count("warning: step 7 takes more than 0.2 s in process 1") == 1 and "error: step 7 hangs" in err
    stacks = (tmp_path / "hang-1.txt").read_text()
    assert stacks.startswith("step 7: no end after") and "wait_until" in stacks


def test_what_may_take_long_is_let_alone(tmp_path, exits):
    with Watchdog(Group(), tmp_path, 0.1) as dog:
        dog.expect("step 7")
        dog.expect("")
        time.sleep(0.5)
    with Watchdog(Group(), tmp_path, 0.0) as dog:
        dog.expect("step 7")
        time.sleep(0.2)
    assert not exits and not list(tmp_path.iterdir())


def test_when_another_process_ends_this_one_does(tmp_path, exits, capfd):
    with Watchdog(Group((2, "process 0 (a) ended: disk full")), tmp_path, 0.0):
        wait_until(lambda: exits)
    assert exits[0] == 2
    assert "error: process 0 (a) ended: disk full; this process ends too" in capfd.readouterr().err
