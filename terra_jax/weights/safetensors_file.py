"""The safetensors format: eight bytes of length, a JSON header, then the tensors' bytes without gaps.

Read and written one tensor at a time, so that memory does not grow with the file (the reference library wants the whole
state dict to write). Format: https://github.com/huggingface/safetensors.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from terra_jax.errors import WeightsError
from terra_jax.weights.atomic import file_aside
from terra_jax.weights.state import BFLOAT16, LazyTensor, State, as_bytes, flatten_state, read_checked

DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": BFLOAT16,
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
MAX_HEADER = 100_000_000


def read_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a .safetensors file by name, in the header's order; values are read on demand.

    Raises:
        WeightsError: The file is truncated, or its header is malformed or does not describe its bytes.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            if not 2 <= header_size <= min(MAX_HEADER, size - 8):
                raise _malformed(path, "the header's length is impossible")
            text = stream.read(header_size)
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise _malformed(path, "the header is no valid JSON") from error
    if not isinstance(header, dict):
        raise _malformed(path, "the header is no JSON object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    state = {name: _tensor(path, name, entry, 8 + header_size) for name, entry in entries.items()}
    _check_coverage(path, entries, size - 8 - header_size)
    return flatten_state(state, str(path))


def _tensor(path: Path, name: str, entry: Any, base: int) -> LazyTensor:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if code in DTYPES:
            dtype = DTYPES[code]
        case _:
            raise _malformed(path, f"the entry of {name[:80]!r} is not understood")
    if not all(type(n) is int and n >= 0 for n in shape) or not 0 <= start <= stop:
        raise _malformed(path, f"the entry of {name[:80]!r} is not understood")
    if prod(shape) * dtype.itemsize != stop - start:
        raise _malformed(path, f"the shape and the bytes of {name[:80]!r} disagree")

    def read() -> np.ndarray:
        data = np.empty(stop - start, np.uint8)
        with open(path, "rb") as stream:
            stream.seek(base + start)
            if stream.readinto(data.data) != data.size:
                raise WeightsError(f"{path}: is truncated at {name!r}; fetch or save it again")
        return (data != 0 if dtype.kind == "b" else data.view(dtype)).reshape(shape)

    return LazyTensor(tuple(shape), dtype, read)


def _check_coverage(path: Path, entries: dict[str, Any], size: int) -> None:
    """Asserts that the tensors fill the file's data without gap, overlap or rest."""
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in entries.values()):
        if start != end:
            raise _malformed(path, "its tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise _malformed(path, f"it holds {size} bytes of tensors where its header announces {end}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _malformed(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: is truncated or no safetensors file ({reason}); fetch or save it again")


def write_safetensors(path: Path, state: State) -> None:
    """Writes a state dict in the safetensors format, one tensor after the other; equal input gives equal files.

    Args:
        path: The file; it appears only when it is complete.
        state: The tensors by name. The header keeps their order; the data are ordered by falling item size, which keeps
            every tensor aligned.

    Raises:
        WeightsError: A tensor's type is unknown to the format, or the file cannot be written.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for key, tensor in state.items():
        if tensor.dtype not in codes:
            raise WeightsError(f"{path}: {key} is of type {tensor.dtype}, which safetensors cannot hold; cast it first")
    layout = sorted(state, key=lambda key: -state[key].dtype.itemsize)
    offsets, end = {}, 0
    for key in layout:
        offsets[key] = [end, end + state[key].nbytes]
        end += state[key].nbytes
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for key, tensor in state.items():
        header[key] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets[key]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file_aside(path) as aside, open(aside, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key in layout:
            stream.write(as_bytes(read_checked(key, state[key])))
