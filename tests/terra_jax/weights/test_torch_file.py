"""PyTorch files: what is written comes back, what is odd but sound is read, what is damaged is refused."""

import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from torch_bytes import storage, tensor, write_pickle, write_tree, write_zip

from terra_jax.errors import WeightsError
from terra_jax.weights.plain_pickle import Call, dumps
from terra_jax.weights.state import LazyTensor
from terra_jax.weights.torch_file import ALIGNMENT, STORAGES, read_torch, write_torch

NUMBERS = np.arange(24, dtype=np.float32)


def state_of_every_dtype() -> dict[str, LazyTensor]:
    rng = np.random.default_rng(0)
    return {
        f"layer.{name}": LazyTensor.of(rng.integers(0, 2, (3, 5)).astype(dtype)) for name, dtype in STORAGES.items()
    }


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    state = {
        **state_of_every_dtype(),
        "scalar": LazyTensor.of(np.float64(0.1)),
        "none": LazyTensor.of(np.zeros((0, 4))),
    }
    write_torch(tmp_path / "w.pt", state)
    back = read_torch(tmp_path / "w.pt")
    assert list(back) == list(state)
    for key, expected in state.items():
        values = back[key].read()
        assert (values.shape, values.dtype) == (expected.shape, expected.dtype) == (back[key].shape, back[key].dtype)
        assert values.tobytes() == expected.read().tobytes()
        assert values.flags.c_contiguous


def test_values_are_aligned_and_files_are_reproducible(tmp_path):
    for name in ("a.pt", "b.pt"):
        write_torch(tmp_path / name, state_of_every_dtype())
    raw = (tmp_path / "a.pt").read_bytes()
    assert raw == (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name_size, extra_size = struct.unpack_from("<HH", raw, info.header_offset + 26)
            start = info.header_offset + 30 + name_size + extra_size
            assert start % ALIGNMENT == 0, info.filename


def test_tied_tensors_share_one_storage(tmp_path):
    once = LazyTensor((1000,), np.dtype("float32"), lambda: np.ones(1000, np.float32), alias="embedding")
    write_torch(tmp_path / "w.pt", {"a": once, "b": once})
    back = read_torch(tmp_path / "w.pt")
    assert back["a"].alias == back["b"].alias is not None
    assert (tmp_path / "w.pt").stat().st_size < 2 * once.nbytes


def test_views_of_a_shared_storage(tmp_path):
    shared = storage("Float", "0", 24)
    tree = OrderedDict(
        transposed=tensor(shared, 0, (6, 4), (1, 6)),
        part=tensor(shared, 7, (2, 3), (12, 2)),
        row=tensor(shared, 6, (6,), (1,)),
        repeated=tensor(shared, 3, (2, 2), (0, 1)),
        last=tensor(shared, 23, (), ()),
    )
    back = read_torch(write_tree(tmp_path / "w.pt", tree, s0=NUMBERS))
    matrix = NUMBERS.reshape(4, 6)
    np.testing.assert_array_equal(back["transposed"].read(), matrix.T)
    np.testing.assert_array_equal(back["part"].read(), [[7, 9, 11], [19, 21, 23]])
    np.testing.assert_array_equal(back["row"].read(), matrix[1])
    np.testing.assert_array_equal(back["repeated"].read(), [[3, 4], [3, 4]])
    assert back["last"].read() == 23


def test_nested_dicts_are_joined_and_plain_values_left_aside(tmp_path):
    parameter = Call("torch._utils._rebuild_parameter", (tensor(storage("Float", "0", 24), 0, (24,), (1,)), True, ()))
    tree = OrderedDict(
        teacher=OrderedDict({"module.w": parameter}), epoch=7, note="ten", size=Call("torch.Size", ((1, 2),))
    )
    back = read_torch(write_tree(tmp_path / "w.pth", tree, s0=NUMBERS))
    assert list(back) == ["teacher.module.w"]
    assert back["teacher.module.w"].source == str(tmp_path / "w.pth")
    np.testing.assert_array_equal(back["teacher.module.w"].read(), NUMBERS)


def test_newer_pickle_protocols_and_module_versions(tmp_path):
    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    ordered_dict = text("collections") + text("OrderedDict") + b"\x93)R\x94"
    rebuild = text("torch._utils") + text("_rebuild_tensor_v2") + b"\x93"
    where = (
        b"(" + text("storage") + text("torch") + text("FloatStorage") + b"\x93" + text("0") + text("cpu") + b"K\x18tQ"
    )
    view = rebuild + b"(" + where + b"K\x00K\x18\x85K\x01\x85\x89" + ordered_dict + b"tR"
    versions = b"}" + text("_metadata") + ordered_dict + b"sb"
    pickled = b"\x80\x04\x95" + bytes(8) + ordered_dict + b"(" + text("w") + view + b"u" + versions + b"."
    back = read_torch(write_pickle(tmp_path / "w.pt", pickled, s0=NUMBERS))
    np.testing.assert_array_equal(back["w"].read(), NUMBERS)


def test_compressed_members_are_read(tmp_path):
    tree = OrderedDict(w=tensor(storage("BFloat16", "0", 24), 1, (23,), (1,)))
    values = NUMBERS.astype(ml_dtypes.bfloat16)
    members = {"data.pkl": dumps(tree), "data/0": values.tobytes()}
    back = read_torch(write_zip(tmp_path / "w.pt", members, zipfile.ZIP_DEFLATED))
    assert back["w"].read().tobytes() == values[1:].tobytes()


@pytest.fixture
def sound(tmp_path):
    tree = OrderedDict(
        w=tensor(storage("Float", "0", 24), 0, (4, 6), (6, 1)), v=tensor(storage("Float", "0", 24), 1, (2,), (1,))
    )
    return write_tree(tmp_path / "w.pt", tree, s0=NUMBERS)


@pytest.mark.parametrize("key", ["w", "v"])
def test_a_flipped_bit_is_noticed_on_reading(sound, key):
    raw = bytearray(sound.read_bytes())
    raw[raw.index(NUMBERS.tobytes()) + 50] ^= 1
    sound.write_bytes(raw)
    lazy = read_torch(sound)[key]
    with pytest.raises(WeightsError, match=r"w\.pt: 'archive/data/0' is damaged \(wrong CRC\)"):
        lazy.read()


def test_a_file_written_without_crcs_is_read(sound):
    raw = sound.read_bytes()
    with zipfile.ZipFile(sound) as archive:
        for info in archive.infolist():
            raw = raw.replace(info.CRC.to_bytes(4, "little"), bytes(4))
    sound.write_bytes(raw)
    np.testing.assert_array_equal(read_torch(sound)["w"].read().ravel(), NUMBERS)


def test_truncation_anywhere_is_an_error_that_names_the_file(sound):
    raw = sound.read_bytes()
    for length in range(0, len(raw), 23):
        sound.write_bytes(raw[:length])
        with pytest.raises(WeightsError, match=r"w\.pt"):
            read_torch(sound)["w"].read()


def test_a_file_cut_after_it_was_opened_is_an_error(sound):
    lazy = read_torch(sound)["w"]
    sound.write_bytes(sound.read_bytes()[:100])
    with pytest.raises(WeightsError, match="truncated"):
        lazy.read()


FLOAT = storage("Float", "0", 24)
FINE = tensor(FLOAT, 0, (4,), (1,))


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        (OrderedDict(w=tensor(FLOAT, 1, (24,), (1,))), "truncated or damaged"),
        (OrderedDict(w=tensor(FLOAT, 0, (4, 6), (1,))), "truncated or damaged"),
        (OrderedDict(w=tensor(FLOAT, 0, (-4,), (1,))), "truncated or damaged"),
        (OrderedDict(w=tensor(FLOAT, 0, (1,) * 10_000, (0,) * 10_000)), "truncated or damaged"),
        (OrderedDict(w=tensor(FLOAT, 0, (1 << 40,), (0,))), "broadcast to shape"),
        (OrderedDict(w=tensor(storage("Float", "1", 24), 0, (4,), (1,))), "storage '1' is missing"),
        (OrderedDict(w=tensor(storage("Float", "0", 25), 0, (4,), (1,))), "storage '0' is missing or truncated"),
        (OrderedDict(w=storage("ComplexFloat", "0", 12)), "asks for 'torch.ComplexFloatStorage'"),
        (OrderedDict({"a": OrderedDict({"b": FINE}), "a.b": FINE}), "two tensors"),
        (OrderedDict({"w\n": FINE}), "control characters"),
        (OrderedDict(epoch=3), "holds no state dict"),
        (FINE, "holds no state dict"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path, tree, complaint):
    path = write_tree(tmp_path / "w.pt", tree, s0=NUMBERS)
    with pytest.raises(WeightsError, match=complaint) as caught:
        read_torch(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [({"readme": b"x"}, "no data.pkl"), ({"data.pkl": b"\x80\x02}.", "byteorder": b"big"}, "big-endian")],
)
def test_other_archives_are_refused(tmp_path, members, complaint):
    with pytest.raises(WeightsError, match=complaint):
        read_torch(write_zip(tmp_path / "w.pt", members))


def test_a_type_without_counterpart_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(WeightsError, match="w is of type complex64"):
        write_torch(tmp_path / "w.pt", {"w": LazyTensor.of(np.zeros(2, np.complex64))})
    assert not list(tmp_path.iterdir())
