import pytest

from terra_jax.errors import ConfigError
from terra_jax.training.config import check_workdir, load_config, remember

SOURCE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "model": "toy", "steps": 100, "init": "", "seed": 0,
        "optimizer": {"learning_rate": 1e-3, "betas": (0.9, 0.95), "clip_norm": None},
        "data": {"strict": False, "modalities": ["S2L2A", "S1GRD"], "path": "a"},
    })
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    return str(tmp_path / "mine.py")


def test_overrides_take_the_type_of_what_they_replace(path):
    config = load_config(
        path,
        [
            "config.steps=1_000",
            "optimizer.learning_rate=2",
            "--config.optimizer.betas=(0.8,0.9)",
            "data.strict=true",
            "data.modalities=S2L2A",
            "init=a=b.pt",
            "optimizer.clip_norm=3.0",
        ],
    )
    assert config.steps == 1000 and config.init == "a=b.pt" and config.data.strict is True
    assert config.optimizer.learning_rate == 2.0 and isinstance(config.optimizer.learning_rate, float)
    assert config.optimizer.betas == (0.8, 0.9) and config.optimizer.clip_norm == 3.0
    assert list(config.data.modalities) == ["S2L2A"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.learning_rat=1",
            "unknown config key 'optimizer.learning_rat'; did you mean optimizer.learning_rate",
        ),
        ("learning_rate=1", "did you mean optimizer.learning_rate"),
        ("steps=many", "'steps' wants a value of type int"),
        ("steps=1.5", "'steps' wants a value of type int"),
        ("data.strict=perhaps", "'data.strict' wants a value of type bool"),
        ("data=1", "'data' is a section; set one of data.modalities, data.path, data.strict"),
        ("steps", "is not of the form --config.KEY=VALUE"),
        ("steps.more=1", "unknown config key 'steps.more'"),
    ],
)
def test_mistakes_are_named(path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(path, [override])


def test_a_missing_or_broken_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config 'terrafm/huge' does not exist; give a path to a \.py or one of"):
        load_config("terrafm/huge")
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    with pytest.raises(ConfigError, match=r"broken\.py, line 1"):
        load_config(str(tmp_path / "broken.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="has no function get_config"):
        load_config(str(tmp_path / "empty.py"))


def test_only_harmless_keys_may_change_in_a_run(path, tmp_path):
    workdir = tmp_path / "run"
    check_workdir(load_config(path), workdir)
    remember(load_config(path), workdir)
    check_workdir(load_config(path, ["optimizer.learning_rate=1"]), workdir)  # nothing was trained yet
    (workdir / "metrics.csv").write_text("step,loss\n1,0.5\n")
    check_workdir(load_config(path, ["steps=200", "data.path=b", "data.strict=true"]), workdir)
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate is 0\.001 there and 1\.0 here"):
        check_workdir(load_config(path, ["optimizer.learning_rate=1"]), workdir)
