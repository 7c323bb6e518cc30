"""Weight files by name and content, written whole or not at all, and streamed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch_bytes import write_sparse

from terra_jax.errors import WeightsError
from terra_jax.weights.files import is_weight_file, open_state, save_state
from terra_jax.weights.state import LazyTensor

STATE = {"w": LazyTensor.of(np.arange(3, dtype=np.float32))}


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.safetensors", "W.PT"])
def test_the_suffix_chooses_the_format(tmp_path, name):
    save_state(tmp_path / name, STATE)
    assert is_weight_file(tmp_path / name)
    np.testing.assert_array_equal(open_state(tmp_path / name)["w"].read(), [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("w.bin", b"", "names no weight format; use .pt, .pth, .ckpt or .safetensors"),
        ("w.pt", b"", "neither PyTorch nor safetensors"),
        ("w.pt", b"<html>404</html>", "neither PyTorch nor safetensors"),
        ("w.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "format from before 1.6"),
        ("w.pt", b"storages" + bytes(249) + b"ustar", "format from before 1.6"),
        ("w.pt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("w.pt", b"\x02" + bytes(7) + b"{}", "rename it to end in .safetensors"),
        ("w.safetensors", b"PK\x03\x04", "rename it to end in .pt"),
        ("w.pt", b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        ("w.pt", None, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_cure(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=complaint) as caught:
        open_state(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_an_unknown_suffix_is_not_written(tmp_path):
    with pytest.raises(WeightsError, match="names no weight format"):
        save_state(tmp_path / "w.npz", STATE)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_failure_in_the_middle_leaves_the_former_file_and_nothing_else(tmp_path, name):
    def fail():
        raise RuntimeError("lost")

    save_state(tmp_path / name, STATE)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(RuntimeError, match="lost"):
        save_state(tmp_path / name, {**STATE, "v": LazyTensor((2,), np.dtype("float32"), fail)})
    with pytest.raises(ValueError, match="announced"):
        save_state(tmp_path / name, {"v": LazyTensor((2,), np.dtype("float32"), lambda: np.ones(3, np.float32))})
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


CONVERT = """
import re, sys
import jax
from terra_jax.weights import ModelSpec, Part, Rule, WeightMap, convert
names = [str(i) for i in range(8)]
shape = jax.ShapeDtypeStruct((4, 4096, 4096), "float32")
weights = WeightMap(*(Rule("weight." + name + ".{i}", name, "o i -> i o") for name in names))
part = Part(weights, lambda: dict.fromkeys(names, shape))
convert(ModelSpec("sparse", {"model": part}, "none"), sys.argv[1:2], sys.argv[2])
# not ru_maxrss: a child starts with what its parent had reached
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""


@pytest.mark.slow
def test_memory_stays_below_the_file_and_a_gigabyte(tmp_path, repository):
    """Re-export needs one tensor at a time; import and export hold the parameters once and little else."""
    source = write_sparse(tmp_path / "sparse.pt", stacks=8, layers=4, shape=(4096, 4096))
    size = source.stat().st_size
    assert size > 2 << 30
    assert source.stat().st_blocks * 512 < 1 << 24

    def peak(start: Path, target: Path) -> int:
        command = [sys.executable, "-c", CONVERT, str(start), str(target)]
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    try:
        assert peak(source, tmp_path / "copy.safetensors") < 1 << 30
        (tmp_path / "copy.safetensors").unlink()
        assert peak(source, tmp_path / "params") < size + (1 << 30)
        assert peak(tmp_path / "params", tmp_path / "back.pt") < size + (1 << 30)
    finally:
        subprocess.run(["rm", "-rf", *map(str, tmp_path.iterdir())], check=True)
