"""PyTorch's zip format for state dicts (.pt, .pth), read and written without PyTorch and without unpickling.

A file is an uncompressed zip: NAME/data.pkl pickles the dict, NAME/data/0, NAME/data/1, ... hold the storages' bytes.
The pickle goes through `plain_pickle`, which runs nothing; tensors stay in the file until they are read.
"""

import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from terra_jax.errors import WeightsError
from terra_jax.weights.archive import Archive
from terra_jax.weights.atomic import file_aside
from terra_jax.weights.plain_pickle import ADVICE, Call, Global, PersistentId, dumps, loads
from terra_jax.weights.state import BFLOAT16, LazyTensor, State, as_bytes, flatten_state, read_checked

STORAGES = {
    "DoubleStorage": np.dtype("float64"),
    "FloatStorage": np.dtype("float32"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}
MAX_PICKLE = 8 << 20
MAX_EXPANDED = 1 << 30
MAX_AXES = 32
ALIGNMENT = 64
LARGE_MEMBER = 1 << 30
LOCAL_HEADER_SIZE = 30
ZIP64_FIELD_SIZE = 20
EPOCH = (1980, 1, 1, 0, 0, 0)


def read_torch(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a .pt or .pth file by dotted name; their values are read from the file on demand.

    Args:
        path: A file that `torch.save` wrote, of PyTorch 1.6 or newer: a state dict, or dicts of state dicts.

    Returns:
        The file's tensors in its order. Nested dicts are joined with dots; numbers and strings are left aside.

    Raises:
        WeightsError: The file is damaged, of the older format, no state dict, or holds anything that might run code.
    """
    archive = Archive.open(path)
    roots = [name.removesuffix("/data.pkl") for name in archive.members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise WeightsError(f"{path}: is a zip file but not one of PyTorch (no data.pkl); {ADVICE}")
    if f"{roots[0]}/byteorder" in archive.members and archive.read(f"{roots[0]}/byteorder", 16).tobytes() != b"little":
        raise WeightsError(f"{path}: was written on a big-endian machine; save it again on a little-endian one")
    reader = _Reader(archive, roots[0])
    pickled = archive.read(f"{roots[0]}/data.pkl", MAX_PICKLE).tobytes()
    return flatten_state(loads(pickled, str(path), reader.builders(), reader.storage), str(path))


@dataclass(frozen=True)
class _Storage:
    """A run of numbers of one type in the file, which tensors are views of."""

    member: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class _Reader:
    """What the allowed globals of a pickle build for one archive."""

    archive: Archive
    root: str

    def builders(self) -> dict[str, Any]:
        """The only globals that a state dict may mention; those that are None are mere names."""
        return {
            "collections.OrderedDict": _empty_dict,
            "torch.Size": _size,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": _parameter,
            **{f"torch.{name}": None for name in STORAGES},
        }

    def storage(self, identity: Any) -> _Storage:
        """The storage that a persistent id ("storage", type, key, device, size) stands for."""
        kind, storage_type, key, _, size = identity
        if kind != "storage" or not isinstance(storage_type, Global) or not isinstance(key, str) or not _natural(size):
            raise ValueError("malformed storage")
        dtype = STORAGES[storage_type.name.removeprefix("torch.")]
        member = f"{self.root}/data/{key}"
        info = self.archive.members.get(member)
        if info is None or info.file_size != size * dtype.itemsize:
            raise WeightsError(f"{self.archive.path}: its storage {key[:40]!r} is missing or truncated; save it again")
        return _Storage(member, dtype, size)

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> LazyTensor:
        """A view of a storage; offset and strides count elements."""
        if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise ValueError("malformed tensor")
        if len(shape) != len(strides) or len(shape) > MAX_AXES or not all(map(_natural, (offset, *shape, *strides))):
            raise ValueError("malformed tensor")
        extent = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if prod(shape) else 0
        if offset + extent > storage.size:
            raise ValueError("tensor reaches beyond its storage")
        if prod(shape) > storage.size and prod(shape) * storage.dtype.itemsize > MAX_EXPANDED:
            raise WeightsError(f"{self.archive.path}: a tensor is broadcast to shape {shape}; save it contiguously")

        def read() -> np.ndarray:
            start, stop = (n * storage.dtype.itemsize for n in (offset, offset + extent))
            data = self.archive.read_range(storage.member, start, stop)
            flat = data != 0 if storage.dtype.kind == "b" else data.view(storage.dtype)
            steps = [stride * storage.dtype.itemsize for stride in strides]
            return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, steps)).reshape(shape)

        view = (str(self.archive.path), storage.member, storage.dtype.str, offset, shape, strides)
        return LazyTensor(shape, storage.dtype, read, alias=view)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _empty_dict() -> OrderedDict:
    return OrderedDict()


def _size(shape: tuple) -> tuple:
    return tuple(shape)


def _parameter(tensor: LazyTensor, requires_grad: bool, hooks: Any) -> LazyTensor:
    return tensor


def write_torch(path: Path, state: State) -> None:
    """Writes a state dict that `torch.load(path, weights_only=True)` reads as an OrderedDict, tensor by tensor.

    Tensors with the same alias share one storage, as tied parameters do in PyTorch. Equal input gives equal files.

    Args:
        path: The file; it appears only when it is complete.
        state: The tensors by name, in the order wanted.

    Raises:
        WeightsError: A tensor's type has no PyTorch counterpart here, or the file cannot be written.
    """
    names = {dtype: name for name, dtype in STORAGES.items()}
    for key, tensor in state.items():
        if tensor.dtype not in names:
            raise WeightsError(f"{path}: {key} is of type {tensor.dtype}, which a .pt file cannot hold; cast it first")
    owners = {key if tensor.alias is None else tensor.alias: tensor for key, tensor in state.items()}
    storages = {owner: str(i) for i, owner in enumerate(owners)}
    entries = OrderedDict(
        (key, _pickled(tensor, names[tensor.dtype], storages[key if tensor.alias is None else tensor.alias]))
        for key, tensor in state.items()
    )
    with file_aside(path) as aside, open(aside, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        _add(archive, "data.pkl", dumps(entries))
        _add(archive, "byteorder", b"little")
        for owner, tensor in owners.items():
            _add(archive, f"data/{storages[owner]}", as_bytes(read_checked(str(owner), tensor)))
        _add(archive, "version", b"3\n")


def _pickled(tensor: LazyTensor, storage_type: str, key: str) -> Call:
    """The expression that rebuilds a C-contiguous tensor from its storage."""
    strides = tuple(accumulate(tensor.shape[:0:-1], lambda a, b: a * b, initial=1))[::-1] if tensor.shape else ()
    storage = PersistentId(("storage", Global(f"torch.{storage_type}"), key, "cpu", tensor.size))
    hooks = Call("collections.OrderedDict", ())
    return Call("torch._utils._rebuild_tensor_v2", (storage, 0, tensor.shape, strides, False, hooks))


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Appends a member whose data start at a multiple of 64 bytes, so that PyTorch can map them."""
    info = zipfile.ZipInfo(f"archive/{name}", EPOCH)
    zip64 = len(data) >= LARGE_MEMBER
    start = archive.start_dir + LOCAL_HEADER_SIZE + len(info.filename) + ZIP64_FIELD_SIZE * zip64 + 4
    padding = -start % ALIGNMENT
    info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    with archive.open(info, "w", force_zip64=zip64) as member:
        member.write(data)
    info.extra = b""
