"""What every test stands on: eight forced CPU devices, parsed absl flags, and where real material lies."""

import gc
import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import pytest
from absl import flags

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

REPOSITORY = Path(__file__).resolve().parents[1]


def _unavailable(reason: str):
    """Skip by name; in CI a skip for want of material is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs go with the module that made them; all together they would fill a small machine's memory."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def fixtures_dir() -> Path:
    """Folder of real tiles, golden outputs and manifests: $TERRA_JAX_FIXTURES, else ../shared."""
    folder = Path(os.environ.get("TERRA_JAX_FIXTURES", REPOSITORY.parent / "shared"))
    if not (folder / "golden").is_dir():
        _unavailable(
            f"no test material at {folder}; set TERRA_JAX_FIXTURES to the folder that holds golden/ and tiles/"
        )
    return folder


@pytest.fixture(scope="session")
def named_weights(fixtures_dir):
    """The module that says how golden weights and inputs follow from their names."""
    spec = importlib.util.spec_from_file_location("named_weights", fixtures_dir / "golden" / "named_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where the [torch] extra is installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        _unavailable('PyTorch is not installed; pip install "terra_jax[torch]"')


@pytest.fixture(scope="session")
def libtpu():
    """The compiler for TPUs, where the [tpu] extra is installed."""
    if importlib.util.find_spec("libtpu") is None:
        _unavailable('libtpu is not installed; pip install "terra_jax[tpu]"')


@pytest.fixture(scope="session")
def terra_jax_command(tmp_path_factory):
    """`terra_jax_command("train", ...)` runs `terra-jax train ...` in this process: (status, out, err)."""
    from command_line import runner

    return runner(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def tiny_run(terra_jax_command, tmp_path_factory) -> Path:
    """Working folder of a finished TerraFM run of 4 steps; not to be changed."""
    from command_line import TINY

    workdir = tmp_path_factory.mktemp("tiny") / "run"
    result = terra_jax_command("train", "--config", "terrafm/nano", "--workdir", workdir, *TINY)
    assert result.status == 0, result.err
    return workdir
