"""Hand-made PyTorch files, sound and unsound, without PyTorch."""

import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from terra_jax.weights.plain_pickle import Call, Global, PersistentId, dumps


def storage(kind: str, key: str, size: int) -> PersistentId:
    """The persistent id of a storage, such as storage("Float", "0", 6)."""
    return PersistentId(("storage", Global(f"torch.{kind}Storage"), key, "cpu", size))


def tensor(where: PersistentId, offset: int, shape: tuple, strides: tuple) -> Call:
    """The expression of a view of a storage."""
    hooks = Call("collections.OrderedDict", ())
    return Call("torch._utils._rebuild_tensor_v2", (where, offset, shape, strides, False, hooks))


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip file of the members, each under "archive/"."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def write_pickle(path: Path, pickled: bytes, **storages: np.ndarray) -> Path:
    """A PyTorch file whose data.pkl is `pickled`; storages are named s0, s1, ..."""
    data = {f"data/{name[1:]}": array.tobytes() for name, array in storages.items()}
    return write_zip(path, {"data.pkl": pickled, "byteorder": b"little", **data, "version": b"3\n"})


def write_tree(path: Path, tree: Any, **storages: np.ndarray) -> Path:
    """A PyTorch file of nested OrderedDicts, tensors and numbers."""
    return write_pickle(path, dumps(tree), **storages)


def write_sparse(path: Path, stacks: int, layers: int, shape: tuple[int, int]) -> Path:
    """A PyTorch file of float32 zeros named "weight.STACK.LAYER"; they are holes that take no room on the disk."""
    size, crc = shape[0] * shape[1], 0
    for _ in range(size * 4 // (1 << 20)):
        crc = crc32(bytes(1 << 20), crc)
    names = [f"weight.{i}.{j}" for i in range(stacks) for j in range(layers)]
    views = [tensor(storage("Float", str(k), size), 0, shape, (shape[1], 1)) for k in range(len(names))]
    pickled = dumps(OrderedDict(zip(names, views, strict=True)))
    members = [("data.pkl", len(pickled), crc32(pickled), pickled)]
    members += [(f"data/{k}", size * 4, crc, b"") for k in range(len(names))]
    directory = b""
    with open(path, "wb") as stream:
        for name, length, check, data in members:
            encoded, offset = f"archive/{name}".encode(), stream.tell()
            fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, check, length, length, len(encoded), 0)
            stream.write(b"PK\x03\x04" + fields + encoded + data)
            stream.seek(length - len(data), 1)
            directory += b"PK\x01\x02\x14\x00" + fields + struct.pack("<HHHII", 0, 0, 0, 0, offset) + encoded
        end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), stream.tell(), 0)
        stream.write(directory + b"PK\x05\x06" + end)
    return path
