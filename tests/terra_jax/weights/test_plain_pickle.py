"""Malicious and damaged pickles: refused with one line, and nothing in them runs."""

import argparse
import builtins
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_bytes import storage, tensor, write_pickle

from terra_jax.errors import WeightsError
from terra_jax.weights.plain_pickle import Call, Global, dumps, loads
from terra_jax.weights.torch_file import read_torch

SOUND = dumps(OrderedDict(w=tensor(storage("Float", "0", 24), 0, (4, 6), (6, 1)), n=-3, big=1 << 40, flag=True))


class Reduces:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Reconstructed:
    """An ordinary object, which the unpickler would allocate."""


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


TOUCH = "open('ran', 'w')"
MALICIOUS = {
    "posix.system|nt.system": pickle.dumps(Reduces(os.system, "touch ran"), 2),
    "builtins.eval": pickle.dumps(Reduces(builtins.eval, TOUCH), 4),
    "__builtin__.exec": pickle.dumps(Reduces(builtins.exec, TOUCH), 2),
    "builtins.getattr": b"cbuiltins\ngetattr\n(NX\x06\x00\x00\x00systemtR.",
    "operator.attrgetter": b"coperator\nattrgetter\n(X\x06\x00\x00\x00systemtR.",
    "importlib.import_module": b"cimportlib\nimport_module\n(X\x02\x00\x00\x00ostR.",
    "torch.load": b"ctorch\nload\n(X\x01\x00\x00\x00xtR.",
    "torch.hub.load": b"ctorch.hub\nload\n.",
    "torch._utils.__builtins__": b"ctorch._utils\n__builtins__\n.",
    "torch._utils._rebuild_tensor_v2.__globals__": b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
    "collections.OrderedDict.fromkeys": text("collections") + text("OrderedDict.fromkeys") + b"\x93.",
    "builtins.exec": text("builtins") + text("exec") + b"\x93" + text(TOUCH) + b"\x85R.",
    "argparse.Namespace": pickle.dumps({"args": argparse.Namespace(lr=1)}, 2),
    "numpy": pickle.dumps({"w": np.ones(3)}, 2),
    "opcode INST": b"(" + text("touch ran") + b"ios\nsystem\n.",
    "opcode OBJ": b"(" + text("touch ran") + b"o.",
    "opcode NEWOBJ": b")\x81.",
    "opcode NEWOBJ_EX": b")}\x92.",
    "opcode EXT1": b"\x82\x01.",
    "opcode EXT2": b"\x83\x01\x00.",
    "opcode EXT4": b"\x84\x01\x00\x00\x00.",
    "opcode PERSID": b"Pstorage\n.",
    "opcode DUP": b"}2.",
    "opcode BYTEARRAY8": b"\x96" + bytes(8) + b".",
    "asks for 'torch.FloatStorage'": dumps(Call("torch.FloatStorage", ())),
    "sets attributes": dumps(Global("torch._utils._rebuild_tensor_v2"))[:-1] + b"}" + text("__code__") + b"Nsb.",
    "calls something that is no function": text("os.system") + text("touch ran") + b"\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("complaint", MALICIOUS)
def test_a_malicious_pickle_is_refused_by_name_and_does_not_run(tmp_path, monkeypatch, complaint):
    monkeypatch.chdir(tmp_path)
    path = write_pickle(tmp_path / "evil.pt", MALICIOUS[complaint])
    with pytest.raises(WeightsError, match=complaint) as caught:
        read_torch(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["evil.pt"]


def bombs() -> dict[str, bytes]:
    """Small pickles that unfold to something huge."""
    nested_dicts = b"}q\x00" + b"".join(
        b"}(" + b"".join(text(k) + b"h" + bytes([i]) for k in "abcdefghij") + b"uq" + bytes([i + 1]) for i in range(20)
    )
    shared_lists = b"]q\x00" + b"".join(
        b"](" + b"h" * 0 + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(20)
    )
    return {
        "dicts of ten times the same dict": b"\x80\x02" + nested_dicts + b".",
        "a name made of lists of lists": b"\x80\x02" + shared_lists + text("x") + b"\x93.",
        "a dict in itself": b"}q\x00" + text("a") + b"h\x00s.",
        "300,000 marks": b"(" * 300_000 + b".",
        "300,000 tuples in each other": b")" + b"\x85" * 300_000 + b".",
        "a tuple nested as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
        "a huge pickle": b"N" * (9 << 20),
        "a name without end": b"}" + text("k" * 100_000) + b"}" + text("j") + b"Nss.",
        "a huge memo index": b"Nr\xff\xff\xff\xffj\xff\xff\xff\x7f.",
    }  # fmt: skip


@pytest.mark.parametrize("kind", bombs())
def test_a_bomb_is_refused_quickly(tmp_path, kind):
    path = write_pickle(tmp_path / "bomb.pt", bombs()[kind])
    with pytest.raises(WeightsError) as caught:
        read_torch(path)
    assert len(str(caught.value)) < 400


def test_every_truncation_is_refused(tmp_path):
    numbers = np.arange(24, dtype=np.float32)
    assert list(read_torch(write_pickle(tmp_path / "w.pt", SOUND, s0=numbers))) == ["w"]
    for length in range(len(SOUND)):
        with pytest.raises(WeightsError):
            read_torch(write_pickle(tmp_path / "w.pt", SOUND[:length], s0=numbers))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_gives_a_weights_error_or_plain_data(changes):
    data = bytearray(SOUND)
    for position, value in changes:
        data[position] = value
    builders = {"collections.OrderedDict": OrderedDict, "torch._utils._rebuild_tensor_v2": lambda *_: "tensor"}
    try:
        result = loads(bytes(data), "w.pt", {**builders, "torch.FloatStorage": None}, lambda identity: "storage")
    except WeightsError as error:
        assert "w.pt" in str(error)
    else:
        assert isinstance(result, dict | list | tuple | str | int | float | Global | type(None))
