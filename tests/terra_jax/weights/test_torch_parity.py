"""PyTorch itself reads what is written here and writes what is read here, bit for bit."""

from collections import OrderedDict

import numpy as np
import pytest
import toy_model

from terra_jax.errors import WeightsError
from terra_jax.weights.files import open_state, save_state
from terra_jax.weights.state import LazyTensor
from terra_jax.weights.torch_file import STORAGES
from terra_jax.weights.transfer import export_state, import_params


def bits(torch, tensor) -> bytes:
    tensor = tensor.detach().contiguous()
    return bytes(tensor.flatten().view(torch.uint8).tolist()) if tensor.numel() else b""


def test_pytorch_reads_what_is_written(torch, tmp_path):
    rng = np.random.default_rng(0)
    state = {name: LazyTensor.of(rng.integers(0, 2, (3, 5)).astype(dtype)) for name, dtype in STORAGES.items()}
    state |= {"scalar": LazyTensor.of(np.array(0.5)), "empty": LazyTensor.of(np.zeros((2, 0), np.float32))}
    save_state(tmp_path / "w.pt", state)
    for mmap in (False, True):
        back = torch.load(tmp_path / "w.pt", weights_only=True, mmap=mmap)
        assert isinstance(back, OrderedDict)
        assert list(back) == list(state)
        for key, tensor in state.items():
            assert tuple(back[key].shape) == tensor.shape
            assert str(back[key].dtype).removeprefix("torch.") == str(tensor.dtype)
            assert bits(torch, back[key]) == tensor.read().tobytes()


def test_tied_tensors_are_tied_in_pytorch(torch, tmp_path):
    save_state(tmp_path / "w.pt", export_state(toy_model.weight_map(), toy_model.params())[0])
    back = torch.load(tmp_path / "w.pt", weights_only=True)
    assert back["head.weight"].data_ptr() == back["embed.mod@224.weight"].data_ptr()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_pytorch_writes_is_read(torch, tmp_path, protocol):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=generator)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    dtypes = [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    ]
    tensors = {
        "base": base,
        "transposed": base.t(),
        "strided": base[1::2, ::3],
        "expanded": base[:1].expand(4, 8),
        "scalar": base[2, 3],
        "empty": base[:0],
        "parameter": torch.nn.Parameter(base[2:4]),
        "bool": base > 0,
        **{str(dtype): (10 * base).to(dtype) for dtype in dtypes},
    }
    saved = {"model": tensors, "module": module.state_dict(), "epoch": 3, "lr": 1e-3, "name": "x", "shape": base.shape}
    torch.save(saved, tmp_path / "w.pt", pickle_protocol=protocol)
    back = open_state(tmp_path / "w.pt")
    expected = {f"model.{k}": v for k, v in tensors.items()} | {
        f"module.{k}": v for k, v in module.state_dict().items()
    }
    assert list(back) == list(expected)
    for key, tensor in expected.items():
        values = back[key].read()
        assert values.shape == tuple(tensor.shape)
        assert str(values.dtype) == str(tensor.dtype).removeprefix("torch.")
        assert values.tobytes() == bits(torch, tensor), key


def test_a_model_goes_through_pytorch_unchanged(torch, tmp_path):
    params, weights = toy_model.params(), toy_model.weight_map()
    save_state(tmp_path / "ours.pt", export_state(weights, params)[0])
    torch.save({"teacher": torch.load(tmp_path / "ours.pt", weights_only=True)}, tmp_path / "theirs.pt")
    back, _ = import_params(weights, open_state(tmp_path / "theirs.pt"), params, lambda: params)
    for ours, theirs in zip(*map(list, map(_leaves, (params, back))), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def _leaves(tree):
    for node in tree.values():
        yield from _leaves(node) if isinstance(node, dict) else [node]


def test_the_older_format_is_refused(torch, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"format from before 1\.6"):
        open_state(tmp_path / "old.pt")
