"""The safetensors format, against its reference implementation and against malformed headers."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from terra_jax.errors import WeightsError
from terra_jax.weights.safetensors_file import DTYPES, read_safetensors, write_safetensors
from terra_jax.weights.state import BFLOAT16, LazyTensor

ARRAYS = {
    f"layer.{code}": np.random.default_rng(0).integers(0, 2, (3, 5)).astype(dtype)
    for code, dtype in DTYPES.items()
    if dtype != BFLOAT16
}


def test_the_reference_reads_what_is_written(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {key: LazyTensor.of(array) for key, array in ARRAYS.items()})
    back = load_file(tmp_path / "w.safetensors")
    assert back.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        assert (back[key].dtype, back[key].tobytes()) == (array.dtype, array.tobytes())


def test_what_the_reference_writes_is_read(tmp_path):
    save_file(ARRAYS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    back = read_safetensors(tmp_path / "w.safetensors")
    assert back.keys() == ARRAYS.keys()
    for key, array in ARRAYS.items():
        values = back[key].read()
        assert (values.dtype, values.shape, values.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_order_bfloat16_scalars_and_empty_tensors_survive(tmp_path):
    arrays = {
        "b": np.arange(5, dtype=ml_dtypes.bfloat16),
        "a": np.arange(4, dtype=np.float64),
        "scalar": np.array(2, np.int8),
        "empty": np.zeros((3, 0), np.float32),
    }
    write_safetensors(tmp_path / "w.safetensors", {key: LazyTensor.of(array) for key, array in arrays.items()})
    back = read_safetensors(tmp_path / "w.safetensors")
    assert list(back) == list(arrays)
    for key, array in arrays.items():
        assert (back[key].dtype, back[key].shape, back[key].read().tobytes()) == (
            array.dtype,
            array.shape,
            array.tobytes(),
        )


def entry(**changes) -> dict:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    "header",
    [
        b"{",
        b"\xff\xfe{}",
        b"[]",
        b"{}",
        b'{"__metadata__":{"format":"pt"}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b"[" * 100_000,
        {"a": 3},
        {"a": entry(dtype="F4")},
        {"a": entry(dtype=["F32"])},
        {"a": entry(shape=[-2])},
        {"a": entry(shape=[2.0])},
        {"a": entry(shape=[True, 2])},
        {"a": entry(shape=[3])},
        {"a": entry(shape=[1 << 62, 1 << 62])},
        {"a": entry(data_offsets=[8, 0])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(data_offsets=[8, 16])},
        {"a": entry(shape=[1], data_offsets=[0, 4])},
        {"a": entry(), "b": entry()},
        {"a\n": entry()},
    ],
)
def test_a_malformed_header_is_refused(tmp_path, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(WeightsError, match=r"w\.safetensors") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


def test_truncation_anywhere_is_an_error(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"a": LazyTensor.of(np.arange(6, dtype=np.float32))})
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(WeightsError, match=r"w\.safetensors"):
            read_safetensors(path)
