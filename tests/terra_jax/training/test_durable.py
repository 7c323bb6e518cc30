import shutil
import threading
import uuid

import jax
import numpy as np
import pytest
from test_checkpoints import abstract, make_state
from toy_run import toy_config

from terra_jax.errors import CheckpointError, ConfigError
from terra_jax.training import durable as module
from terra_jax.training.checkpoints import Checkpoints
from terra_jax.training.config import as_json, write_json
from terra_jax.training.durable import Durable


@pytest.fixture(params=["path", "memory"])
def place(request, tmp_path):
    """A folder, and a store without renames."""
    return str(tmp_path / "durable") if request.param == "path" else f"memory://{uuid.uuid4().hex}"


def save(workdir, place, *steps, keep=2):
    checkpoints = Checkpoints(workdir, keep=keep, durable=place)
    for step in steps:
        checkpoints.save(step, make_state(step), {"position": step}, {"step": step})
    checkpoints.close()


def copies(place, workdir):
    return Durable(place, workdir, 2).steps()


def test_a_lost_disk_falls_back_to_the_copy(tmp_path, place):
    workdir = tmp_path / "run"
    workdir.mkdir()
    write_json(workdir / "config.json", as_json(toy_config()))
    (workdir / "metrics.csv").write_text("step,loss\n1,0.5\n")
    save(workdir, place, 10)
    save(workdir, place, 20)
    assert copies(place, workdir) == [20, 10]
    shutil.rmtree(workdir)
    workdir.mkdir()
    checkpoints = Checkpoints(workdir, durable=place)
    checkpoints.check_durable(toy_config())
    restored = checkpoints.restore(abstract(make_state()))
    assert (restored.step, restored.data) == (20, {"position": 20})
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(20))
    assert (workdir / "metrics.csv").read_text() == "step,loss\n1,0.5\n"
    assert not list((workdir / "checkpoints").glob("*.tmp"))


def test_only_the_latest_are_kept_and_only_whole_ones_count(tmp_path, place):
    for step in (1, 2, 3):
        save(tmp_path, place, step)
    assert copies(place, tmp_path) == [3, 2]
    durable = Durable(place, tmp_path, 2)
    durable._fs.rm_file(f"{durable._root}/3/{module.SEAL}")  # as a kill in the middle of a copy leaves it
    shutil.rmtree(tmp_path / "checkpoints")
    assert Checkpoints(tmp_path, durable=place).restore(abstract(make_state())).step == 2


def test_a_damaged_copy_is_named_and_the_one_before_is_taken(tmp_path):
    place = tmp_path / "durable"
    save(tmp_path / "run", str(place), 1)
    save(tmp_path / "run", str(place), 2)
    victim = max((place / "2").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "run")
    with pytest.warns(UserWarning, match=r"checkpoints/2 is damaged .* bytes instead of"):
        assert Checkpoints(tmp_path / "run", durable=str(place)).restore(abstract(make_state())).step == 1


def test_copies_of_another_run_are_refused(tmp_path, place):
    write_json(tmp_path / "config.json", as_json(toy_config()))
    save(tmp_path, place, 1)
    other = Checkpoints(tmp_path / "other", durable=place)
    with pytest.raises(ConfigError, match=r"durable=.* holds another run: model is 'toy' there and 'tiny' here"):
        other.check_durable(toy_config(model="tiny"))
    with pytest.raises(ConfigError, match=r"checkpoint.durable='nosuch://x' cannot be used"):
        Checkpoints(tmp_path, durable="nosuch://x")


def test_copying_does_not_hold_training_up(tmp_path, monkeypatch):
    begun, go = threading.Event(), threading.Event()
    upload = Durable._upload

    def slow(self, folder):
        begun.set()
        assert go.wait(60)
        upload(self, folder)

    monkeypatch.setattr(Durable, "_upload", slow)
    checkpoints = Checkpoints(tmp_path, keep=1, durable=str(tmp_path / "durable"))
    for step in (1, 2, 3):  # saved while the first copy has not even begun to move; 1 is deleted meanwhile
        checkpoints.save(step, make_state(step), {}, {})
    checkpoints.wait()
    assert begun.is_set() and not (tmp_path / "durable").exists()
    go.set()
    checkpoints.close()
    assert copies(str(tmp_path / "durable"), tmp_path) == [3]


def test_a_copy_that_fails_is_an_error_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    (tmp_path / "durable").write_text("a file in the way")
    checkpoints = Checkpoints(tmp_path, durable=str(tmp_path / "durable" / "run"))
    checkpoints.save(1, make_state(), {}, {})
    with pytest.raises(CheckpointError, match=r"could not be copied to .*durable/run: Not a directory"):
        checkpoints.close()
    assert (tmp_path / "checkpoints" / "1" / module.SEAL).exists()
