import jax
import jax.numpy as jnp
import numpy as np
import pytest

from terra_jax.errors import CheckpointError
from terra_jax.training import checkpoints as module
from terra_jax.training.checkpoints import Checkpoints, find_step, load_meta, load_params


def make_state(value=0.0, width=4):
    params = {
        "encoder": {"blocks": {"kernel": jnp.full((2, width), value)}, "norm": jnp.ones(width)},
        "head": jnp.ones(3),
    }
    teacher = jax.tree.map(lambda leaf: leaf + 1, params)
    return {"params": params, "extra": {"teacher": teacher, "centre": jnp.zeros(3)}, "step": jnp.zeros((), jnp.int32)}


def abstract(state):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


@pytest.fixture
def workdir(tmp_path):
    """Three checkpoints, of which two are kept."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, make_state(step), {"position": step * 4}, {"model": "toy", "step": step})
    checkpoints.close()
    return tmp_path


def test_the_latest_comes_back_whole(workdir):
    restored = Checkpoints(workdir).restore(abstract(make_state()))
    assert (restored.step, restored.data, restored.meta) == (30, {"position": 120}, {"model": "toy", "step": 30})
    jax.tree.map(np.testing.assert_array_equal, restored.state, make_state(30))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["20", "30"]


def test_nothing_saved_yet_is_no_error(tmp_path):
    assert Checkpoints(tmp_path).restore(abstract(make_state())) is None
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_one_falls_back_and_the_step_can_be_saved_again(workdir):
    damaged = workdir / "checkpoints" / "30" / "data" / "data.json"
    damaged.write_text(damaged.read_text()[:5])
    checkpoints = Checkpoints(workdir)
    with pytest.warns(UserWarning, match=r"30 is damaged \(data/data.json has 5 bytes instead of"):
        assert checkpoints.restore(abstract(make_state())).step == 20
    checkpoints.save(30, make_state(31), {"position": 120}, {})
    checkpoints.close()
    assert (
        float(Checkpoints(workdir).restore(abstract(make_state())).state["params"]["encoder"]["blocks"]["kernel"][0, 0])
        == 31
    )


def test_damage_is_noticed_without_checksums_too(workdir):
    folder = workdir / "checkpoints" / "30"
    (folder / "checksums.json").unlink()  # killed between the commit and the seal
    assert Checkpoints(workdir).restore(abstract(make_state())).step == 30
    (folder / "state" / "manifest.ocdbt").write_bytes(b"nonsense")
    with pytest.warns(UserWarning, match="30 is damaged"):
        assert Checkpoints(workdir).restore(abstract(make_state())).step == 20


def test_a_state_of_another_shape_is_named_not_taken_for_damage(workdir):
    with pytest.raises(CheckpointError, match=r"checkpoints/30 does not fit this run: .*shape: \(\d"):
        Checkpoints(workdir).restore(abstract(make_state(width=8)))
    assert (workdir / "checkpoints" / "30").is_dir()


def test_a_failed_write_surfaces(tmp_path, monkeypatch):
    def full(folder):
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "seal", full)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(), {}, {})
    with pytest.raises(CheckpointError, match=r"checkpoints/1 could not be written: no space left on device"):
        checkpoints.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "checkpoints").write_text("a file in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        Checkpoints(tmp_path / "other").save(1, make_state(), {}, {})


def test_parameters_are_read_without_a_mesh(workdir):
    student = load_params(workdir, part="encoder")
    assert isinstance(student["norm"], np.ndarray) and set(student) == {"blocks", "norm"}
    np.testing.assert_array_equal(student["blocks"]["kernel"], np.full((2, 4), 30.0))
    step = workdir / "checkpoints" / "20"
    np.testing.assert_array_equal(load_params(step, "teacher")["encoder"]["blocks"]["kernel"], np.full((2, 4), 21.0))
    np.testing.assert_array_equal(load_params(step, "teacher", "encoder/blocks/kernel"), np.full((2, 4), 21.0))
    assert set(load_params(step)) == {"encoder", "head"}
    assert load_meta(workdir)["step"] == 30 and load_meta(step)["step"] == 20


def test_what_is_not_there_is_named(workdir, tmp_path_factory):
    with pytest.raises(CheckpointError, match=r"has no params/decoder; params holds encoder, head"):
        load_params(workdir, part="decoder")
    with pytest.raises(CheckpointError, match=r"has no extra/ema/encoder; extra holds centre, teacher"):
        load_params(workdir, "ema", "encoder")
    with pytest.raises(CheckpointError, match="weights 'tutor' are unknown; choose one of student, teacher, ema"):
        load_params(workdir, "tutor")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_params(tmp_path_factory.mktemp("empty"))


def test_reading_skips_what_is_damaged_and_moves_nothing(workdir):
    (workdir / "checkpoints" / "30" / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.warns(UserWarning, match="30 is damaged"):
        assert find_step(workdir).name == "20"
    with pytest.raises(CheckpointError, match=r"30 is damaged .*give another step's folder"):
        find_step(workdir / "checkpoints" / "30")
    assert (workdir / "checkpoints" / "30").is_dir()
